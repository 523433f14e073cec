"""Verdicts on many texts, in bounded memory: lines, and files with all their columns."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TextIO

from tqdm import tqdm

from smallgpt.data.tables import Row, is_jsonl, read_rows
from smallgpt.sentiment import explain
from smallgpt.sentiment.predictor import Prediction, Predictor, in_parts
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

LABEL_COLUMN, PROBABILITY_COLUMN = "verdict", "probability"


def lines_of(file: TextIO) -> Iterator[str]:
    """The lines of standard input that are not blank.

    Raises:
        UserError: they are not UTF-8.
    """
    try:
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: {error.reason}", "convert it") from None


def judge_texts(predictor: Predictor, texts: Iterable[str]) -> None:
    """Print label, probability and text of each, as they come."""
    # One at a time from a terminal or a slow pipe; a list that is at hand all at once.
    size = 64 if isinstance(texts, list) else 1
    for part in in_parts(texts, size):
        for text, prediction in zip(part, predictor.predict(part), strict=True):
            print(_line(prediction, text), flush=True)


def explain_texts(predictor: Predictor, texts: Iterable[str], page: Path | None) -> None:
    """Print each verdict with what drove it; with `page`, write them as HTML too."""
    explanations = []
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for text in texts:
        explanation = explain.explain(predictor, text)
        if colours:
            print(_line(explanation.prediction, explain.to_terminal(explanation)))
        else:
            print(_line(explanation.prediction, text))
            print(f"  {explain.strongest(explanation)}", flush=True)
        explanations.append(explanation)
    if page is not None:
        try:
            page.write_text(explain.to_html(explanations), "utf-8")
        except OSError as error:
            raise UserError(f"{page} cannot be written: {error.strerror}") from None
        note(f"written: {page}")


def _line(prediction: Prediction, text: str) -> str:
    return f"{prediction.label}\t{prediction.probability:.4f}\t{text}"


def judge_file(predictor: Predictor, source: Path, target: Path, text_column: str) -> None:
    """Copy a file of reviews with two more columns, verdict and probability.

    They are empty where a row has no text. `target` is complete or not there.

    Raises:
        UserError: a file cannot be read or written, or the text column is missing.
    """
    if target.is_dir() or (target.exists() and source.exists() and target.samefile(source)):
        raise UserError(f"--output {target} is the input, or a directory", "name another file")
    rows = read_rows(source, [text_column])
    judged = empty = 0
    try:
        with atomic.file(target) as work, work.open("w", encoding="utf-8", newline="") as file:
            write: Callable[[dict[str, str]], None] | None = None
            progress = tqdm(desc="judging", unit=" reviews", dynamic_ncols=True, file=sys.stderr)
            for part in in_parts(rows):
                verdicts = _judge_rows(predictor, part, text_column)
                for row, prediction in zip(part, verdicts, strict=True):
                    cells = dict(row.cells)
                    cells[LABEL_COLUMN] = prediction.label if prediction else ""
                    cells[PROBABILITY_COLUMN] = (
                        f"{prediction.probability:.6f}" if prediction else ""
                    )
                    write = write or _writer(file, target, list(cells))
                    write(cells)
                    judged += prediction is not None
                    empty += prediction is None
                progress.update(len(part))
            progress.close()
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    note(f"{judged:,} judged, {empty:,} without a text; written: {target}")


def _judge_rows(predictor: Predictor, rows: list[Row], text_column: str) -> list[Prediction | None]:
    texts = [row.cells[text_column] for row in rows]
    verdicts = iter(predictor.predict([text for text in texts if text.strip()]))
    return [next(verdicts) if text.strip() else None for text in texts]


def _writer(file: IO[str], target: Path, columns: list[str]) -> Callable[[dict[str, str]], None]:
    if is_jsonl(target):

        def as_json(cells: dict[str, str]) -> None:
            file.write(json.dumps(cells, ensure_ascii=False) + "\n")

        return as_json
    delimiter = "\t" if target.suffix.lower() == ".tsv" else ","
    table = csv.DictWriter(file, columns, delimiter=delimiter, extrasaction="ignore")
    table.writeheader()
    return table.writerow
