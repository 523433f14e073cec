"""A record of another program -> a dialogue, a list of utterances of one line.

    openai     {"messages": [{"role": "user", "content": …}, …]}
    sharegpt   {"conversations": [{"from": "human", "value": …}, …]}
    kdconv     {"messages": [{"message": …}, …]}
    lccc       ["你 好", "嗯 嗯"]: spaces between characters
    alpaca     {"instruction": …, "input": …, "output": …}
    table      columns such as prompt and response, or objects with such keys

The first three are one: messages, under any of `LISTS` or alone, whose keys are any of `ROLES` and
`CONTENTS`; roles may also be the names of two people. So are alpaca and table: a pair, under any of
`PROMPTS` and of `REPLIES`, behind the turns of a `history`.

What is said in a pair is a text, messages, or a text with the marks of Anthropic's hh-rlhf,
"\\n\\nHuman: … \\n\\nAssistant: …". Records that say how good replies are: `preference_records`.

A newline within an utterance becomes a space; what one speaker says in several messages is joined
by spaces; what the system says is left out.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from smallgpt.data.chats.exports import how_to_convert
from smallgpt.data.chats.tables import fields
from smallgpt.data.text import BLANK
from smallgpt.tokenizer.characters import as_utterance

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
# A space beside a character that is not ASCII stands between characters, not between words.
_BETWEEN_CHARACTERS = re.compile(r"(?<=[^\x00-\x7f]) +| +(?=[^\x00-\x7f])")
_MARK = re.compile(r"\n\n(Human|Assistant):")
_MOST_NAMES = 20  # that a message lists
NAME_COLUMNS = (
    "name those of prompt and reply: python -m smallgpt data convert … --columns PROMPT RESPONSE"
)
FIX = "fix it, or leave such records out: python -m smallgpt data convert --skip-bad …"
EXPECTED = (
    'a record is a dialogue: {"prompt": …, "response": …}, {"messages": [{"role": …, "content": …}'
    ', …]} or ["…", "…"]; texts with one utterance a line end with .txt: see docs/data.md'
)


class BadRecordError(Exception):
    """A record that is not a dialogue of its kind: why, and what to do."""

    def __init__(self, reason: str, advice: str = FIX) -> None:
        super().__init__(reason)
        self.advice = advice


def utterances(record: Any, kind: str | None, columns: Columns | None) -> list[str]:
    """The utterances of a record; `kind` of KINDS, or recognised; `columns` as in a pair.

    Raises:
        BadRecordError: it is no dialogue.
    """
    read = _READERS[kind] if kind else _reader_of(record)
    return checked(read(record) if columns is None else _pair(record, columns))


def checked(said: list[str]) -> list[str]:
    """The utterances of a dialogue, each as one line.

    Raises:
        BadRecordError: they are fewer than two, or one is empty.
    """
    said = [as_utterance(text.replace("\0", " ")) for text in said]
    if len(said) < 2:
        raise BadRecordError("fewer than two utterances")
    if not all(text.strip(BLANK) for text in said):
        raise BadRecordError("an empty utterance")
    return said


def is_message(item: Any) -> bool:
    """Whether it is one turn of a dialogue."""
    return bool(_first(item, ROLES) and _first(item, CONTENTS))


def known_columns(names: Iterable[str]) -> Columns | None:
    """The columns of prompt and reply among others, where their names are known ones."""
    lower = _in_any_case(names)
    prompt, reply = (_first(lower, known) for known in (PROMPTS, REPLIES))
    return (lower[prompt], lower[reply]) if prompt and reply else None


def known_key(names: Iterable[str], known: Iterable[str]) -> str | None:
    """The name, in any case, that is the first of the known ones; None where there is none."""
    lower = _in_any_case(names)
    first = _first(lower, known)
    return lower[first] if first else None


def _in_any_case(names: Iterable[str]) -> dict[str, str]:
    return {name.strip().lower(): name for name in names}


def missing_key(record: Any, good: Any) -> str | None:
    """The first key without which a record, unlike a good one, is no dialogue; None without one."""
    if not isinstance(record, dict) or not isinstance(good, dict):
        return None
    needed = known_columns(map(str, good)) or [key for key in LISTS if key in good]
    return next((key for key in needed if key not in record), None)


def listed(names: Iterable[Any]) -> str:
    """Names of columns or keys, for a message to people."""
    names = [str(name) for name in names]
    return ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")


def said_before(record: dict[str, Any]) -> list[str]:
    """What was said before replies that are given beside it: messages, or a prompt.

    Raises:
        BadRecordError: there is nothing such, or it ends with a reply.
    """
    messages, prompt = _list_of(record), known_key(record, PROMPTS)
    before = messages or (record[prompt] if prompt else None)
    if is_assistants(before, -1):
        raise BadRecordError("what was said before the replies ends with one of the assistant's")
    if messages:
        return _turns(messages)
    if prompt:
        return _prompt(record, prompt)
    raise BadRecordError(f"no prompt; its keys are: {listed(record)}")


def is_assistants(messages: Any, at: int) -> bool:
    """Whether these are messages, and the one at a place is the assistant's."""
    message = messages[at] if isinstance(messages, list) and messages else None
    return is_message(message) and _speech(message)[0] == _SPEAKERS["assistant"]


def turns_of(value: Any, name: str) -> list[str]:
    """The turns of a prompt or a reply, under the key `name`: a text, a message, or several."""
    if isinstance(value, str) and _MARK.match(value):
        _, *parts = _MARK.split(value)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        value = [{"role": role, "content": text} for role, text in pairs]
        value = value if value[-1]["content"].strip() else value[:-1]  # here the reply begins
    if isinstance(value, list) and value and is_message(value[0]):
        return _turns(value)
    if is_message(value):
        return _turns([value])
    if value is None or value != value:  # NaN, as gaps are often saved
        return [""]
    return [str(value) if isinstance(value, (int, float)) else _text({name: value}, name)]


def _first(record: Any, keys: Iterable[str]) -> str | None:
    """The first of the keys that an object has."""
    return next((key for key in keys if key in record), None) if isinstance(record, dict) else None


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
        raise BadRecordError(f"no text under {key!r}")
    return value


def _messages(record: Any) -> list[str]:
    messages = _list_of(record)
    if messages is None:
        raise BadRecordError(f"no list under any of {', '.join(LISTS)}")
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
            raise BadRecordError("more than two speakers")
    return said


def _speech(message: Any) -> tuple[str | int | None, list[str]]:
    """Who speaks in a message, None where nobody is named, and what they say.

    That is nothing where it is the system, and two utterances in Firefly's {"human": …,
    "assistant": …}.
    """
    if isinstance(message, str):
        return None, [message]
    if not isinstance(message, dict):
        raise BadRecordError("a message that is no object")
    role, content = _first(message, ROLES), _first(message, CONTENTS)
    name = _text(message, role) if role else ""
    if name.lower() in _SILENT:
        return None, []
    if name.lower() in _NO_SPEAKERS:
        raise BadRecordError(f"role {name!r} is not a speaker")
    speaker = _SPEAKERS.get(name.lower(), name) if role else None
    if isinstance(speaker, str) and fields(message)["time"]:
        problem = "messages with names and times: an export of a chat"
        raise BadRecordError(problem, how_to_convert())
    if content:
        return speaker, [_text(message, content)]
    if columns := known_columns(message):
        return None, [_text(message, key) for key in columns]
    raise BadRecordError(f"no text under {CONTENTS[0]!r}; its keys are: {listed(message)}")


def _sentences(record: Any) -> list[str]:
    if not isinstance(record, list) or not all(isinstance(text, str) for text in record):
        raise BadRecordError("not a list of sentences")
    return [_BETWEEN_CHARACTERS.sub("", text) for text in record]


def _pair(record: Any, columns: Columns | None = None) -> list[str]:
    if not isinstance(record, dict):
        what = "a text" if isinstance(record, str) else "a value"
        raise BadRecordError(f"{what} alone, not a dialogue")
    columns = columns or known_columns(map(str, record))
    if columns is None:
        problem = f"not a dialogue of a known format; its keys are: {listed(record)}"
        raise BadRecordError(problem, f"{NAME_COLUMNS}; formats: {', '.join(KINDS)}")
    return [*_prompt(record, columns[0]), *_part(record, columns[1])]


def _prompt(record: dict[str, Any], name: str) -> list[str]:
    """What was said before the reply of a pair: a history, the prompt, and its input."""
    prompt = _part(record, name)
    more = _first(record, ("input", "context")) if name == "instruction" else None
    if more and prompt and record[more]:
        prompt = [*prompt[:-1], f"{prompt[-1]} {_text(record, more)}"]
    return [*_history(record.get("history")), *prompt]


def _part(record: dict[str, Any], name: str) -> list[str]:
    return turns_of(record[name], name) if name in record else [_text(record, name)]


def _history(value: Any) -> list[str]:
    """The turns before a pair: a list of pairs, of texts or of messages; in a table as its text."""
    if isinstance(value, str):
        value = _literal(value) if value.strip() else []
    if not isinstance(value, list) and value is not None:
        raise BadRecordError("the history is not a list")
    turns, said = value or [], list[str]()
    for turn in turns:
        if is_message(turn):
            return _turns(turns)
        if isinstance(turn, dict):
            raise BadRecordError(f"the history has no known keys; its keys are: {listed(turn)}")
        texts = turn if isinstance(turn, list) else [turn]
        said += ["" if text is None else str(text) for text in texts]
    if len(said) % 2:
        raise BadRecordError("the history has an odd number of utterances")
    return said


def _literal(text: str) -> Any:
    """The value that a cell shows, as JSON or as Python writes it; else the cell."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


_READERS: dict[str, Callable[[Any], list[str]]] = {
    **dict.fromkeys(("openai", "sharegpt", "kdconv"), _messages),
    "lccc": _sentences,
    **dict.fromkeys(("alpaca", "table"), _pair),
}
KINDS = ("text", *_READERS)
