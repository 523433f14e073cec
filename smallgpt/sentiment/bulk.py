"""Verdicts on many texts, in bounded memory: lines, and files with all their columns."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from smallgpt.data.tables import is_jsonl, read_rows
from smallgpt.sentiment import explain
from smallgpt.sentiment.predictor import Prediction, Predictor
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
    at_once = 64 if isinstance(texts, list) else 1
    for text, prediction in predictor.predict_each(texts, at_once):
        _print(prediction, text)


def explain_texts(predictor: Predictor, texts: Iterable[str], page: Path | None) -> None:
    """Print each verdict with what drove it; with `page`, write them as HTML too."""
    explanations = []
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for text in texts:
        explanation = explain.explain(predictor, text)
        _print(explanation.prediction, explain.to_terminal(explanation) if colours else text)
        if not colours:
            print(f"  {explain.strongest(explanation)}", flush=True)
        explanations.append(explanation)
    if page is not None:
        try:
            page.write_text(explain.to_html(explanations), "utf-8")
        except OSError as error:
            raise UserError(f"{page} cannot be written: {error.strerror}") from None
        note(f"written: {page}")


def _print(prediction: Prediction, text: str) -> None:
    print(f"{prediction.label}\t{prediction.probability:.4f}\t{text}", flush=True)


def judge_file(predictor: Predictor, source: Path, target: Path, text_column: str) -> None:
    """Copy a file of reviews with two more columns, verdict and probability.

    They are empty where a row has no text. `target` is complete or not there.

    Raises:
        UserError: a file cannot be read or written, or the text column is missing.
    """
    if target.is_dir() or (target.exists() and source.exists() and target.samefile(source)):
        raise UserError(f"--output {target} is the input, or a directory", "name another file")
    rows, again = itertools.tee(read_rows(source, [text_column]))
    judged = predictor.predict_each(row.cells[text_column] for row in again)
    pairs = tqdm(zip(rows, judged, strict=True), "judging", unit=" reviews", dynamic_ncols=True)
    empty, table = 0, None
    try:
        with atomic.file(target) as work, work.open("w", encoding="utf-8", newline="") as file:
            for row, (text, prediction) in pairs:
                verdict = (prediction.label, f"{prediction.probability:.6f}")
                if not text.strip():
                    empty, verdict = empty + 1, ("", "")
                cells = {**row.cells, LABEL_COLUMN: verdict[0], PROBABILITY_COLUMN: verdict[1]}
                if is_jsonl(target):
                    file.write(json.dumps(cells, ensure_ascii=False) + "\n")
                    continue
                if table is None:
                    separator = "\t" if target.suffix.lower() == ".tsv" else ","
                    table = csv.DictWriter(file, cells, delimiter=separator, extrasaction="ignore")
                    table.writeheader()
                table.writerow(cells)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    note(f"{pairs.n - empty:,} judged, {empty:,} without a text; written: {target}")
