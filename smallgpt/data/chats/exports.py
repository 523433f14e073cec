"""Exports of chat apps: which files are one, and their messages."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from smallgpt.data.chats import tables, text
from smallgpt.data.chats.messages import CLEAN, Export
from smallgpt.data.text import open_decompressed
from smallgpt.utils.errors import UserError, note

_BEGINNING = 1 << 20  # bytes that are looked at
_AS_TEXT = "export the chat as text, CSV or JSON (in Telegram: machine-readable JSON)"
_OTHER_FILES = {
    b"PK\x03\x04": ("a ZIP archive or an Excel file", "unpack it, or save the table as CSV"),
    b"SQLite": ("a database", _AS_TEXT),
    b"<!": ("a web page", _AS_TEXT),
    b"<html": ("a web page", _AS_TEXT),
    b"Mime": ("an MHT page", "choose the text format (*.txt) when you export"),
    b"From: <Save": ("an MHT page", "choose the text format (*.txt) when you export"),
}


def recognise(path: Path, me: Sequence[str] = ()) -> text.TextForm | tables.TableForm | None:
    """How a file holds the messages of a chat, by its beginning; None where it holds none.

    Args:
        me: names of a sender, by which the user says that it is an export. Without them, a text
            that has no times may as well be something else.

    Raises:
        UserError: the file cannot be read, or it is an export in a form that is not read.
    """
    beginning = _beginning(path, sure=bool(me))
    return tables.recognise(path, beginning) or text.recognise(beginning, me)


def read(path: Path, form: text.TextForm | tables.TableForm, me: Sequence[str] = ()) -> Export:
    """Read a whole export into memory, some 300 bytes a message."""
    if isinstance(form, tables.TableForm):
        return tables.read(path, form)
    return text.read(path, form, me)


def _beginning(path: Path, sure: bool) -> str:
    with open_decompressed(path) as file:
        data = file.read(_BEGINNING)
    for magic, (what, advice) in _OTHER_FILES.items():
        if sure and data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(magic):
            raise UserError(f"{path} is {what}, not an export that can be read", advice)
    if len(data) == _BEGINNING:
        data = data[: data.rfind(b"\n") + 1] or data
    try:
        beginning = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cut_off = error.end == len(data) and error.reason.startswith("unexpected end")
        beginning = data.decode("utf-8-sig" if cut_off else "gb18030", "replace")
    return beginning.replace("\r\n", "\n").replace("\r", "\n").translate(CLEAN)


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
    command = f"smallgpt data convert {shlex.quote(str(path))} --me NAME --output train.txt"
    return f"make dialogues of it first: {command}"
