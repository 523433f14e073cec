"""The commands around classifiers: sentimentalTrain.py and `smallgpt sentiment …`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from smallgpt.cli.arguments import (
    CheckpointPath,
    ConfigFile,
    Device,
    Force,
    Overrides,
    before_torch,
    check_output,
    command,
    typed,
)
from smallgpt.config import ABLATION, CLASSIFY, TEXT, SentimentConfig
from smallgpt.config_file import load_config, typed_keys
from smallgpt.utils.errors import UserError

sentiment_app = typer.Typer(no_args_is_help=True, help="Train, use and compare classifiers.")


@command(sentiment_app, "train")
def sentiment_train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a classifier on labelled reviews, and test it beside a TF-IDF baseline.

    Example: python sentimentalTrain.py config/sentimental_demo.yaml sentimental_data_path=my.csv

    Ctrl-C stops after the step in hand and saves; resume_from=latest goes on.
    """
    overrides = overrides or []
    settings = load_config(config, overrides, SentimentConfig, CLASSIFY)
    before_torch()
    from smallgpt.sentiment import recipe

    recipe.run(settings, typed("sentimentalTrain.py", config, overrides), typed_keys(overrides))


@command(sentiment_app)
def predict(
    path: CheckpointPath,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Reviews; without any, each line of standard input is one."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", help="A CSV, TSV or JSONL file of reviews, of any size."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Where to write it with the verdicts: .csv (for Excel too), .tsv or .jsonl.",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text; by default as in training.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which characters drove each verdict.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write the explanations as a page.")
    ] = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Judge reviews: label, probability and text, one a line.

    Example: smallgpt sentiment predict checkpoints/sentimental_demo "房间很干净"
    """
    if (source is None) != (target is None):
        raise UserError("--input and --output go together", "give both, or texts")
    if source is not None and (texts or explain or page):
        raise UserError("--input takes no further texts and no --explain", "do one of them")
    check_output([source] if source else [], [file for file in (target, page) if file], force)
    before_torch()
    from smallgpt.sentiment import judging, predictor
    from smallgpt.sentiment.explain import explain_texts

    loaded = predictor.load(path, device)
    given = list(map(judging.argument, texts)) if texts else judging.lines_of(sys.stdin)
    if source is not None and target is not None:
        judging.judge_file(loaded, source, target, text_column or loaded.config.text_column)
    elif explain or page:
        explain_texts(loaded, given, page)
    else:
        judging.judge_texts(loaded, given)


@command(sentiment_app)
def ablation(
    config: ConfigFile,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each of the four cells.")] = 5,
    cell: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, such as 'mask'; may be given several times."),
    ] = None,
) -> None:
    """Train with and without mask, frozen and not, several times each, and compare.

    What is finished is not done again: the same command goes on where it was stopped.
    """
    overrides = overrides or []
    settings = load_config(config, overrides, SentimentConfig, ABLATION)
    before_torch()
    from smallgpt.sentiment import ablation as comparison

    again = ["-m", "smallgpt", "sentiment", "ablation", str(config), *overrides]
    again += [f"--seeds={seeds}", *(f"--cell={name}" for name in cell or [])]
    comparison.run(settings, seeds, shlex.join(again), cell)


@command(sentiment_app)
def text(
    config: ConfigFile,
    overrides: Overrides = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Further files, of which all reviews but those kept for the test are taken; the "
            "config's own once more gives its reviews more weight."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The text to write, instead of standard output.")
    ] = None,
    force: Force = False,
) -> None:
    """Write reviews as a text for train.py, one a dialogue.

    Of the config's file only what is not kept for the test is taken, so that a model may read it
    before it is made a classifier.

    Example: smallgpt sentiment text config/sentimental_demo.yaml --output data/reviews.txt
    """
    settings = load_config(config, overrides, SentimentConfig, TEXT)
    inputs = [Path(settings.sentimental_data_path), *(also or [])]
    check_output(inputs, [output] if output else [], force)
    from smallgpt.data import reviews

    texts = reviews.texts_outside_test(settings, also or [])
    if output:
        from smallgpt.data.prepare import write

        write((text.split("\n") for text in texts), {output: 1.0})
        return
    for review in texts:
        sys.stdout.write(review + "\n\n")
