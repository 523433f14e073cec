"""Exports of chat apps: which files are one, and their messages."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from smallgpt.data.chats import tables, text
from smallgpt.data.chats.messages import CLEAN, Export
from smallgpt.data.tables import Broken
from smallgpt.data.text import decode
from smallgpt.utils.errors import UserError, note

_BEGINNING = 1 << 20  # characters that are looked at


def recognise(path: Path, me: Sequence[str] = ()) -> text.TextForm | tables.TableForm | None:
    """How a file holds the messages of a chat, by its beginning; None where it holds none.

    Args:
        me: names of a sender, by which the user says that it is an export. Without them, a text
            that has no times may as well be something else.

    Raises:
        UserError: with `me`, the file cannot be read or is no text.
    """
    try:
        beginning = _beginning(path)
    except UserError:
        if me:
            raise
        return None  # it is up to those who read it, such as Parquet
    return tables.recognise(path, beginning) or text.recognise(beginning, me)


def read(
    path: Path,
    form: text.TextForm | tables.TableForm,
    me: Sequence[str] = (),
    broken: Broken | None = None,
) -> Export:
    """Read a whole export into memory, some 300 bytes a message.

    `broken` is called for broken rows; without it, a UserError names the first one.
    """
    if isinstance(form, tables.TableForm):
        return tables.read(path, form, broken)
    return text.read(path, form, me)


def _beginning(path: Path) -> str:
    """The first lines of a file."""
    beginning = ""
    for chunk in decode(path, quiet=True):
        beginning += chunk
        if len(beginning) >= _BEGINNING:
            return (beginning[: beginning.rfind("\n") + 1] or beginning).translate(CLEAN)
    return beginning.translate(CLEAN)


def warn_of_exports(files: Sequence[Path]) -> None:
    """Say where a text looks like an export, of which names and times would be learnt.

    Raises:
        UserError: a table or JSON file that is an export: it holds messages, not dialogues.
    """
    for path in files:
        form = recognise(path)
        if isinstance(form, tables.TableForm) and form.timed:
            raise UserError(f"{path} holds the messages of a chat, not dialogues", _advice(path))
        if isinstance(form, text.TextForm):
            what = "times and names" if form.timed else "names"
            note(f"warning: {path} looks like a chat export: {what} would be learnt as text")
            note(f"  -> {_advice(path)}")


def _advice(path: Path) -> str:
    command = (
        f"python -m smallgpt data convert {shlex.quote(str(path))} --me NAME --output train.txt"
    )
    return f"make dialogues of it first: {command}"
