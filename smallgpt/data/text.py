"""Text files as a stream of clean text in bounded memory: decompressed, decoded, newlines unified.

A dialogue file is UTF-8; one utterance a line; a blank line between dialogues.
"""

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
from typing import IO, Any

from tqdm import tqdm

from smallgpt.utils.errors import UserError
from smallgpt.utils.paths import not_found

CHUNK_BYTES = 1 << 20  # small enough that the processor's cache holds much of the work
GZIP_MAGIC, XZ_MAGIC = b"\x1f\x8b", b"\xfd7zXZ\x00"
# A line of nothing but white space, such as a full-width space, separates dialogues as well.
_BLANK_LOOKING = re.compile(r"\n[^\S\n]+(?=\n)")
_MANY_NEWLINES = re.compile(r"\n{3,}")
_LEADING_BLANKS = re.compile(r"\A\s*\n")


class DecodeError(UserError):
    """Bytes that are not text of the expected encoding."""


def check_files(paths: list[Path]) -> None:
    """Stop early with a UserError where a text file is missing, empty or unreadable."""
    for path in paths:
        with open_decompressed(path) as file:
            empty = not file.read(1)
        if empty:
            raise UserError(f"{path} is empty", "put dialogues in it, see README.md")


def fingerprint(paths: list[Path]) -> str:
    """A hash of the files' bytes, in order: the same text, the same fingerprint."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def read_text(path: Path) -> Iterator[tuple[str, str]]:
    """Stream a file as pairs (raw, clean) of consecutive chunks of its text.

    In `raw`, newlines are `\\n` whatever the system that wrote them, and a byte order mark is gone.
    In `clean`, moreover, every separator between dialogues is exactly one blank line, and there are
    no blank lines at the beginning and no white space at the end of the file.

    Raises:
        UserError: bytes that are not UTF-8 (with the line), or a damaged .gz or .xz file.
    """
    tail, started = "", False
    for decoded in decode(path):
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


def decode(path: Path, encoding: str = "utf-8", translate: bool = True) -> Iterator[str]:
    """Stream a file's text without a byte order mark.

    Args:
        translate: make every newline `\\n`. Otherwise newlines stay, and no chunk ends within one.

    Raises:
        DecodeError: bytes that are not of this encoding (with the line).
        UserError: the file cannot be read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate)
    line_feeds = returns = 0  # the file's newlines, whichever it uses, are the more frequent
    at_start = True
    for data in read_bytes(path):
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            before, bad = error.object[: error.start], error.object[error.start]
            line = max(line_feeds + before.count(b"\n"), returns + before.count(b"\r")) + 1
            utf16 = line == 1 and not before and bad in (0xFE, 0xFF)
            other = "UTF-16" if utf16 else "GB18030"
            advice = f"for example: iconv -f {other} -t UTF-8 {path.name} > utf8.txt"
            raise DecodeError(
                f"{path}, line {line:,}: {'not' if encoding == 'utf-8' else 'neither UTF-8 nor'} "
                f"{encoding.upper()} (byte 0x{bad:02x})",
                f"save the file as UTF-8{', ' + advice if encoding == 'utf-8' else ''}",
            ) from None
        line_feeds += data.count(b"\n")
        returns += data.count(b"\r")
        if text:
            yield text.removeprefix("\ufeff") if at_start else text
            at_start = False


def read_bytes(path: Path) -> Iterator[bytes]:
    """Stream a file's decompressed bytes: chunks of `CHUNK_BYTES` at most, then one empty chunk."""
    with open_decompressed(path) as file:
        while data := file.read(CHUNK_BYTES):
            yield data
        yield b""


@contextmanager
def open_decompressed(path: Path) -> Iterator[IO[bytes]]:
    """A file, decompressed where it is .gz or .xz by its content; a bar shows how much is read.

    Raises:
        UserError: it cannot be read or is damaged, also while it is read.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(6)
            raw.seek(0)
            size, name = path.stat().st_size, f"reading {path.name}"
            bar: Any = tqdm.wrapattr(raw, "read", total=size, desc=name, delay=1, leave=False)
            with bar as file:
                yield _decompressed(file, magic)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}", "get the file again") from None
    except FileNotFoundError:
        raise not_found(
            path,
            advice="use your own text (UTF-8, one utterance a line, a blank line between "
            "dialogues), or the public text of 500,000 dialogues linked at "
            "github.com/yangjianxin1/GPT2-chitchat, or built-in small talk: "
            f"python -m smallgpt data smalltalk --output {path}",
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory", "name the text file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _decompressed(file: Any, magic: bytes) -> Any:
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    return lzma.LZMAFile(file) if magic.startswith(XZ_MAGIC) else file
