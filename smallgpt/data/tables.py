"""Records of CSV, TSV, JSONL, JSON and Parquet files as a stream, in bounded memory."""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from smallgpt.data.text import DecodeError, decode
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

_DELIMITERS = (",", "\t", ";", "|")
_TABLE_SUFFIXES = (".csv", ".tsv")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_FIRST_ITEM, _NEXT_ITEM = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_END_OF_LIST = re.compile(r"\s*(\[\s*)?\]\s*")
LONGEST = 1 << 24
"""Characters of a record at most: what a small packed file unpacks to must not fill the memory."""
Broken = Callable[[int, str], object]
"""Called with the number of a broken record and the reason; if it returns, that one is left out."""


class Row(NamedTuple):
    """number: line in the file where it begins; cells: by column, all of them text."""

    number: int
    cells: dict[str, str]


def read_rows(
    path: Path, columns: Iterable[str] = (), encoding: str | None = None
) -> Iterator[Row]:
    """Stream the rows of a CSV, TSV or JSONL file (also .gz and .xz), by its name's ending.

    Text is UTF-8, or GB18030 where it is not UTF-8, which is said; or of an encoding found before.
    The delimiter is the one under which the header has the columns.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is broken.
    """
    _check_is_file(path)
    rows = _json_rows if is_jsonl(path) else _table_rows
    return rows(path, list(columns), encoding)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "not found"
        raise UserError(f"{path} {problem}", "give a CSV, TSV or JSONL file with a header")


def columns_of(path: Path, columns: Iterable[str], encoding: str) -> list[str]:
    """All columns of such a file, in order, also where it has no rows; `columns` are among them.

    The lines of a JSONL file may have different ones: it is read to its end.
    """
    if is_jsonl(path):
        rows = read_rows(path, columns, encoding)
        return list(dict.fromkeys(column for row in rows for column in row.cells))
    line = next(_read_lines(path, encoding), "")
    return distinct(_header(line, columns)[1])


def distinct(names: Iterable[str]) -> list[str]:
    """Names with a number behind each that was there before: note, note (2)."""
    found: list[str] = []
    for name in names:
        new = (f"{name} ({number})" for number in itertools.count(2))
        found.append(name if name not in found else next(n for n in new if n not in found))
    return found


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds a JSON object a line."""
    return _suffix(path) in _JSON_SUFFIXES


def header_of(path: Path, line: str) -> list[str]:
    """The columns in a file's first line; none where its name is not a table's."""
    return _header(line)[1] if _suffix(path) in _TABLE_SUFFIXES else []


def _suffix(path: Path) -> str:
    """The ending of a file's name, whatever it is compressed with."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".xz")]
    return suffixes[-1] if suffixes else ""


def _read_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Stream lines with their newlines, whichever kind."""
    rest, number = "", 1
    for text in decode(path, encoding or encoding_of(path), translate=False):
        lines = io.StringIO(rest + text, newline="").readlines()
        rest = "" if lines[-1].endswith(("\n", "\r")) else lines.pop()
        number += len(lines)
        yield from lines
        if len(rest) > LONGEST:
            problem = f"line {number:,} is longer than {LONGEST:,} characters"
            raise UserError(f"{path}, {problem}", "is it such a file, with its newlines?")
    if rest:
        yield rest


def encoding_of(path: Path) -> str:
    """UTF-8, or where a file is not that, GB18030, which is said.

    Raises:
        UserError: it is no file, or cannot be read.
    """
    _check_is_file(path)
    try:
        for _ in decode(path):
            pass
    except DecodeError:
        note(f"{path}: not UTF-8, read as GB18030")
        return "gb18030"
    return "utf-8"


def json_lines(
    path: Path, broken: Broken, encoding: str | None = None
) -> Iterator[tuple[int, Any]]:
    """Stream the JSON values of a file that holds one a line, with the numbers of the lines."""
    for number, line in enumerate(_read_lines(path, encoding), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            broken(number, f"not JSON: {error}")
        else:
            yield number, value


def _json_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Row]:
    def broken(number: int, reason: str) -> NoReturn:
        advice = 'write one JSON object a line: {"column": value, …}'
        raise UserError(f"{path}, line {number:,}: {reason}", advice)

    for number, values in json_lines(path, broken, encoding):
        if not isinstance(values, dict):
            broken(number, "not an object")
        cells = {key: _cell(value) for key, value in values.items()}
        _check_columns(f"{path}, line {number:,}", cells, columns)
        yield Row(number, cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Row]:
    lines = _read_lines(path, encoding)
    header = next(lines, "")
    if not header.strip():
        raise UserError(f"{path} is empty", "give a CSV, TSV or JSONL file with a header")
    delimiter, names = _header(header, columns)
    _check_columns(str(path), names, columns)
    for column in columns:
        if names.count(column) > 1:
            raise UserError(f"{path}: two columns {column!r}", "rename one of them in the file")
    names = distinct(names)
    reader = csv.reader(lines, delimiter=delimiter)
    after = 2
    try:
        for cells in reader:
            number, after = after, reader.line_num + 2
            if len(cells) > len(names):
                problem = f"{counted(len(cells), 'cell')} for {counted(len(names), 'column')}"
                advice = 'put texts that contain the delimiter in quotes: "…"'
                raise UserError(f"{path}, line {number:,}: {problem}", advice)
            if cells:
                cells += [""] * (len(names) - len(cells))
                yield Row(number, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {after:,}: {error}") from None


def _header(line: str, columns: Iterable[str] = ()) -> tuple[str, list[str]]:
    """The delimiter that gives most of the wanted columns, then most columns; and the columns."""
    csv.field_size_limit(LONGEST)
    found = {}
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])
        found[delimiter] = [name.strip() for name in cells]
    best = max(found, key=lambda d: (len(set(columns) & set(found[d])), len(found[d])))
    return best, found[best]


def _check_columns(where: str, names: Iterable[str], columns: Iterable[str]) -> None:
    for column in columns:
        if column not in names:
            raise UserError(
                f"{where}: no column {column!r}",
                f"the columns are: {', '.join(names)}; set text_column and label_column",
            )


def json_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Stream the items of a JSON list, numbered from 1, as far as it is whole."""
    rest, number = "", 0
    for text in decode(path, encoding_of(path)):
        rest, at = rest + text, 0
        while before := (_NEXT_ITEM if number else _FIRST_ITEM).match(rest, at):
            try:
                item, end = json.JSONDecoder().raw_decode(rest, before.end())
            except (ValueError, RecursionError):
                break  # perhaps it goes on in the next chunk
            if end == len(rest):
                break
            number, at = number + 1, end
            yield number, item
        rest = rest[at:]
        if len(rest) > LONGEST:
            problem = f"record {number + 1:,} is broken, or longer than {LONGEST:,} characters"
            raise UserError(f"{path}, {problem}", "is it a list of dialogues?")
    if not _END_OF_LIST.fullmatch(rest):
        raise UserError(
            f"{path}: the list is broken after record {number:,}",
            "what follows cannot be read; get the file again",
        )


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the rows of a Parquet file, by column, numbered from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        advice = "install it: pip install pyarrow"
        raise UserError(f"{path} is Parquet, which needs pyarrow", advice) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
