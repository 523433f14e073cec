"""Dialogues of files in any format, streamed in bounded memory: JSON, JSONL, tables, Parquet, text.

A record is a line of a JSONL file, an item of a JSON list, or a row: `containers` tells which,
`json_files` and `tables` read them, and `dialogue_records` makes a dialogue of each. Of a record
that says how good replies are (`preference_records`) it is the one with the best reply, or none. A
text is our own format: one utterance a line, a blank line between dialogues.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallgpt.data.containers import recognise
from smallgpt.data.dialogue_records import (
    EXPECTED,
    FIX,
    NAME_COLUMNS,
    BadRecordError,
    Columns,
    listed,
    missing_key,
)
from smallgpt.data.json_files import Broken, json_items, json_lines, json_value
from smallgpt.data.preference_records import are_known, to_be_learnt
from smallgpt.data.tables import parquet_rows, read_rows
from smallgpt.data.text import BLANK, LONGEST, read_text
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

_TEXT_CHUNK = 1 << 20  # characters
_FIRST_RECORDS = 1000


def read_dialogues(
    path: Path,
    kind: str | None = None,
    rejected: Broken | None = None,
    columns: Columns | None = None,
) -> Iterator[list[str]]:
    """Stream a file's dialogues, each a list of utterances of one line.

    Args:
        kind: of KINDS; by default recognised for each record.
        rejected: called for records that are not dialogues, which are then left out.
        columns: read the pairs in these columns, or under these keys.

    Raises:
        UserError: the file cannot be read, its columns are unknown, or without `rejected`, a
            record is no dialogue.
    """
    container = recognise(path, kind, columns)
    if container == "text":
        yield from _dialogues_of_text(path)
        return

    def reject(number: int, reason: str, advice: str = FIX, record: Any = None) -> None:
        if rejected is None:
            unit = unit_of(container)
            records = _records(path, container, lambda *_: None, columns)
            good = _first_good(records, kind, columns)
            if columns is None and (missing := missing_key(record, good)):
                reason, advice = f"no key {missing!r}, which other records have", FIX
            elif advice == FIX and good is None:  # without such records there would be none
                advice = EXPECTED
            raise UserError(f"{path}, {unit} {number:,}: {reason}", advice)
        rejected(number, reason)

    remarks: Counter[str] = Counter()
    for number, record in _records(path, container, reject, columns):
        try:
            dialogue, remark = to_be_learnt(record, kind, columns)
        except BadRecordError as error:
            reject(number, str(error), error.advice, record)
            continue
        remarks[remark] += 1
        if dialogue:
            yield dialogue
    for remark in filter(None, remarks):
        note(f"{path}: {counted(remarks[remark], 'record')} {remark}")


def text_chunks(path: Path) -> Iterator[tuple[str, str]]:
    """Stream a file of any format as `data.text.read_text` streams a text, for `open_corpus`."""
    if recognise(path) == "text":
        yield from read_text(path)
        return
    text = ""
    for number, dialogue in enumerate(read_dialogues(path)):
        if len(text) > _TEXT_CHUNK:
            yield text, text
            text = ""
        text += ("\n\n" if number else "") + "\n".join(dialogue)
    yield text, text


def _dialogues_of_text(path: Path) -> Iterator[list[str]]:
    rest = ""
    for _, clean in read_text(path):
        *whole, rest = (rest + clean).split("\n\n")
        for dialogue in whole:
            yield dialogue.split("\n")
        if len(rest) > LONGEST:
            problem = f"a dialogue is longer than {LONGEST:,} characters"
            raise UserError(f"{path}: {problem}", "separate dialogues by blank lines")
    if rest:
        yield rest.split("\n")


def unit_of(container: str) -> str:
    """What the numbers of a file's records count."""
    return "line" if container in ("lines", "table") else "record"


def read_records(path: Path, container: str, broken: Broken) -> Iterator[tuple[int, Any]]:
    """Stream the records of a file that is no text, with their numbers; container as recognised."""
    if container == "lines":
        return json_lines(path, broken)
    if container == "list":
        return json_items(path)
    if container == "one":
        return iter([(1, json_value(path))])
    if container == "parquet":
        return parquet_rows(path)
    rows = read_rows(path, broken=broken)
    filled = (row for row in rows if any(cell.strip(BLANK) for cell in row.cells.values()))
    return ((row.number, row.cells) for row in filled)


def _records(
    path: Path, container: str, broken: Broken, columns: Columns | None
) -> Iterator[tuple[int, Any]]:
    """The same; a UserError says that the columns of a table are not those of dialogues."""
    records = read_records(path, container, broken)
    if container == "table" and (first := next(records, None)):
        _check_columns(path, list(first[1]), columns)
        return itertools.chain([first], records)
    return records


def _first_good(
    records: Iterator[tuple[int, Any]], kind: str | None, columns: Columns | None
) -> Any:
    """The first record that is a dialogue; None where there is none near the beginning."""
    with suppress(UserError):  # a list may be broken further down
        for _, record in itertools.islice(records, _FIRST_RECORDS):
            with suppress(BadRecordError):
                to_be_learnt(record, kind, columns)
                return record
    return None


def _check_columns(path: Path, names: list[str], columns: Columns | None) -> None:
    missing = [name for name in columns or () if name not in names]
    problem = f"no column {missing[0]!r}" if missing else "no columns such as prompt and response"
    if missing or not (columns or are_known(names)):
        raise UserError(
            f"{path}: {problem}; its columns are: {listed(names)}",
            f"{NAME_COLUMNS}; if it has no header, put one above it: prompt,response; "
            "if it is not a table, rename it to .txt",
        )
