"""Text files as a stream of clean text in bounded memory: decompressed, decoded, newlines unified.

A dialogue file is UTF-8; one utterance a line; a blank line between dialogues.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from smallgpt.utils.errors import UserError

CHUNK_BYTES = 1 << 21  # small enough that the processor's cache holds much of the work
GZIP_MAGIC, XZ_MAGIC = b"\x1f\x8b", b"\xfd7zXZ\x00"
# A line of nothing but white space, such as a full-width space, separates dialogues as well.
_BLANK_LOOKING = re.compile(r"\n[^\S\n]+(?=\n)")
_MANY_NEWLINES = re.compile(r"\n{3,}")
_LEADING_BLANKS = re.compile(r"\A\s*\n")


def check_files(paths: list[Path]) -> None:
    """Stop early, before any work, where a text file cannot be used.

    Raises:
        UserError: a path is missing, a directory, empty or unreadable.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise UserError(f"data_path: {path} is a directory", "name the text file in it")
            with path.open("rb") as file:
                empty = not file.read(1)
        except FileNotFoundError:
            raise UserError(f"data_path: {path} not found", _where_to_get(path)) from None
        except OSError as error:
            raise UserError(f"data_path: {path} cannot be read: {error.strerror}") from None
        if empty:
            raise UserError(f"data_path: {path} is empty", "put dialogues in it, see README.md")


def _where_to_get(path: Path) -> str:
    return (
        "use your own text (UTF-8, one utterance a line, a blank line between dialogues), "
        "or the public text of 500,000 dialogues linked at github.com/yangjianxin1/GPT2-chitchat, "
        f"or built-in small talk: python -m smallgpt data smalltalk --dialogues 60000 > {path}"
    )


def fingerprint(paths: list[Path]) -> str:
    """A hash of the files' bytes, in order: the same text, the same fingerprint."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def read_text(path: Path) -> Iterator[tuple[str, str]]:
    """Stream a file as pairs (raw, clean) of consecutive pieces of its text.

    In `raw`, newlines are `\\n` whatever the system that wrote them, and a byte order mark is gone.
    In `clean`, moreover, every separator between dialogues is exactly one blank line, and there are
    no blank lines at the beginning and no white space at the end of the file.

    Raises:
        UserError: bytes that are not UTF-8 (with the line), or a damaged .gz or .xz file.
    """
    tail, started = "", False
    for decoded in _decode(path):
        text = tail + decoded
        # Whether white space at the end separates dialogues depends on what follows: keep it back.
        body = text.rstrip()
        tail = text[len(body) :]
        if not body:
            continue
        clean = body if started else _LEADING_BLANKS.sub("", body)
        clean = _BLANK_LOOKING.sub("\n", clean)
        if "\n\n\n" in clean:  # far quicker to find than the pattern, and rare
            clean = _MANY_NEWLINES.sub("\n\n", clean)
        started = True
        yield body, clean
    if tail:
        yield tail, ""


def _decode(path: Path) -> Iterator[str]:
    """The text with `\\n` for every kind of newline, without a byte order mark."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    lines = _LineCount()
    first = True
    for data in read_bytes(path):
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            lines.add(error.object[: error.start])
            bad = error.object[error.start]
            utf16 = lines.complete == 0 and error.start == 0 and bad in (0xFE, 0xFF)
            raise UserError(
                f"{path}, line {lines.complete + 1}: not UTF-8 (byte 0x{bad:02x})",
                "save the file as UTF-8, for example: "
                f"iconv -f {'UTF-16' if utf16 else 'GB18030'} -t UTF-8 {path.name} > utf8.txt",
            ) from None
        lines.add(data)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text


class _LineCount:
    """Complete lines in the bytes so far, whichever newline the file uses."""

    def __init__(self) -> None:
        self._feeds = self._returns = 0

    def add(self, data: bytes) -> None:
        self._feeds += data.count(b"\n")
        self._returns += data.count(b"\r")

    @property
    def complete(self) -> int:
        return max(self._feeds, self._returns)


@contextmanager
def open_decompressed(path: Path) -> Iterator[IO[bytes]]:
    """A file, decompressed where it is .gz or .xz by its content.

    Raises:
        UserError: it cannot be read or is damaged, also while it is read.
    """
    try:
        with path.open("rb") as raw:
            yield _decompressed(raw)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}", "get the file again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_bytes(path: Path) -> Iterator[bytes]:
    """Stream a file's decompressed bytes: chunks of `CHUNK_BYTES` at most, then one empty chunk.

    Raises:
        UserError: a damaged .gz or .xz file, or one that cannot be read.
    """
    with (
        path.open("rb") as raw,
        tqdm(
            total=path.stat().st_size,
            desc=f"reading {path.name}",
            unit="B",
            unit_scale=True,
            delay=1,
            leave=False,
        ) as bar,
    ):
        file = _decompressed(raw)
        while True:
            try:
                data = file.read(CHUNK_BYTES)
            except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(
                    f"{path} is damaged or cut off: {error}", "get the file again"
                ) from None
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            bar.update(raw.tell() - bar.n)
            yield data
            if not data:
                return


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if magic.startswith(XZ_MAGIC):
        return lzma.LZMAFile(raw)
    return raw
