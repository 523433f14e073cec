"""Rows of CSV, TSV and JSONL files as a stream, in bounded memory."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ijson

from smallgpt.data.text import open_decompressed, read_bytes
from smallgpt.utils.errors import UserError, note

_DELIMITERS = (",", "\t", ";", "|")
_TABLE_SUFFIXES = (".csv", ".tsv")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
LONGEST = 1 << 24
"""Characters of a line or a cell, at most: what a small packed file unpacks to must not fill the
memory."""


@dataclass(frozen=True)
class Row:
    """number: line in the file where it begins; cells: by column, all of them text."""

    number: int
    cells: dict[str, str]


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
    lines = read_lines(path)
    if is_jsonl(path):
        return _json_rows(path, lines, columns)
    return _table_rows(path, lines, columns)


def read_lines(path: Path) -> Iterator[str]:
    """Stream lines with their newlines, whichever kind, without a byte order mark.

    Text is UTF-8, or GB18030 where it is not UTF-8, which is said.

    Raises:
        UserError: the file cannot be read.
    """
    return _lines(path, _encoding(path))


def header_of(path: Path, beginning: str) -> list[str]:
    """The columns of a table, from its beginning; none where its name is not a table's."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".xz")]
    if not suffixes or suffixes[-1] not in _TABLE_SUFFIXES:
        return []
    header = beginning.partition("\n")[0]
    return next(csv.reader([header.strip()], delimiter=_delimiter(header, [])), [])


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
    rest, first, number = "", True, 0
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
        number += len(lines)
        yield from lines
        if len(rest) > LONGEST:
            raise UserError(
                f"{path}, line {number + 1:,} is longer than {LONGEST:,} characters",
                "is it such a file, with its newlines?",
            )


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
    csv.field_size_limit(LONGEST)
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
        raise UserError(f"{path}, line {after}: {error}") from None


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


class _Bounded:
    """A file that refuses to go on within a record of more than `LONGEST` bytes."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self.record, self.read_since = 1, 0

    def read(self, size: int) -> bytes:
        self.read_since += size
        if self.read_since > LONGEST:
            raise UserError(
                f"{self._path}, record {self.record:,} is longer than {LONGEST:,} bytes",
                "is it a list of dialogues?",
            )
        return self._file.read(size)


def list_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Stream the items of a JSON list, numbered from 1.

    Raises:
        UserError: it is broken, or an item is too long; what is before it has been given.
    """
    number = 0
    try:
        with open_decompressed(path) as file:
            bounded = _Bounded(file, path)
            for number, item in enumerate(ijson.items(bounded, "item", use_float=True), start=1):
                yield number, item
                bounded.record, bounded.read_since = number + 1, 0
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: the list is broken behind record {number:,}: {reason}",
            "what follows cannot be read; get the file again",
        ) from None


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, by column.

    Raises:
        UserError: it is damaged, or pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which needs pyarrow", "install it: pip install pyarrow"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
