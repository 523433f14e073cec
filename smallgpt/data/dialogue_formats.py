"""Dialogues of other programs: JSON, JSONL, tables and Parquet, streamed in bounded memory.

    openai     {"messages": [{"role": "user", "content": …}, …]}
    sharegpt   {"conversations": [{"from": "human", "value": …}, …]}
    kdconv     {"messages": [{"message": …}, …]}
    lccc       ["你 好", "嗯 嗯"]: spaces between characters
    alpaca     {"instruction": …, "input": …, "output": …}
    table      columns such as prompt and response; CSV, TSV (with a known header under any name),
               or objects with such keys
    text       our own: one utterance a line, a blank line between dialogues

The first three are one: messages, under any of `LISTS` or alone, whose keys are any of `ROLES` and
`CONTENTS`; roles may also be the names of two people. So are alpaca and table: a pair, under any of
`PROMPTS` and of `REPLIES`, behind the turns of a `history`.

A record is a line of a JSONL file, an item of a JSON list, or a row. A newline within an utterance
becomes a space; what one speaker says in several messages is joined by spaces; what the system
says is left out, and so is a pair whose `label` is false or 0: a reply that is not to be learnt.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallgpt.data.tables import (
    LONGEST,
    Broken,
    is_jsonl,
    is_lines,
    is_table,
    json_items,
    json_lines,
    json_value,
    parquet_rows,
    read_rows,
)
from smallgpt.data.text import BLANK, encoding_of, open_decompressed, read_text
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

PARQUET_MAGIC = b"PAR1"
Columns = tuple[str, str]
"""The names of the prompt's and the reply's column."""
PROMPTS = (
    *("prompt", "question", "query", "instruction", "input", "ask", "q", "user", "human"),
    *("问题", "提问", "问句", "问", "用户"),
)
REPLIES = (
    *("response", "completion", "output", "answer", "reply", "target", "a", "assistant", "bot"),
    *("回答", "答案", "回复", "答句", "答", "助手"),
)
"""Columns of what is said, and of the reply, in any case; the first that there is counts."""
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
ROLES, CONTENTS = ("role", "from", "sender", "speaker"), ("content", "value", "text", "message")
_SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter", "instruction"), 0),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), 1),
}
_SILENT = ("system", "developer", "系统")
_NO_SPEAKERS = ("tool", "function", "observation", "function_call", "ipython", "environment")
_TIMES = ("time", "date", "datetime", "timestamp", "时间", "日期")
_BEGINNING = 1 << 20  # bytes that are looked at
_TEXT_CHUNK = 1 << 20  # characters
# A space beside a character that is not ASCII stands between characters, not between words.
_BETWEEN_CHARACTERS = re.compile(r"(?<=[^\x00-\x7f]) +| +(?=[^\x00-\x7f])")
_MOST_NAMES = 20  # that a message lists
_NAME_COLUMNS = (
    "name those of prompt and reply: python -m smallgpt data convert … --columns PROMPT RESPONSE"
)
_EXPORT = "convert it first: python -m smallgpt data convert … --me NAME --output train.txt"
_FIX = "fix it, or leave such records out: python -m smallgpt data convert --skip-bad …"


class _BadRecordError(Exception):
    """A record that is not a dialogue of its kind: why, and what to do."""

    def __init__(self, reason: str, advice: str = _FIX) -> None:
        super().__init__(reason)
        self.advice = advice


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

    def reject(number: int, reason: str, advice: str = _FIX) -> None:
        if rejected is None:
            unit = "line" if container in ("lines", "table") else "record"
            raise UserError(f"{path}, {unit} {number:,}: {reason}", advice)
        rejected(number, reason)

    left_out = 0
    for number, record in _records(path, container, reject, columns):
        try:
            if _is_not_to_be_learnt(record, columns):
                left_out += 1
            else:
                yield _utterances(record, kind, columns)
        except _BadRecordError as error:
            reject(number, str(error), error.advice)
    if left_out:
        note(f"{path}: {counted(left_out, 'record')} left out, whose label is false or 0")


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


def recognise(path: Path, kind: str | None = None, columns: Columns | None = None) -> str:
    """Find out from its beginning what a file is: text, list, lines or one (JSON), table, parquet.

    A UserError says that its records cannot be of the given kind.
    """
    if kind not in (None, *KINDS):
        raise UserError(f"--format: {kind!r} is unknown", f"formats: {', '.join(KINDS)}")
    if columns and kind not in (None, "table"):
        raise UserError(f"--columns does not go with --format {kind}", "give one of them")
    if kind == "text":
        return "text"
    with open_decompressed(path) as file:
        data = file.read(_BEGINNING)
    if data.startswith(PARQUET_MAGIC):
        return "parquet"
    text = data.decode(encoding_of(path), "replace")
    container = _container(path, text, kind)
    if container == "text" and columns:
        return "table"
    if container == "text" and kind:
        raise UserError(f"{path} does not look like {kind}", "give another --format, or none")
    if container == "text" and _has_columns(text, 5):
        note(
            f"{path}: read as a text, though its lines look like rows: to read prompts and replies "
            "from columns, put a header above them, such as prompt and response with a tab between"
        )
    return container


def _container(path: Path, text: str, kind: str | None) -> str:
    text = text.lstrip(BLANK)
    line, _, more = text.partition("\n")
    whole_line = isinstance(_json(line, whole=True), (list, dict))
    if text.startswith("["):
        item = _json(text[1:])
        if isinstance(item, str) and (whole_line or is_jsonl(path)):
            # Lines of sentences; or one list alone, which may as well be one of articles.
            if whole_line and (more.strip() or is_lines(path)):
                return "lines"
            if kind == "lccc":
                return "one"
            raise UserError(
                f"{path} is one list of texts: is it one dialogue, or are they articles?",
                "one dialogue: convert it with --format lccc; dialogues: make each a list in the "
                "list; articles: write them as a text with a blank line between two",
            )
        if _is_message(item):  # one dialogue, without a record around it
            return "lines" if whole_line else "one"
        if isinstance(item, (dict, list)) or is_jsonl(path):
            return "list"
    elif whole_line and text.startswith("{"):
        return "lines"
    elif is_jsonl(path):
        return "lines" if is_lines(path) or not isinstance(_json(text), dict) else "one"
    has_header = _has_columns(text, 2) and known_columns(line.split("\t"))
    return "table" if is_table(path) or has_header else "text"


def _has_columns(text: str, lines: int) -> bool:
    """Whether there are so many first lines, with tabs, the same number in each."""
    tabs = [line.count("\t") for line in text.split("\n", lines)[:lines]]
    return len(tabs) == lines and tabs[0] > 0 and len(set(tabs)) == 1


def _json(text: str, whole: bool = False) -> Any:
    """The JSON value that a text begins with, or with `whole` is; None where there is none."""
    try:
        return json.loads(text) if whole else json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _first(record: Any, keys: Iterable[str]) -> str | None:
    """The first of the keys that an object has."""
    return next((key for key in keys if key in record), None) if isinstance(record, dict) else None


def _is_message(item: Any) -> bool:
    return bool(_first(item, ROLES) and _first(item, CONTENTS))


def known_columns(names: Iterable[str]) -> Columns | None:
    """The columns of prompt and reply among others, where their names are known ones."""
    lower = {name.strip().lower(): name for name in names}
    prompt, reply = (_first(lower, known) for known in (PROMPTS, REPLIES))
    return (lower[prompt], lower[reply]) if prompt and reply else None


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


def _records(
    path: Path, container: str, broken: Broken, columns: Columns | None
) -> Iterator[tuple[int, Any]]:
    if container == "lines":
        return json_lines(path, broken)
    if container == "list":
        return json_items(path)
    if container == "one":
        return iter([(1, json_value(path))])
    return parquet_rows(path) if container == "parquet" else _rows(path, broken, columns)


def _rows(path: Path, broken: Broken, columns: Columns | None) -> Iterator[tuple[int, Any]]:
    checked = False
    for row in read_rows(path, (), broken):
        if not checked:
            _check_columns(path, list(row.cells), columns)
            checked = True
        if any(cell.strip(BLANK) for cell in row.cells.values()):
            yield row.number, row.cells


def _check_columns(path: Path, names: list[str], columns: Columns | None) -> None:
    missing = [name for name in columns or () if name not in names]
    problem = f"no column {missing[0]!r}" if missing else "no columns such as prompt and response"
    if missing or not (columns or known_columns(names)):
        raise UserError(
            f"{path}: {problem}; its columns are: {_listed(names)}",
            f"{_NAME_COLUMNS}; has the table no header, put one above it: prompt,response; "
            "is it no table, rename it to .txt",
        )


def _is_not_to_be_learnt(record: Any, columns: Columns | None) -> bool:
    """Whether a reply is one that people found bad, as the pairs of KTO say."""
    label = _first(record, ("label", "kto_tag"))
    if label is None or label in (columns or ()):
        return False
    return str(record[label]).strip().lower() in ("false", "0")


def _utterances(record: Any, kind: str | None, columns: Columns | None) -> list[str]:
    read = _READERS[kind] if kind else _reader_of(record)
    said = read(record) if columns is None else _pair(record, columns)
    said = [as_utterance(text.replace("\0", " ")) for text in said]
    if len(said) < 2:
        raise _BadRecordError("fewer than two utterances")
    if not all(text.strip(BLANK) for text in said):
        raise _BadRecordError("an empty utterance")
    return said


def _reader_of(record: Any) -> Callable[[Any], list[str]]:
    if isinstance(record, list):
        return _sentences if record and isinstance(record[0], str) else _messages
    return _messages if _list_of(record) is not None else _pair


def _list_of(record: Any) -> list[Any] | None:
    """The messages of a record: itself, or what is under one of `LISTS`."""
    if isinstance(record, dict):
        record = next((record[key] for key in LISTS if isinstance(record.get(key), list)), None)
    return record if isinstance(record, list) else None


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, list):  # OpenAI's parts of a message
        value = "".join(_text(part, "text") for part in value)
    if not isinstance(value, str):
        raise _BadRecordError(f"no text under {key!r}")
    return value


def _messages(record: Any) -> list[str]:
    messages = _list_of(record)
    if messages is None:
        raise _BadRecordError(f"no list under any of {', '.join(LISTS)}")
    return _turns(messages)


def _turns(messages: list[Any]) -> list[str]:
    """What two speakers say in turn, from messages with roles; without, each message is a turn."""
    said, speakers = list[str](), set[str | int | None]()
    last: str | int | None = None
    for message in messages:
        speaker, texts = _speech(message)
        if not texts:
            continue
        if speaker is not None and speaker == last:
            said[-1] = f"{as_utterance(said[-1])} {texts[0]}"
        else:
            said += texts
        last = speaker
        speakers.add(speaker)
        if len(speakers - {None}) > 2:
            raise _BadRecordError("more than two speakers")
    return said


def _speech(message: Any) -> tuple[str | int | None, list[str]]:
    """Who speaks in a message, None where nobody is named, and what they say.

    That is nothing where it is the system, and two utterances in Firefly's {"human": …,
    "assistant": …}.
    """
    if isinstance(message, str):
        return None, [message]
    if not isinstance(message, dict):
        raise _BadRecordError("a message that is no object")
    role, content = _first(message, ROLES), _first(message, CONTENTS)
    name = _text(message, role) if role else ""
    if name.lower() in _SILENT:
        return None, []
    if name.lower() in _NO_SPEAKERS:
        raise _BadRecordError(f"role {name!r} is not a speaker")
    speaker = _SPEAKERS.get(name.lower(), name) if role else None
    if isinstance(speaker, str) and _first(message, _TIMES):
        raise _BadRecordError("messages with names and times: an export of a chat", _EXPORT)
    if content:
        return speaker, [_text(message, content)]
    if columns := known_columns(message):
        return None, [_text(message, key) for key in columns]
    raise _BadRecordError(f"no text under {CONTENTS[0]!r}; its keys are: {_listed(message)}")


def _sentences(record: Any) -> list[str]:
    if not isinstance(record, list) or not all(isinstance(text, str) for text in record):
        raise _BadRecordError("not a list of sentences")
    return [_BETWEEN_CHARACTERS.sub("", text) for text in record]


def _pair(record: Any, columns: Columns | None = None) -> list[str]:
    if not isinstance(record, dict):
        what = "a text" if isinstance(record, str) else "a value"
        raise _BadRecordError(f"{what} alone, not a dialogue")
    columns = columns or known_columns(map(str, record))
    if columns is None:
        problem = f"not a dialogue of a known format; its keys are: {_listed(record)}"
        raise _BadRecordError(problem, f"{_NAME_COLUMNS}; formats: {', '.join(KINDS)}")
    prompt, reply = (_part(record, name) for name in columns)
    more = _first(record, ("input", "context")) if columns[0] == "instruction" else None
    if more and prompt and record[more]:
        prompt = [*prompt[:-1], f"{prompt[-1]} {_text(record, more)}"]
    return [*_history(record.get("history")), *prompt, *reply]


def _part(record: dict[str, Any], name: str) -> list[str]:
    """The prompt or the reply: a text, or turns of their own."""
    value = record.get(name)
    if isinstance(value, list) and value and _is_message(value[0]):
        return _turns(value)
    if name in record and (value is None or value != value):  # NaN, as gaps are often saved
        return [""]
    return [str(value) if isinstance(value, (int, float)) else _text(record, name)]


def _history(value: Any) -> list[str]:
    """The turns before a pair: a list of pairs, of texts or of messages; in a table as its text."""
    if isinstance(value, str):
        value = _literal(value) if value.strip() else []
    if not isinstance(value, list) and value is not None:
        raise _BadRecordError("the history is not a list")
    turns, said = value or [], list[str]()
    for turn in turns:
        if _is_message(turn):
            return _turns(turns)
        said += (
            [turn] if isinstance(turn, str) else map(str, turn if isinstance(turn, list) else [])
        )
    if len(said) % 2:
        raise _BadRecordError("the history has an odd number of utterances")
    return said


def _literal(text: str) -> Any:
    """The value that a cell shows, as JSON or as Python writes it; else the cell."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


def _listed(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")


_READERS: dict[str, Callable[[Any], list[str]]] = {
    **dict.fromkeys(("openai", "sharegpt", "kdconv"), _messages),
    "lccc": _sentences,
    **dict.fromkeys(("alpaca", "table"), _pair),
}
KINDS = ("text", *_READERS)
