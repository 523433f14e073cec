"""Dialogues of other programs: JSON, JSONL, tables and Parquet, streamed in bounded memory.

    openai     {"messages": [{"role": "user", "content": …}, …]}
    sharegpt   {"conversations": [{"from": "human", "value": …}, …]}
    kdconv     {"messages": [{"message": …}, …]}
    lccc       ["你 好", "嗯 嗯"]: spaces between characters
    alpaca     {"instruction": …, "input": …, "output": …}
    table      columns such as prompt and response; CSV, TSV
    text       our own: one utterance a line, a blank line between dialogues

A record is a line of a JSONL file, an item of a JSON list, or a row. A newline within an utterance
becomes a space; what one speaker says in several messages is joined by spaces; what the system
says is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallgpt.data.tables import (
    LONGEST,
    header_of,
    is_jsonl,
    list_items,
    parquet_rows,
    read_lines,
    read_rows,
)
from smallgpt.data.text import open_decompressed, read_text
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import UserError

KINDS = ("text", "openai", "sharegpt", "kdconv", "lccc", "alpaca", "table")
PARQUET_MAGIC = b"PAR1"
COLUMNS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("ask", "answer"),
    ("问题", "回答"),
    ("问", "答"),
)
"""Of a table: what is said, and the reply."""
_SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter", "instruction"), 0),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), 1),
}
_SILENT = ("system", "developer")
_BEGINNING = 1 << 20
# A space beside a character that is not ASCII stands between characters, not between words.
_BETWEEN_CHARACTERS = re.compile(r"(?<=[^\x00-\x7f]) +| +(?=[^\x00-\x7f])")


class BadRecordError(Exception):
    """A record that is no dialogue; the message says why."""


@dataclass(frozen=True)
class Source:
    """How a file is to be read. container: text, list, lines, table or parquet; kind: of KINDS."""

    container: str
    kind: str


Rejected = Callable[[int, str], None]
"""Called with the number of a bad record (of its line, where it has one) and the reason."""


def recognise(path: Path, kind: str | None = None) -> Source:
    """Look at the beginning of a file.

    Args:
        kind: of the records, where it is known.

    Raises:
        UserError: an unknown kind, or one that the file cannot hold.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--format: {kind!r} is unknown", f"formats: {', '.join(KINDS)}")
    if kind == "text":
        return Source("text", "text")
    with open_decompressed(path) as file:
        beginning = file.read(_BEGINNING)
    if beginning.startswith(PARQUET_MAGIC):
        found = Source("parquet", kind or "table")
    else:
        found = _recognise_text(path, beginning.decode("utf-8", "replace").lstrip("\ufeff"), kind)
    if kind is not None and (found.container == "text" or (kind == "table") != _is_table(found)):
        raise UserError(f"{path} does not look like {kind}", "give another --format, or none")
    return found


def _is_table(source: Source) -> bool:
    return source.container == "table" or (source.container, source.kind) == ("parquet", "table")


def _recognise_text(path: Path, beginning: str, kind: str | None) -> Source:
    text = beginning.lstrip()
    first = _first_item(text[1:]) if text.startswith("[") else None
    if isinstance(first, (dict, list)):
        return Source("list", kind or _kind_of(first) or "openai")
    if isinstance(first, str) and isinstance(_whole(text.partition("\n")[0]), list):
        return Source("lines", kind or "lccc")
    if text.startswith("{"):
        first = _first_item(text)
        if isinstance(first, dict):
            return Source("lines", kind or _kind_of(first) or "openai")
    if is_jsonl(path):  # a broken one
        return Source("list" if text.startswith("[") else "lines", kind or "openai")
    if _columns(header_of(path, beginning)) is not None:
        return Source("table", "table")
    return Source("text", "text")


def _first_item(text: str) -> Any:
    """The JSON value that a text begins with; None where it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except ValueError:
        return None


def _whole(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _kind_of(record: Any) -> str | None:
    if isinstance(record, list):
        return "lccc"
    if not isinstance(record, dict):
        return None
    messages = record.get("messages")
    if isinstance(messages, list):
        first = messages[0] if messages else {}
        return "kdconv" if isinstance(first, dict) and "message" in first else "openai"
    if isinstance(record.get("conversations"), list):
        return "sharegpt"
    return "alpaca" if "instruction" in record and "output" in record else None


def _columns(names: list[str]) -> tuple[str, str] | None:
    lower = {name.strip().lower(): name for name in names}
    for said, reply in COLUMNS:
        if said in lower and reply in lower:
            return lower[said], lower[reply]
    return None


def read_dialogues(
    path: Path, kind: str | None = None, rejected: Rejected | None = None
) -> Iterator[list[str]]:
    """Stream a file's dialogues, each a list of utterances of one line.

    Args:
        kind: of KINDS; by default recognised.
        rejected: told of records that are no dialogue, which are then left out.

    Raises:
        UserError: the file cannot be read, or without `rejected`, a record is no dialogue.
    """
    source = recognise(path, kind)
    if source.container == "text":
        yield from _of_text(path)
        return
    for number, record in _records(path, source, rejected):
        try:
            yield _utterances(record, source.kind)
        except BadRecordError as error:
            _reject(path, source, number, str(error), rejected)


def text_pieces(path: Path) -> Iterator[tuple[str, str]]:
    """What `data.text.read_text` gives, of a file of any kind."""
    if recognise(path).container == "text":
        yield from read_text(path)
        return
    for number, dialogue in enumerate(read_dialogues(path)):
        text = ("\n\n" if number else "") + "\n".join(dialogue)
        yield text, text


def _of_text(path: Path) -> Iterator[list[str]]:
    rest = ""
    for _, clean in read_text(path):
        *whole, rest = (rest + clean).split("\n\n")
        for dialogue in whole:
            yield dialogue.split("\n")
        if len(rest) > LONGEST:
            raise UserError(
                f"{path}: a dialogue is longer than {LONGEST:,} characters",
                "separate dialogues by blank lines",
            )
    if rest:
        yield rest.split("\n")


def _reject(
    path: Path, source: Source, number: int, reason: str, rejected: Rejected | None
) -> None:
    if rejected is not None:
        return rejected(number, reason)
    unit = "line" if source.container in ("lines", "table") else "record"
    raise UserError(
        f"{path}, {unit} {number:,}: {reason}",
        "mend it, or leave such records out: python -m smallgpt data convert --skip-bad …",
    )


def _records(path: Path, source: Source, rejected: Rejected | None) -> Iterator[tuple[int, Any]]:
    if source.container == "lines":
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                _reject(path, source, number, f"not JSON: {error}", rejected)
                continue
            yield number, record
    elif source.container == "list":
        yield from list_items(path)
    elif source.container == "table":
        yield from ((row.number, row.cells) for row in read_rows(path))
    else:
        yield from enumerate(parquet_rows(path), start=1)


def _utterances(record: Any, kind: str) -> list[str]:
    """The utterances of a record.

    Raises:
        BadRecordError: it is not of this kind, has fewer than two, or an empty one.
    """
    if kind == "table" and isinstance(record, dict) and (other := _kind_of(record)):
        kind = other  # rows of a Parquet file can be records of any kind
    readers = {
        "openai": lambda: _messages(record, "messages", "role", "content"),
        "sharegpt": lambda: _messages(record, "conversations", "from", "value"),
        "kdconv": lambda: [_get(m, "message") for m in _list(record, "messages")],
        "lccc": lambda: [_without_spaces(text) for text in _sentences(record)],
        "alpaca": lambda: _alpaca(record),
        "table": lambda: _cells(record),
    }
    said = [as_utterance(text) for text in readers[kind]()]
    if len(said) < 2:
        raise BadRecordError("fewer than two utterances")
    if not all(said):
        raise BadRecordError("an empty utterance")
    return said


def _get(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, list):  # OpenAI's parts of a message
        value = "".join(_get(part, "text") for part in value)
    if not isinstance(value, str):
        raise BadRecordError(f"no text under {key!r}")
    return value


def _list(record: Any, key: str) -> list[Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list):
        raise BadRecordError(f"no list under {key!r}")
    return value


def _messages(record: Any, key: str, role: str, content: str) -> list[str]:
    said: list[str] = []
    last = None
    for message in _list(record, key):
        name = _get(message, role).lower()
        if name in _SILENT:
            continue
        if name not in _SPEAKERS:
            raise BadRecordError(f"{role} {name!r} is no speaker")
        text = _get(message, content)
        if _SPEAKERS[name] == last:
            said[-1] = f"{as_utterance(said[-1])} {text}"
        else:
            said.append(text)
        last = _SPEAKERS[name]
    return said


def _sentences(record: Any) -> list[str]:
    if not isinstance(record, list) or not all(isinstance(text, str) for text in record):
        raise BadRecordError("not a list of sentences")
    return record


def _without_spaces(text: str) -> str:
    return _BETWEEN_CHARACTERS.sub("", text)


def _alpaca(record: Any) -> list[str]:
    said = []
    history = record.get("history") or [] if isinstance(record, dict) else []
    for turn in history if isinstance(history, list) else []:
        said += _sentences(turn)
    question, more = _get(record, "instruction"), record.get("input") or ""
    return [*said, f"{question} {more}", _get(record, "output")]


def _cells(record: Any) -> list[str]:
    columns = _columns([str(name) for name in record])
    if columns is None:
        raise BadRecordError("no columns such as prompt and response")
    return [str(record[name]) if record[name] is not None else "" for name in columns]
