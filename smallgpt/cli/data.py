"""The commands around texts: `smallgpt data …`. They import what they need when they run."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smallgpt.cli.arguments import command
from smallgpt.utils.errors import UserError
from smallgpt.utils.words import counted

if TYPE_CHECKING:
    from smallgpt.data.prepare import Survey

data_app = typer.Typer(no_args_is_help=True, help="Make, convert and inspect dialogue texts.")

Files = Annotated[
    list[Path],
    typer.Argument(help="Dialogues: text, JSON, JSONL, CSV, TSV or Parquet; plain, .gz or .xz."),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="text, openai, sharegpt, kdconv, lccc, alpaca or table."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out broken records.")]
Picture = Annotated[Path | None, typer.Option(help="Draw the histogram of lengths (PNG).")]


@command(data_app)
def convert(
    files: Files,
    output: Annotated[Path, typer.Option(help="The text to write.")],
    kind: Format = None,
    skip_bad: SkipBad = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep what occurs twice.")
    ] = False,
    picture: Picture = None,
) -> None:
    """Make a text for train.py of dialogues in other formats, without duplicates, and report.

    Example: smallgpt data convert sharegpt.jsonl LCCC.json --output data/train.txt
    """
    from smallgpt.data.prepare import Survey, write

    _check_output(files, [output])
    survey = Survey()
    write(survey.collect(files, kind, skip_bad, keep_duplicates), {output: 1.0})
    _report(survey, picture)
    typer.echo(f"written: {output}")


@command(data_app)
def stats(
    files: Files, kind: Format = None, skip_bad: SkipBad = False, picture: Picture = None
) -> None:
    """Count dialogues, turns, characters, duplicates and lengths."""
    from smallgpt.data.prepare import Survey

    survey = Survey()
    for _ in survey.collect(files, kind, skip_bad):
        pass
    _report(survey, picture)


@command(data_app)
def split(
    files: Files,
    output_dir: Annotated[Path, typer.Option(help="Folder for train.txt, validation.txt …")],
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share of dialogues.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of dialogues.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Which dialogue is in which part.")] = 0,
    kind: Format = None,
    skip_bad: SkipBad = False,
) -> None:
    """Split dialogues into training, validation and test texts; duplicates stay in one part.

    Example: smallgpt data split data/train.txt --output-dir data/parts
    """
    from smallgpt.data.prepare import Survey, write

    if validation + test >= 1:
        raise UserError(f"--validation {validation} and --test {test} leave nothing to train on")
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    parts = {output_dir / f"{name}.txt": share for name, share in shares.items() if share}
    _check_output(files, parts)
    survey = Survey()
    written = write(survey.collect(files, kind, skip_bad), parts, seed)
    _report(survey)
    for path, number in written.items():
        typer.echo(f"written: {path}, {counted(number, 'dialogue')}")


@command(data_app)
def smalltalk(
    dialogues: Annotated[int, typer.Option(min=1, help="How many, all distinct.")] = 60_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="The text to write, instead of standard output.")
    ] = None,
) -> None:
    """Write built-in small talk as a text for train.py.

    Example: smallgpt data smalltalk --output data/smalltalk.txt
    """
    from tqdm import tqdm

    from smallgpt.data.prepare import write
    from smallgpt.demo.smalltalk import generate

    texts = tqdm(generate(dialogues, seed), total=dialogues, unit="dialogue", delay=1, leave=False)
    try:
        if output:
            _check_output([], [output])
            write((text.split("\n") for text in texts), {output: 1.0})
            return
        for number, text in enumerate(texts):
            sys.stdout.write(("\n" if number else "") + text + "\n")
    except ValueError as error:
        raise UserError(f"--dialogues {dialogues}: {error}", "ask for fewer") from None


def _check_output(files: list[Path], outputs: Iterable[Path]) -> None:
    from smallgpt.data.text import check_files

    check_files(files)
    for output in outputs:
        if output.is_dir() or any(output.exists() and output.samefile(file) for file in files):
            raise UserError(f"{output} is an input, or a directory", "name another file")


def _report(survey: "Survey", picture: Path | None = None) -> None:
    typer.echo("\n".join(survey.lines()))
    if picture:
        survey.draw(picture)
        typer.echo(f"written: {picture}")
