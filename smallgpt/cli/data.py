"""The commands around texts: `smallgpt data …`. They import what they need when they run."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smallgpt.cli.arguments import Force, check_output, command
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

if TYPE_CHECKING:
    from smallgpt.data.chats.dialogues import Chats
    from smallgpt.data.prepare import Survey

_SHOWN, _SHOWN_WIDTH = 8, 60  # utterances of the first dialogue, and characters of each

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
Columns = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--columns",
        metavar="PROMPT RESPONSE",
        help="The columns (or keys) of prompt and reply, where their names are not known ones.",
    ),
]
Picture = Annotated[Path | None, typer.Option(help="Draw the histogram of lengths (PNG).")]


@command(data_app)
def convert(
    files: Files,
    output: Annotated[Path, typer.Option(help="The text to write; a new file.")],
    kind: Format = None,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep what occurs twice.")
    ] = False,
    without: Annotated[
        list[Path] | None,
        typer.Option(
            help="Leave out dialogues that this file has too, also where only punctuation "
            "differs: what a model will be judged on. May be repeated."
        ),
    ] = None,
    picture: Picture = None,
    me: Annotated[
        list[str] | None,
        typer.Option(help="Of a chat export: whose messages are the replies. May be repeated."),
    ] = None,
    gap: Annotated[
        str | None,
        typer.Option(help="With --me: a longer silence ends a dialogue; 1h unless given."),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Put placeholders for phone numbers, addresses, names …"),
    ] = False,
    force: Force = False,
) -> None:
    """Make a text for train.py of dialogues in other formats, without duplicates, and report.

    Example: smallgpt data convert sharegpt.jsonl LCCC.json --output data/train.txt

    Chat exports of WeChat, QQ, WhatsApp, Telegram: smallgpt data convert chat.txt --me 张三
    --redact --output data/train.txt. In a group, each of your messages answers what the others
    said since your last one.
    """
    from smallgpt.data.chats.dialogues import Chats, gap_in_seconds
    from smallgpt.data.chats.exports import refuse_exports, warn_of_exports
    from smallgpt.data.prepare import Survey, write
    from smallgpt.data.redact import Redactor

    without = without or []
    _check_files([*files, *without], [output, *([picture] if picture else [])], force)
    if me and (kind or columns):
        raise UserError("--me does not go with --format or --columns", "leave these out")
    if gap and not me:
        raise UserError("--gap is for chat exports", "add --me NAME")
    chats = Chats(me, gap_in_seconds(gap or "1h")) if me else None
    if not (chats or kind or columns):
        refuse_exports(files)
    warn_of_exports(without)
    survey = Survey()
    survey.leave_out(_dialogues(without, None, None, survey, skip_bad))
    dialogues = _dialogues(files, kind, columns, survey, skip_bad, chats)
    redactor = Redactor(redact, chats.names if chats else set())
    dialogues = redactor.apply(survey.collect(dialogues, keep_duplicates))
    first: list[str] = []
    to_stderr = _is_standard_output(output)  # the report is no part of the text
    write(_with_first(dialogues, first, chats, survey), {output: 1.0})
    report = [*(chats.lines() if chats else []), *survey.lines()]
    if chats:
        shown = [text[:_SHOWN_WIDTH] for text in first[:_SHOWN]]
        report.append("the first dialogue, < others, > you:")
        report += [f"  {'<>'[number % 2]} {text}" for number, text in enumerate(shown)]
    typer.echo("\n".join([*report, f"written: {output}"]), err=to_stderr)
    _draw(survey, picture, to_stderr)
    if line := redactor.line():
        note(line)


@command(data_app)
def stats(
    files: Files,
    kind: Format = None,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    picture: Picture = None,
    force: Force = False,
) -> None:
    """Count dialogues, turns, characters, duplicates and lengths."""
    from smallgpt.data.chats.exports import warn_of_exports
    from smallgpt.data.prepare import Survey

    _check_files(files, [picture] if picture else [], force)
    if not (kind or columns):
        warn_of_exports(files)
    survey = Survey()
    for _ in survey.collect(_dialogues(files, kind, columns, survey, skip_bad)):
        pass
    typer.echo("\n".join(survey.lines()))
    _draw(survey, picture)


@command(data_app)
def split(
    files: Files,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for train.txt, validation.txt …, which are new files.")
    ],
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share of dialogues.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of dialogues.")] = 0.05,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which dialogue is in which part; 0 if not given.")
    ] = None,
    in_order: Annotated[
        bool,
        typer.Option(
            "--in-order",
            help="Keep the order: train has the first dialogues, test the last. For texts where "
            "neighbours are alike, and for chats, to test on later ones.",
        ),
    ] = False,
    kind: Format = None,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Split dialogues into training, validation and test texts, without duplicates.

    Example: smallgpt data split data/train.txt --output-dir data/parts
    """
    from smallgpt.data.chats.exports import warn_of_exports
    from smallgpt.data.prepare import Survey, write

    if validation + test >= 1:
        raise UserError(f"--validation {validation} and --test {test} leave nothing to train on")
    if in_order and seed is not None:
        raise UserError("--seed does not go with --in-order", "give one of them")
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    parts = {output_dir / f"{name}.txt": share for name, share in shares.items() if share}
    _check_files(files, list(parts), force)
    if not (kind or columns):
        warn_of_exports(files)
    survey = Survey()
    dialogues = _dialogues(files, kind, columns, survey, skip_bad)
    written = write(survey.collect(dialogues), parts, None if in_order else seed or 0)
    files_written = [f"written: {path}, {counted(n, 'dialogue')}" for path, n in written.items()]
    typer.echo("\n".join([*survey.lines(), *files_written]))


@command(data_app)
def smalltalk(
    dialogues: Annotated[int, typer.Option(min=1, help="How many, all distinct.")] = 60_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    name: Annotated[
        str | None, typer.Option(help="What the bot is called; 小积 if not given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The text to write, instead of standard output.")
    ] = None,
    force: Force = False,
) -> None:
    """Write built-in small talk as a text for train.py.

    Example: smallgpt data smalltalk --output data/smalltalk.txt
    """
    from tqdm import tqdm

    from smallgpt.data.prepare import write
    from smallgpt.demo.smalltalk import NAME, generate

    if name is not None and len(name.split()) != 1:
        raise UserError(f"--name {name!r} is not a name", "give one word")
    drawn = generate(dialogues, seed, (name or NAME).strip())
    texts = tqdm(drawn, total=dialogues, unit="dialogue", delay=1, leave=False)
    try:
        if output:
            check_output([], [output], force)
            written = write((text.split("\n") for text in texts), {output: 1.0})
            note(f"written: {output}, {counted(written[output], 'dialogue')}")
            return
        for number, text in enumerate(texts):
            sys.stdout.write(("\n" if number else "") + text + "\n")
    except ValueError as error:
        raise UserError(f"--dialogues {dialogues}: {error}", "ask for fewer") from None


def _dialogues(
    files: list[Path],
    kind: str | None,
    columns: tuple[str, str] | None,
    survey: "Survey",
    skip_bad: bool,
    chats: "Chats | None" = None,
) -> Iterator[list[str]]:
    from smallgpt.data.dialogue_formats import read_dialogues

    rejected = survey.reject if skip_bad else None
    for file in files:
        if chats:
            yield from chats.dialogues(file, rejected)
        else:
            yield from read_dialogues(file, kind, rejected, columns)


def _with_first(
    dialogues: Iterable[list[str]], first: list[str], chats: "Chats | None", survey: "Survey"
) -> Iterator[list[str]]:
    """The same dialogues; `first` becomes the first one. Where there is none, it is said why."""
    for dialogue in dialogues:
        first.extend([] if first else dialogue)
        yield dialogue
    if survey.unwanted and not first:
        problem = f"the files of --without have all {counted(survey.unwanted, 'dialogue')}"
        raise UserError(problem, "leave --without out, or convert other files")
    if chats and not first:
        raise UserError("no dialogue came out of it", "\n     ".join(chats.lines()))


def _check_files(files: list[Path], outputs: list[Path], force: bool) -> None:
    """Refuse inputs that cannot be read, and outputs as `check_output` does."""
    from smallgpt.data.text import check_files

    check_files(files)
    check_output(files, outputs, force)


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def _draw(survey: "Survey", picture: Path | None, to_stderr: bool = False) -> None:
    if picture:
        survey.draw(picture)
        typer.echo(f"written: {picture}", err=to_stderr)
