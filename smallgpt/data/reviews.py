"""Labelled texts: CSV, TSV or JSONL with a text and a label column, and their split.

A review is one example, however long; identical reviews are always in the same part of the split.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.config import SentimentConfig
from smallgpt.data.text import read_bytes
from smallgpt.errors import UserError, note

IntArray = npt.NDArray[np.int64]
MOST_LABELS = 1000
"""More different labels than this are taken for a mistake in the label column."""
_DELIMITERS = (",", "\t", ";", "|")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_MISSING = ("", "nan", "none", "null")


@dataclass(frozen=True)
class Reviews:
    """texts: the reviews; labels: the number of each one's label, (N,); names: by number."""

    texts: list[str]
    labels: IntArray
    names: list[str]

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.texts)

    def part(self, indices: IntArray) -> Reviews:
        """Some of the reviews, with the same names of labels."""
        return Reviews([self.texts[i] for i in indices], self.labels[indices], self.names)


@dataclass(frozen=True)
class Split:
    """Indices of the reviews to train on, to choose the best model with, and to judge it by."""

    train: IntArray
    validation: IntArray
    test: IntArray


@dataclass(frozen=True)
class Row:
    """number: line in the file where it begins; cells: by column, all of them text."""

    number: int
    cells: dict[str, str]


def read_reviews(
    path: Path, text_column: str, label_column: str, names: list[str] | None = None
) -> Reviews:
    """Read a whole file.

    Rows without a text or a label are dropped, and counted in a line. `1.0` is the label `1`.

    Args:
        names: the labels that may occur; by default those of the file, in order (numbers by value).

    Raises:
        UserError: the file is missing or undecodable, a column is missing, a label is unknown, or
            there are fewer than two labels.
    """
    texts, found = [], []
    empty_texts = empty_labels = 0
    for row in read_rows(path, (text_column, label_column)):
        text, label = row.cells[text_column], _label(row.cells[label_column])
        if not text.strip() or text.strip().lower() == "nan":
            empty_texts += 1
        elif label.lower() in _MISSING:
            empty_labels += 1
        elif names is not None and label not in names:
            raise UserError(
                f"{path}, line {row.number}: the label {label!r} is unknown",
                f"the labels are: {', '.join(names)}",
            )
        else:
            texts.append(text)
            found.append(label)
    for count, what in ((empty_texts, "text"), (empty_labels, "label")):
        if count:
            note(f"{path}: {count:,} {'row' if count == 1 else 'rows'} without a {what} dropped")
    if names is None:
        names = _names(path, label_column, found)
    number = {name: n for n, name in enumerate(names)}
    return Reviews(texts, np.array([number[label] for label in found], np.int64), names)


def _label(cell: str) -> str:
    """`1.0`, as a table with gaps is often saved, is `1`."""
    cell = cell.strip()
    whole, dot, rest = cell.partition(".")
    return whole if dot and whole.lstrip("-").isdigit() and set(rest) <= {"0"} else cell


def _names(path: Path, label_column: str, found: list[str]) -> list[str]:
    names = sorted(set(found), key=lambda name: (not _is_number(name), _sort_key(name)))
    if not names:
        raise UserError(f"{path}: no labelled review in it", "give a text and a label in each row")
    if len(names) == 1:
        raise UserError(
            f"{path}: all labels are {names[0]!r}", "a classifier needs two different labels"
        )
    if len(names) > MOST_LABELS:
        raise UserError(
            f"{path}: {len(names):,} different labels in column {label_column!r}",
            "is it the right one? set label_column",
        )
    return names


def _is_number(name: str) -> bool:
    return name.lstrip("-").isdigit() and name.isascii()


def _sort_key(name: str) -> Any:
    return int(name) if _is_number(name) else name


def split_reviews(
    reviews: Reviews, train_percent: float, validation_percent: float, seed: int
) -> Split:
    """Share the reviews out by label: each part gets the same share of each label, almost.

    Args:
        train_percent: share that is not for the test.
        validation_percent: share of that which is for validation.

    Raises:
        UserError: too few reviews of a label for three parts.
    """
    generator = np.random.default_rng((seed, 6))
    first: dict[str, int] = {}
    group = np.array([first.setdefault(text, i) for i, text in enumerate(reviews.texts)], np.int64)
    part = np.zeros(len(reviews), np.int64)
    for label, name in enumerate(reviews.names):
        own = generator.permutation(np.unique(group[reviews.labels[group] == label]))
        test = max(1, len(own) - round(len(own) * train_percent))
        validation = max(1, round((len(own) - test) * validation_percent))
        if len(own) < 3 or test + validation >= len(own):
            raise UserError(
                f"{len(own)} different reviews with the label {name!r} are too few",
                "each label needs some for training, validation and test; "
                "add more, or change train_percent and validation_percent",
            )
        part[own[:test]] = 2
        part[own[test : test + validation]] = 1
    part = part[group]
    return Split(*(np.flatnonzero(part == number) for number in range(3)))


def to_learn_from(config: SentimentConfig, also: list[Path]) -> Iterator[str]:
    """The texts of a config's reviews but those kept for the test, then those of other files.

    Each without blank lines, which would divide it in a text of dialogues.
    """
    path = Path(config.sentimental_data_path).expanduser()
    own = read_reviews(path, config.text_column, config.label_column)
    split = split_reviews(own, config.train_percent, config.validation_percent, config.split_seed)
    kept = {own.texts[i] for i in split.test}
    texts = [text for text in own.texts if text not in kept]
    others = (
        row.cells[config.text_column]
        for file in also
        for row in read_rows(file, [config.text_column])
    )
    for text in itertools.chain(texts, others):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and text not in kept:
            yield "\n".join(lines)


# Rows of a file, one at a time.


def read_rows(path: Path, columns: Iterable[str] = ()) -> Iterator[Row]:
    """Stream the rows of a CSV, TSV or JSONL file (also .gz and .xz), by its name's ending.

    Text is UTF-8, or GB18030 where it is not UTF-8, which is said. The delimiter is the one under
    which the header has the columns.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is broken.
    """
    columns = list(columns)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "not found"
        raise UserError(f"{path} {kind}", "give a CSV, TSV or JSONL file with a header")
    encoding = _encoding(path)
    lines = _lines(path, encoding)
    if is_jsonl(path):
        return _json_rows(path, lines, columns)
    return _table_rows(path, lines, columns)


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds a JSON object a line."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".xz")]
    return bool(suffixes) and suffixes[-1] in _JSON_SUFFIXES


def _encoding(path: Path) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for data in read_bytes(path):
            decoder.decode(data, final=not data)
    except UnicodeDecodeError:
        note(f"{path}: not UTF-8, read as GB18030")
        return "gb18030"
    return "utf-8"


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Lines with their newlines, whichever kind; without a byte order mark."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, first = "", True
    for data in read_bytes(path):
        try:
            text = rest + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is neither UTF-8 nor GB18030: {error.reason}", "save it as UTF-8"
            ) from None
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        lines = io.StringIO(text, newline="").readlines()
        # A last line without its newline goes on in the next part; so may a `\r` as `\r\n`.
        rest = lines.pop() if data and lines else ""
        yield from lines


def _json_rows(path: Path, lines: Iterator[str], columns: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not JSON: {error}", "write one JSON object a line"
            ) from None
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {number}: not an object", 'write {"column": value, …}')
        cells = {key: _cell(value) for key, value in values.items()}
        _check_columns(f"{path}, line {number}", cells, columns)
        yield Row(number, cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table_rows(path: Path, lines: Iterator[str], columns: list[str]) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    header = next(lines, "")
    if not header.strip():
        raise UserError(f"{path} is empty", "give a CSV, TSV or JSONL file with a header")
    delimiter = _delimiter(header, columns)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    _check_columns(str(path), names, columns)
    reader = csv.reader(lines, delimiter=delimiter)
    after = 2
    try:
        for cells in reader:
            number, after = after, reader.line_num + 2
            if not cells:
                continue
            if len(cells) > len(names):
                raise UserError(
                    f"{path}, line {number}: {len(cells)} cells for {len(names)} columns",
                    'put texts that contain the delimiter in quotes: "…"',
                )
            cells += [""] * (len(names) - len(cells))
            yield Row(number, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: {error}") from None


def _delimiter(header: str, columns: list[str]) -> str:
    """The one that gives most of the wanted columns, then most columns."""

    def fit(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
        return len(set(columns) & set(names)), len(names)

    return max(_DELIMITERS, key=fit)


def _check_columns(where: str, names: Iterable[str], columns: list[str]) -> None:
    for column in columns:
        if column not in names:
            raise UserError(
                f"{where}: no column {column!r}",
                f"the columns are: {', '.join(names)}; set text_column and label_column",
            )
