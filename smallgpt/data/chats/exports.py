"""Exports of chat apps: which files are one, and their messages."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from smallgpt.data.chats import tables, text
from smallgpt.data.chats.messages import CLEAN, Export
from smallgpt.data.json_files import Broken
from smallgpt.data.text import beginning
from smallgpt.utils.errors import UserError, note

Form = text.TextForm | tables.TableForm


def recognise(path: Path, me: Sequence[str] = ()) -> Form | None:
    """How a file holds the messages of a chat, by its beginning; None where it holds none.

    Args:
        me: names of a sender, by which the user says that it is an export. Without them, a text
            that has no times may as well be something else.

    Raises:
        UserError: with `me`, the file cannot be read or is no text.
    """
    try:
        first = beginning(path).translate(CLEAN)
    except UserError:
        if me:
            raise
        return None  # it is up to those who read it, such as Parquet
    return tables.recognise(path, first) or text.recognise(first, me)


def read(path: Path, form: Form, me: Sequence[str] = (), broken: Broken | None = None) -> Export:
    """Read a whole export into memory, some 300 bytes a message.

    `broken` is called for broken rows; without it, a UserError names the first one.
    """
    if isinstance(form, tables.TableForm):
        return tables.read(path, form, broken)
    return text.read(path, form, me)


def refuse_exports(files: Sequence[Path]) -> None:
    """Raise a UserError that lists the speakers if one of the files is an export beyond doubt."""
    for path in files:
        form = recognise(path)
        if form and form.timed:
            speakers = read(path, form, broken=lambda *_: None).listed()
            problem = f"{path} is a chat export: whose messages are to be the replies?"
            if speakers:
                raise UserError(problem, f"add --me NAME; it has these speakers: {speakers}")
        _warn(path, form)


def warn_of_exports(files: Sequence[Path]) -> None:
    """Say where a text looks like an export, of which names and times would be learnt.

    Raises:
        UserError: a table or JSON file that is an export: it holds messages, not dialogues.
    """
    for path in files:
        form = recognise(path)
        if isinstance(form, tables.TableForm) and form.timed:
            problem = f"{path} holds the messages of a chat, not dialogues"
            raise UserError(problem, how_to_convert(path))
        _warn(path, form)


def _warn(path: Path, form: Form | None) -> None:
    if isinstance(form, text.TextForm):
        what = "times and names" if form.timed else "names"
        note(f"warning: {path} looks like a chat export: {what} would be learnt as text")
        note(f"  -> {how_to_convert(path)}")


def how_to_convert(path: Path | None = None) -> str:
    """The advice to make dialogues of an export."""
    file = shlex.quote(str(path)) if path else "…"
    return f"convert it first: python -m smallgpt data convert {file} --me NAME --output train.txt"
