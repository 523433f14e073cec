"""Exports of chat apps: which files are one, and their messages."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from smallgpt.data.chats import tables, text
from smallgpt.data.chats.messages import CLEAN, Export
from smallgpt.data.json_files import Broken
from smallgpt.data.text import beginning
from smallgpt.utils.errors import UserError, note


def recognise(path: Path, me: Sequence[str] = ()) -> text.TextForm | tables.TableForm | None:
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


def warn_of_exports(files: Sequence[Path]) -> None:
    """Say where a text looks like an export, of which names and times would be learnt.

    Raises:
        UserError: a table or JSON file that is an export: it holds messages, not dialogues.
    """
    for path in files:
        form = recognise(path)
        if isinstance(form, tables.TableForm) and form.timed:
            raise UserError(
                f"{path} holds the messages of a chat, not dialogues", how_to_convert(path)
            )
        if isinstance(form, text.TextForm):
            what = "times and names" if form.timed else "names"
            note(f"warning: {path} looks like a chat export: {what} would be learnt as text")
            note(f"  -> {how_to_convert(path)}")


def how_to_convert(path: Path | str) -> str:
    """The advice to make dialogues of an export."""
    file = shlex.quote(str(path)) if isinstance(path, Path) else path
    return f"convert it first: python -m smallgpt data convert {file} --me NAME --output train.txt"
