"""What a line typed on a terminal can be besides a message: `/retry`, `/set`, `/save` …"""

import json
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unicodedata import normalize

from smallgpt.chat.chatbot import ROLES, Chatbot
from smallgpt.chat.words import Words
from smallgpt.tokenizer.characters import is_text
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import named_path

LARGEST_CONVERSATION = 10_000_000
"""Bytes of its file."""
RETRIES = 5
"""How often `/retry` draws at most until the reply is another."""
_LEAVE = ("exit", "quit", "退出")


def leaves(line: str) -> bool:
    """Whether a line ends the chat."""
    return line.lower() in _LEAVE or _parts(line)[0] in ("/bye", *(f"/{word}" for word in _LEAVE))


def is_command(line: str) -> bool:
    """Whether a line is no message."""
    return _parts(line)[0].startswith("/") or line == "flush"


def run(line: str, conversation: Chatbot, words: Words) -> Generator[str, None, None] | None:
    """Carry out a command, and say what it did, or why it cannot be done.

    Returns:
        chunks of a reply that is to be shown, if there is one.
    """
    name, given = _parts(line)
    match name:
        case "/help" | "/帮助":
            note(words.help)
        case "/flush" | "flush":
            conversation.flush()
            note(words.forgotten)
        case "/retry":
            return _retry(conversation, words)
        case "/set":
            _set(normalize("NFKC", given), conversation, words)
        case "/history":
            _show(conversation, words)
        case "/save" | "/load" if not given:
            note(words.usage.format(f"{name} talk.json"))
        case "/save" | "/load":
            try:  # a terminal quotes a file that is dropped on it
                path = named_path(given.strip("\"'"))
            except UserError as error:
                note(words.no_path.format(error.problem))
                return None
            note((_save if name == "/save" else _load)(conversation, path, words))
        case _:
            note(words.unknown.format(_printable(name)))
    return None


def _parts(line: str) -> tuple[str, str]:
    """The first word, and what follows; Chinese input methods give wide slashes and digits."""
    name, *given = line.split(maxsplit=1)
    return normalize("NFKC", name).lower(), "".join(given).strip()


def _retry(conversation: Chatbot, words: Words) -> Generator[str, None, None] | None:
    if not conversation.messages:
        note(words.nothing_said)
        return None
    if conversation.sampling.temperature == 0:
        note(words.always_the_same)
        return conversation.stream(conversation.take_back())
    return _another(conversation, words)


def _another(conversation: Chatbot, words: Words) -> Generator[str, None, None]:
    """A reply that differs from the last one, as it comes, from where it differs."""
    last = conversation.messages[-1]
    for _ in range(RETRIES):
        said = ""
        reply = conversation.stream(conversation.take_back())
        for chunk in reply:
            said += chunk
            if not last.startswith(said):
                yield said
                yield from reply
                return
        if said != last:
            yield said
            return
    note(words.same_again)
    yield last


def _set(given: str, conversation: Chatbot, words: Words) -> None:
    """`KEY VALUE` or `KEY=VALUE` changes a key; nothing shows all."""
    if given:
        key, *rest = given.replace("=", " ", 1).split(maxsplit=1) or ["temperature"]
        value, now = "".join(rest), asdict(conversation.sampling)
        if key not in now:
            note(words.unknown_key.format(_printable(key), words.comma.join(now)))
            return
        if not value:
            note(words.usage.format(f"/set {key} {now[key]}"))
            return
        try:
            conversation.sampling = {key: value}
        except UserError as error:
            limit, problem = words.limits.get(key), error.problem
            note(words.wrong_value.format(key=key, value=value, limit=limit, error=problem))
            return
    note("\n".join(f"  {key} {value}" for key, value in asdict(conversation.sampling).items()))


def _show(conversation: Chatbot, words: Words) -> None:
    speakers = dict(zip(ROLES, (words.you, words.model), strict=True))
    said = conversation.history
    lines = [f"{speakers[one['role']]}{_printable(one['content'])}" for one in said]
    note("\n".join(lines) or words.nothing_said)


def _printable(text: str) -> str:
    """Text from a file, without what would steer the terminal."""
    return "".join(character if is_text(character) else "\ufffd" for character in text)


def _save(conversation: Chatbot, path: Path, words: Words) -> str:
    """Write the conversation as one line in OpenAI's format, which `smallgpt data` reads."""
    text = json.dumps({"messages": conversation.history}, ensure_ascii=False) + "\n"
    try:
        if path.exists() or path.is_symlink():
            return words.exists.format(path)
        with atomic.file(path) as work:
            work.write_text(text, encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        return words.unwritable.format(path, getattr(error, "strerror", None) or error)
    return words.saved.format(path)


def _load(conversation: Chatbot, path: Path, words: Words) -> str:
    """Take what a file like those of `_save` holds as the conversation; garbage changes nothing."""
    try:
        if path.stat().st_size > LARGEST_CONVERSATION or not path.is_file():
            return words.unreadable.format(path, words.no_file)
        stored: Any = json.loads(path.read_text("utf-8-sig"))
        if isinstance(stored, dict):
            stored = stored.get("messages")
        conversation.history = stored
    except OSError as error:
        return words.unreadable.format(path, error.strerror)
    except UserError as error:
        return words.unreadable.format(path, words.no_conversation.format(error))
    except (ValueError, RecursionError):
        return words.unreadable.format(path, words.no_json)
    return words.loaded.format(path, len(conversation.messages))
