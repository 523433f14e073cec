"""`smallgpt sentiment predict`: arguments, lines and files of reviews in, verdicts out."""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from smallgpt.data import encodings
from smallgpt.data.tables import columns_of, distinct, is_jsonl, read_rows
from smallgpt.data.text import BLANK, encoding_of
from smallgpt.sentiment.predictor import Predictor, note_blank, print_line
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

_TABLES, _JSONL = (".csv", ".tsv", ".txt", ""), (".jsonl", ".ndjson")
"""Endings of the names of what can be written."""
FOR_EXCEL = "utf-8-sig"
"""UTF-8 with a byte order mark, without which Excel reads a CSV in the system's old encoding."""
_TO_WRITE = {
    "utf-8": FOR_EXCEL,
    **dict.fromkeys(("utf-16-le", "utf-16-be"), "utf-16"),
    **dict.fromkeys(("utf-32-le", "utf-32-be"), "utf-32"),
}
"""How a table is written whose input had an encoding: with a byte order mark."""


def argument(text: str) -> str:
    """A text from the command line: one in GB18030 is read as that; what is damaged of one in UTF-8
    becomes U+FFFD.

    Raises:
        UserError: it is neither.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        data, where = os.fsencode(text), "an argument"
        if encodings.encoding_of(Path(where), [data, b""]) == "gb18030":
            return _decoded(data, "gb18030", where)
        return data.decode("utf-8", "replace")
    return text


def lines_of(file: TextIO | None) -> Iterator[str]:
    """The lines of standard input, whatever the locale: UTF-8, and GB18030 from the first one on
    that is in it, which is said.

    Raises:
        UserError: they are neither, or standard input is closed.
    """
    if file is None:
        raise UserError("standard input is closed", "give texts, or --input and --output")
    encoding = "utf-8"
    for number, data in enumerate(file.buffer, start=1):
        where = f"standard input, line {number:,}"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            if encoding == "utf-8" and encodings.encoding_of(Path(where), [data, b""]) != encoding:
                encoding = "gb18030"
                note(f"{where}: not UTF-8, read as GB18030 from here on")
            text = _decoded(data, encoding, where)
        text = text.removeprefix("\ufeff") if number == 1 else text
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield from text.removesuffix("\n").split("\n")


def _decoded(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        other = "not UTF-8, as the rest is" if encoding == "utf-8" else "neither UTF-8 nor GB18030"
        raise UserError(f"{where}: {other}", "convert it to UTF-8, or correct it") from None


def judge_texts(predictor: Predictor, texts: Iterable[str]) -> None:
    """Print label, probability and text of each, as they come; of a blank one the text alone."""
    # One at a time from a terminal or a slow pipe; a list that is at hand all at once.
    at_once, blank, guesses = 64 if isinstance(texts, list) else 1, 0, 0
    for text, prediction in predictor.predict_each(texts, at_once):
        is_blank = not text.strip(BLANK)
        print_line(None if is_blank else prediction, text)
        blank += is_blank
        guesses += predictor.can_only_guess(text)
    note_blank(blank, "not judged")
    _tell_guesses(guesses)


def judge_file(predictor: Predictor, source: Path, target: Path, text_column: str) -> None:
    """Copy a file of reviews with two more columns, verdict and probability.

    They are empty where a row has no text. A table is written in UTF-8 as Excel reads it, or in the
    input's encoding where that is another; JSONL in plain UTF-8. `target` is complete or not there.

    Raises:
        UserError: a file cannot be read or written, or the text column is missing.
    """
    as_jsonl = _check_target(target)
    keys = "--text-column"
    if not is_jsonl(source):
        keys += f"; or where each line is a review, give it as standard input: < {source}"
    rows, again = itertools.tee(read_rows(source, [text_column], keys=keys))
    columns = columns_of(source, [text_column], keys)
    names = distinct([*columns, "verdict", "probability"])
    for name, new in zip(("verdict", "probability"), names[-2:], strict=True):
        if name != new:
            note(f"{source} has a column {name!r}: what the model says is in {new!r}")
    encoding = "utf-8" if as_jsonl else _TO_WRITE.get(found := encoding_of(source), found)
    judged = predictor.predict_each(row.cells[text_column] for row in again)
    # In JSONL, numbers stay numbers.
    cells = (row.values if as_jsonl else row.cells for row in rows)
    pairs = zip(cells, judged, strict=True)
    empty = guesses = 0
    try:
        with (
            atomic.file(target) as work,
            work.open("w", encoding=encoding, newline="") as file,
            tqdm(pairs, "judging", unit=" reviews", delay=1, dynamic_ncols=True) as bar,
        ):
            separator = "\t" if target.suffix.lower() == ".tsv" else ","
            table = csv.DictWriter(file, names, delimiter=separator)
            if not as_jsonl:
                table.writeheader()
            for row, (text, prediction) in bar:
                verdict: list[Any] = [prediction.label, round(prediction.probability, 6)]
                if not text.strip(BLANK):
                    empty, verdict = empty + 1, [None, None]
                guesses += predictor.can_only_guess(text)
                row = {**row, **dict(zip(names[-2:], verdict, strict=True))}
                if as_jsonl:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                else:
                    table.writerow(row)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    _tell_guesses(guesses)
    written = (
        "UTF-8 with the byte order mark that Excel needs"
        if encoding == FOR_EXCEL
        else encoding.upper()
    )
    note(f"{bar.n - empty:,} judged, {empty:,} without a text; written: {target} ({written})")


def _check_target(target: Path) -> bool:
    """Whether to write JSONL; a UserError where the name of the output cannot be meant."""
    suffix = target.suffix.lower()
    if suffix not in (*_TABLES, *_JSONL):
        raise UserError(
            f"--output {target}: {suffix} cannot be written",
            "name a .csv, which Excel opens too, a .tsv or a .jsonl",
        )
    return suffix in _JSONL


def _tell_guesses(count: int) -> None:
    if count:
        note(
            "mostly of characters that the model has never seen: "
            f"{counted(count, 'text')}; there the verdict is a guess"
        )
