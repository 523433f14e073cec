"""Dialogues of other programs: JSON, JSONL, tables and Parquet, streamed in bounded memory.

    openai     {"messages": [{"role": "user", "content": …}, …]}
    sharegpt   {"conversations": [{"from": "human", "value": …}, …]}
    kdconv     {"messages": [{"message": …}, …]}
    lccc       ["你 好", "嗯 嗯"]: spaces between characters
    alpaca     {"instruction": …, "input": …, "output": …}
    table      columns such as prompt and response; CSV, TSV, or objects with such keys
    text       our own: one utterance a line, a blank line between dialogues

A record is a line of a JSONL file, an item of a JSON list, or a row. A newline within an utterance
becomes a space; what one speaker says in several messages is joined by spaces; what the system
says is left out.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smallgpt.data.tables import (
    LONGEST,
    Broken,
    header_of,
    is_jsonl,
    json_items,
    json_lines,
    parquet_rows,
    read_rows,
)
from smallgpt.data.text import open_decompressed, read_text
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import UserError

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
_BEGINNING = 1 << 20  # bytes that are looked at
_TEXT_CHUNK = 1 << 20  # characters
# A space beside a character that is not ASCII stands between characters, not between words.
_BETWEEN_CHARACTERS = re.compile(r"(?<=[^\x00-\x7f]) +| +(?=[^\x00-\x7f])")


class _BadRecordError(Exception):
    """A record that is not a dialogue of its kind; the message says why."""


def read_dialogues(
    path: Path, kind: str | None = None, rejected: Broken | None = None
) -> Iterator[list[str]]:
    """Stream a file's dialogues, each a list of utterances of one line.

    Args:
        kind: of KINDS; by default recognised for each record.
        rejected: called for records that are not dialogues, which are then left out.

    Raises:
        UserError: the file cannot be read, or without `rejected`, a record is no dialogue.
    """
    container = recognise(path, kind)
    if container == "text":
        yield from _dialogues_of_text(path)
        return

    def reject(number: int, reason: str) -> None:
        if rejected is None:
            unit = "line" if container in ("lines", "table") else "record"
            raise UserError(
                f"{path}, {unit} {number:,}: {reason}",
                "fix it, or leave such records out: python -m smallgpt data convert --skip-bad …",
            )
        rejected(number, reason)

    for number, record in _records(path, container, reject):
        try:
            yield _utterances(record, kind or ("table" if container == "table" else None))
        except _BadRecordError as error:
            reject(number, str(error))


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


def recognise(path: Path, kind: str | None = None) -> str:
    """Find out from its beginning what a file is: text, list or lines (JSON), table, or parquet.

    A UserError says that its records cannot be of the given kind.
    """
    if kind not in (None, *KINDS):
        raise UserError(f"--format: {kind!r} is unknown", f"formats: {', '.join(KINDS)}")
    with open_decompressed(path) as file:
        data = file.read(_BEGINNING)
    container = _container(path, data) if kind != "text" else "text"
    if container == "text" and kind not in (None, "text"):
        raise UserError(f"{path} does not look like {kind}", "give another --format, or none")
    return container


def _container(path: Path, data: bytes) -> str:
    if data.startswith(PARQUET_MAGIC):
        return "parquet"
    text = data.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    line = text.partition("\n")[0]
    item = _json(text[1:]) if text.startswith("[") else None
    if isinstance(item, (dict, list)):
        return "list"
    if isinstance(_json(line, whole=True), list if isinstance(item, str) else dict):
        return "lines"
    if is_jsonl(path):  # a broken one
        return "list" if text.startswith("[") else "lines"
    return "table" if _columns(header_of(path, line)) else "text"


def _json(text: str, whole: bool = False) -> Any:
    """The JSON value that a text begins with, or with `whole` is; None where there is none."""
    try:
        return json.loads(text) if whole else json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _kind_of(record: Any) -> str:
    if isinstance(record, list):
        return "lccc"
    if not isinstance(record, dict):
        return "openai"
    if isinstance(messages := record.get("messages"), list):
        first = messages[0] if messages else {}
        return "kdconv" if isinstance(first, dict) and "message" in first else "openai"
    if isinstance(record.get("conversations"), list):
        return "sharegpt"
    return "alpaca" if "instruction" in record and "output" in record else "table"


def _columns(names: list[str]) -> tuple[str, str] | None:
    lower = {name.strip().lower(): name for name in names}
    for said, reply in COLUMNS:
        if said in lower and reply in lower:
            return lower[said], lower[reply]
    return None


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


def _records(path: Path, container: str, broken: Broken) -> Iterator[tuple[int, Any]]:
    if container == "lines":
        return json_lines(path, broken)
    if container == "list":
        return json_items(path)
    return read_rows(path) if container == "table" else parquet_rows(path)


def _utterances(record: Any, kind: str | None) -> list[str]:
    said = [as_utterance(text) for text in _READERS[kind or _kind_of(record)](record)]
    if len(said) < 2:
        raise _BadRecordError("fewer than two utterances")
    if not all(said):
        raise _BadRecordError("an empty utterance")
    return said


def _value(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _get(record: Any, key: str) -> str:
    value = _value(record, key)
    if isinstance(value, list):  # OpenAI's parts of a message
        value = "".join(_get(part, "text") for part in value)
    if not isinstance(value, str):
        raise _BadRecordError(f"no text under {key!r}")
    return value


def _list(record: Any, key: str) -> list[Any]:
    value = _value(record, key)
    if not isinstance(value, list):
        raise _BadRecordError(f"no list under {key!r}")
    return value


def _messages(key: str, role: str, content: str, record: Any) -> list[str]:
    said: list[str] = []
    last = None
    for message in _list(record, key):
        name = _get(message, role).lower()
        if name in _SILENT:
            continue
        if name not in _SPEAKERS:
            raise _BadRecordError(f"{role} {name!r} is not a speaker")
        text = _get(message, content)
        if _SPEAKERS[name] == last:
            said[-1] = f"{as_utterance(said[-1])} {text}"
        else:
            said.append(text)
        last = _SPEAKERS[name]
    return said


def _sentences(record: Any) -> list[str]:
    if not isinstance(record, list) or not all(isinstance(text, str) for text in record):
        raise _BadRecordError("not a list of sentences")
    return record


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
        raise _BadRecordError("no columns such as prompt and response")
    return [str(record[name]) if record[name] is not None else "" for name in columns]


_READERS: dict[str, Callable[[Any], list[str]]] = {
    "openai": functools.partial(_messages, "messages", "role", "content"),
    "sharegpt": functools.partial(_messages, "conversations", "from", "value"),
    "kdconv": lambda record: [_get(m, "message") for m in _list(record, "messages")],
    "lccc": lambda record: [_BETWEEN_CHARACTERS.sub("", text) for text in _sentences(record)],
    "alpaca": _alpaca,
    "table": _cells,
}
KINDS = ("text", *_READERS)
