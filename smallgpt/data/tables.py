"""Rows of CSV, TSV, JSON and Parquet files as a stream, in bounded memory."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from smallgpt.data.json_files import Broken, json_items, json_lines, refusing
from smallgpt.data.text import LONGEST, beginning, read_lines
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import not_found
from smallgpt.utils.words import counted

_DELIMITERS = (",", "\t", ";", "|")
_NO_HEADER = re.compile(r'(?:sep=.)?[\s,;|"]*')
_TABLE_SUFFIXES = (".csv", ".tsv")
_LINES_SUFFIXES = (".jsonl", ".ndjson")
_JSON_SUFFIXES = (*_LINES_SUFFIXES, ".json")


class Row(NamedTuple):
    """number: line in the file where it begins, or record of a JSON list, as `unit` says; cells: by
    column, all of them text; values: the same as JSON has them."""

    number: int
    cells: dict[str, str]
    values: dict[str, Any]
    unit: str = "line"


def read_rows(
    path: Path,
    columns: Iterable[str] = (),
    broken: Broken | None = None,
    keys: str = "text_column and label_column",
) -> Iterator[Row]:
    """Stream the rows of a table or of JSON objects (also .gz and .xz), by its name's ending.

    A table has a header, and the delimiter under which that has the columns. JSON is one object a
    line, or a list of them.

    Args:
        columns: that there must be.
        broken: called for broken rows, which are then left out.
        keys: what the user says with which columns are meant.

    Raises:
        UserError: the file cannot be read, a column is missing, or without `broken`, a row is
            broken.
    """
    columns = list(columns)
    advice = "give a CSV, TSV or JSONL file with a header"
    if path.is_dir():
        raise UserError(f"{path} is a directory", advice)
    if not path.exists():
        raise not_found(path, advice=advice)
    return (_json_rows if is_jsonl(path) else _table_rows)(path, columns, broken, keys)


def columns_of(path: Path, columns: Iterable[str], keys: str) -> list[str]:
    """All columns of such a file, in order, also where it has no rows; arguments as `read_rows`.

    The objects of a JSON file may have different ones: it is read to its end.
    """
    if is_jsonl(path):
        rows = _json_rows(path, list(columns), None, keys, quiet=True)
        return list(dict.fromkeys(column for row in rows for column in row.cells))
    return distinct(_first_line(path, read_lines(path, quiet=True), columns)[2])


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds JSON: an object a line, or a list of them."""
    return _suffix(path) in _JSON_SUFFIXES


def is_lines(path: Path) -> bool:
    """Whether a file's name says that it holds one JSON value a line."""
    return _suffix(path) in _LINES_SUFFIXES


def is_table(path: Path) -> bool:
    """Whether a file's name says that it holds a table with a header."""
    return _suffix(path) in _TABLE_SUFFIXES


def _suffix(path: Path) -> str:
    """The ending of a file's name, whatever it is compressed with."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".xz")]
    return suffixes[-1] if suffixes else ""


def _json_rows(
    path: Path, columns: list[str], broken: Broken | None, keys: str, quiet: bool = False
) -> Iterator[Row]:
    is_list = beginning(path).lstrip().startswith("[")
    unit = "record" if is_list else "line"
    advice = 'write one JSON object a line: {"column": value, …}, or a list of such objects'
    broken = broken or refusing(path, advice, unit)
    records = json_items(path, quiet) if is_list else json_lines(path, broken, quiet)
    for number, values in records:
        if not isinstance(values, dict):
            broken(number, "not an object")
            continue
        cells = {key: _cell(value) for key, value in values.items()}
        _check_columns(f"{path}, {unit} {number:,}", cells, columns, keys)
        yield Row(number, cells, values, unit)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table_rows(path: Path, columns: list[str], broken: Broken | None, keys: str) -> Iterator[Row]:
    advice = 'put texts that contain the delimiter or a quotation mark in quotes: "…"'
    broken = broken or refusing(path, advice)
    lines = read_lines(path)
    before, delimiter, given = _first_line(path, lines, columns)
    _check_columns(str(path), given, columns, keys)
    names = distinct(given)
    for new in set(names) - set(given):
        note(f"{path}: another column {new.rpartition('.')[0]!r} is read as {new!r}")
    quoted = _is_quoted(path, delimiter, len(names))
    if not quoted:
        note(f"{path}: quotation marks are read as characters of the texts")
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=quoted)
    after, swallowed = before + 2, False
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number, after = after, before + reader.line_num + 2
            broken(number, _reason(error))
            continue
        number, after = after, before + reader.line_num + 2
        if any(cell.strip() for cell in cells[len(names) :]):
            broken(number, f"{counted(len(cells), 'cell')} for {counted(len(names), 'column')}")
        elif cells:
            if not swallowed and (swallowed := _holds_rows(cells, delimiter)):
                note(
                    f"{path}, line {number:,}: a text in quotes holds the {after - number - 1:,} "
                    "lines that follow, which look like rows: is a quotation mark missing?"
                )
            cells += [""] * (len(names) - len(cells))
            row = dict(zip(names, cells, strict=False))
            yield Row(number, row, row)


def _is_quoted(path: Path, delimiter: str, columns: int) -> bool:
    """Whether quotation marks enclose cells, as in CSV, rather than being characters of the text.

    They are characters where every line has all cells without quotes, but read with them a row is
    broken; in a TSV, by convention without quotes, also where a row would be of several lines.
    """
    if columns == 1:
        return True
    whole, lines = True, 0

    def whole_lines() -> Iterator[str]:
        nonlocal whole, lines
        for line in read_lines(path, quiet=True):
            if line.strip("\r\n"):
                lines += 1
                whole = line.count(delimiter) == columns - 1
                if not whole:
                    return
            yield line

    source = whole_lines()
    try:
        rows = sum(1 for cells in csv.reader(source, delimiter=delimiter, strict=True) if cells)
    except csv.Error:
        rows = 0
        for _ in source:
            pass
    return not whole or rows == lines or (rows > 0 and delimiter != "\t")


def _reason(error: csv.Error) -> str:
    if "expected after" in str(error) or "unexpected end" in str(error):
        return "a quotation mark is not closed, or within quotes not doubled"
    return str(error)


def _holds_rows(cells: list[str], delimiter: str) -> bool:
    """Whether a cell of several lines seems to have swallowed rows: each has all the delimiters."""
    inside = [line for cell in cells if "\n" in cell for line in cell.splitlines()[1:]]
    return bool(inside) and all(line.count(delimiter) == len(cells) - 1 for line in inside)


def _first_line(
    path: Path, lines: Iterator[str], columns: Iterable[str]
) -> tuple[int, str, list[str]]:
    """As `header_of`, of a file that must have a header."""
    header = header_of(lines, columns)
    if not header[2]:
        raise UserError(f"{path} is empty", "give a CSV, TSV or JSONL file with a header")
    return header


def header_of(lines: Iterable[str], columns: Iterable[str] = ()) -> tuple[int, str, list[str]]:
    """How many lines are before the header, the delimiter, and the columns.

    It is the first line that holds more than delimiters or Excel's `sep=;`. The delimiter is the
    one that gives most of the wanted columns, then most columns.
    """
    csv.field_size_limit(LONGEST)
    headers = ((n, line) for n, line in enumerate(lines) if not _NO_HEADER.fullmatch(line))
    before, line = next(headers, (0, ""))
    found = {}
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])
        found[delimiter] = [name.strip() for name in cells]
    best = max(found, key=lambda d: (len(set(columns) & set(found[d])), len(found[d])))
    return before, best, found[best]


def distinct(names: Iterable[str]) -> list[str]:
    """Names of columns, of which equal ones are numbered: none must hide another."""
    result: list[str] = []
    for name in names:
        numbered = (f"{name}.{number}" for number in itertools.count(2))
        result.append(next(n for n in itertools.chain([name], numbered) if n not in result))
    return result


def _check_columns(where: str, names: Iterable[str], columns: Iterable[str], keys: str) -> None:
    names = list(names)
    for column in columns:
        if names.count(column) != 1:
            raise UserError(
                f"{where}: {'two columns' if column in names else 'no column'} {column!r}",
                f"the columns are: {', '.join(names)}; set {keys}",
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
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
