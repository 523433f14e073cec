"""JSON files as a stream of values, in bounded memory: one a line, items of lists, or one alone."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from smallgpt.data.text import LONGEST, decode, read_lines
from smallgpt.utils.errors import UserError

Broken = Callable[[int, str], object]
"""Called with the number of a broken record and the reason; if it returns, that one is left out."""
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_AFTER_ITEM, _END_OF_LIST = re.compile(r"\s*(?:,\s*|(?=\]))"), re.compile(r"\s*\]")
_LONGEST_KEY = 100  # characters of a key and the list's bracket, with white space
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def leading_value(text: str) -> Any:
    """The JSON value that a text begins with; None where there is none."""
    found = _value_at(text, 0)
    return found[0] if found else None


def whole_value(text: str) -> Any:
    """The JSON value that a text is; None where it is none."""
    found = _value_at(text, 0)
    return found[0] if found and not text[found[1] :].strip() else None


def refusing(path: Path, advice: str, unit: str = "line") -> Broken:
    """What to call for a broken record where none is left out: it raises a UserError."""

    def refuse(number: int, reason: str) -> NoReturn:
        raise UserError(f"{path}, {unit} {number:,}: {reason}", advice)

    return refuse


def json_lines(path: Path, broken: Broken, quiet: bool = False) -> Iterator[tuple[int, Any]]:
    """Stream the JSON values of a file that holds one a line, with the numbers of the lines."""
    for number, line in enumerate(read_lines(path, quiet=quiet), start=1):
        if not line.strip():
            continue
        try:
            value = _well_formed(json.loads(line), line)
        except (ValueError, RecursionError) as error:
            broken(number, f"not JSON: {error}")
        else:
            yield number, value


def json_items(path: Path, quiet: bool = False) -> Iterator[tuple[int, Any]]:
    """Stream the items of a JSON list, numbered from 1, as far as it is whole."""
    return ((number, item) for number, _, item in _items(path, "", decode(path, quiet=quiet)))


def json_items_under(
    path: Path, key: str, text: Iterable[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Stream the items of all lists under `key` in a JSON object, with the number of the list.

    `text`: of the file, where only its beginning is to be looked at.
    """
    return ((part, item) for _, part, item in _items(path, key, text or decode(path)))


def json_value(path: Path) -> Any:
    """The one JSON value that a file holds.

    Raises:
        UserError: it is not JSON, or longer than `LONGEST`.
    """
    text = ""
    for part in decode(path):
        text += part
        if len(text) > LONGEST:
            problem = f"one JSON value of more than {LONGEST:,} characters"
            raise UserError(f"{path}: {problem}", "make it a list of dialogues, or one a line")
    try:
        return _well_formed(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _items(path: Path, key: str, chunks: Iterable[str]) -> Iterator[tuple[int, int, Any]]:
    """The items of the list that a file is, or of those under a key, with their and its number."""
    beginning = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\s*\[")
    rest, lists, items, inside = "", 0, 0, False
    for text in chunks:
        rest, at = rest + text, 0
        while True:
            if inside and (found := _item_at(rest, at)):
                value, at = found
                items += 1
                yield items, lists, value
            elif inside and (end := _END_OF_LIST.match(rest, at)):
                inside, at = False, end.end()
            elif not inside and (key or not lists) and (begin := beginning.search(rest, at)):
                inside, at, lists = True, begin.end(), lists + 1
            else:
                break  # it goes on in the next chunk
        if key and not inside:
            at = max(at, len(rest) - _LONGEST_KEY)
        rest = rest[at:]
        if len(rest) > LONGEST:
            problem = f"record {items + 1:,} is broken, or longer than {LONGEST:,} characters"
            raise UserError(f"{path}, {problem}", "is it a list of dialogues?")
    if inside or not (key or lists) or (not key and rest.strip()):
        raise UserError(
            f"{path}: the list is broken after record {items:,}",
            "what follows cannot be read; get the file again",
        )


def _item_at(text: str, at: int) -> tuple[Any, int] | None:
    """The item at a place in a list, and where the next one is; None where it is cut off."""
    found = _value_at(text, at)
    after = _AFTER_ITEM.match(text, found[1]) if found else None
    return (found[0], after.end()) if found and after else None


def _value_at(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value at a place, behind white space, and where it ends; None if there is none."""
    space = _SPACE.match(text, at)
    try:
        value, end = _DECODER.raw_decode(text, space.end() if space else at)
        return _well_formed(value, text, at, end), end
    except (ValueError, RecursionError):
        return None


def _well_formed(value: Any, source: str, start: int = 0, end: int = sys.maxsize) -> Any:
    """A JSON value in which half a surrogate pair, as of an emoji cut in two, is U+FFFD."""
    if not _SURROGATE.search(source, start, end):
        return value
    text = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
    return json.loads(text.decode("utf-16-le", "replace"))
