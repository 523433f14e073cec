"""Text files as a stream of clean text in bounded memory: decompressed, decoded, newlines unified.

A dialogue file has one utterance a line and a blank line between dialogues. It is UTF-8; GB18030,
and UTF-16 and UTF-32 with a byte order mark, are read too.
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

from smallgpt.data import encodings
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import not_found

CHUNK_BYTES = 1 << 20  # small enough that the processor's cache holds much of the work
GZIP_MAGIC, XZ_MAGIC = b"\x1f\x8b", b"\xfd7zXZ\x00"
LONGEST = 1 << 24
"""Characters of a record at most: what a small packed file unpacks to must not fill the memory."""
SMALL_TALK = Path("data/smalltalk.txt")
"""Where config/demo.yaml looks for the built-in dialogues."""
_BEGINNING = 1 << 20  # characters
BLANK = "".join(
    [
        *"\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\xad\u061c\u115f\u1160\u1680\u180e",
        *map(chr, range(0x2000, 0x2010)),
        *map(chr, range(0x2028, 0x2030)),
        *map(chr, range(0x205F, 0x2070)),
        *"\u2800\u3000\u3164\ufeff\uffa0",
    ]
)
"""White space, and what shows nothing either, such as the zero-width space of web pages."""
_BLANK_LINE = BLANK.replace("\n", "")
# A line of nothing but these separates dialogues as well.
_BLANK_LOOKING = re.compile(f"\\n[{_BLANK_LINE}]+(?=\\n)")
_MANY_NEWLINES = re.compile(r"\n{3,}")
_LEADING_BLANKS = re.compile(f"\\A[{BLANK}]*\\n")


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
        UserError: as `decode`.
    """
    tail, started = "", False
    for decoded in decode(path):
        text = tail + decoded
        # Whether white space at the end separates dialogues depends on what follows: keep it back.
        body = text.rstrip(BLANK)
        tail = text[len(body) :]
        if not body:
            continue
        clean = body if started else _LEADING_BLANKS.sub("", body)
        clean = _BLANK_LOOKING.sub("\n", clean)
        if "\n\n\n" in clean:  # far quicker to find than the pattern, and rare
            clean = _MANY_NEWLINES.sub("\n\n", clean)
        started = True
        yield body, clean
    if tail:  # of its first line, what is no white space belongs to the last utterance
        yield tail, tail.partition("\n")[0].rstrip() if started else ""


def decode(path: Path, translate: bool = True, quiet: bool = False) -> Iterator[str]:
    """Stream a file's text without a byte order mark.

    Args:
        translate: make every newline `\\n`. Otherwise newlines stay, and no chunk ends within one.
        quiet: do not say that the encoding is another than UTF-8.

    Raises:
        UserError: the file cannot be read, is damaged or no text, or holds bytes that are not of
            its encoding (with the line).
    """
    encoding = encoding_of(path)
    if encoding != "utf-8" and not quiet:
        note(f"{path}: not UTF-8, read as {_name(encoding)}")
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate)
    line_feed, carriage_return = (newline.encode(encoding) for newline in "\n\r")
    line_feeds = returns = 0  # the file's newlines, whichever it uses, are the more frequent

    def line_of(before: bytes) -> str:
        feeds, others = before.count(line_feed), before.count(carriage_return)
        return f"{path}, line {max(line_feeds + feeds, returns + others) + 1:,}"

    at_start = True
    for data in read_bytes(path):
        if 0 in data and encoding in ("utf-8", "gb18030"):
            place = line_of(data[: data.index(0)])
            raise UserError(
                f"{place}: a NUL byte, which no text has",
                "is it a text? if it is UTF-16, save it as UTF-8; if it is damaged, remove them: "
                f"tr -d '\\000' < {path.name} > clean.txt",
            )
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place, bad = line_of(error.object[: error.start]), error.object[error.start]
            problem, advice = "neither UTF-8 nor GB18030", "save the file as UTF-8"
            if encoding != "gb18030":
                problem = f"not {_name(encoding)}, as the rest is"
                advice = "correct that character, or save the file again"
            raise UserError(f"{place}: {problem} (byte 0x{bad:02x})", advice) from None
        line_feeds += data.count(line_feed)
        returns += data.count(carriage_return)
        if text:
            yield text.removeprefix("\ufeff") if at_start else text
            at_start = False


def read_lines(path: Path, translate: bool = False, quiet: bool = False) -> Iterator[str]:
    """Stream a file's lines, each with its newline; the arguments are those of `decode`."""
    rest, number = "", 1
    for text in decode(path, translate, quiet):
        lines = io.StringIO(rest + text, newline="").readlines()
        rest = "" if lines[-1].endswith(("\n", "\r")) else lines.pop()
        number += len(lines)
        yield from lines
        if len(rest) > LONGEST:
            problem = f"line {number:,} is longer than {LONGEST:,} characters"
            raise UserError(f"{path}, {problem}", "is it such a file, with its newlines?")
    if rest:
        yield rest


def beginning(path: Path) -> str:
    """The first million characters of a file, by which it is recognised, in whole lines."""
    text = ""
    for chunk in decode(path, quiet=True):
        text += chunk
        if len(text) >= _BEGINNING:
            return text[: text.rfind("\n") + 1] or text
    return text


def encoding_of(path: Path) -> str:
    """The encoding of a file's text, as `data.encodings` tells it; a UserError if it is no text."""
    return encodings.encoding_of(path, read_bytes(path))


def _name(encoding: str) -> str:
    return encoding.upper().removesuffix("-LE").removesuffix("-BE")


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
            if not raw.seekable():
                advice = "write it to a file first, and name that"
                raise UserError(f"{path} is a pipe or the like, which is read only once", advice)
            magic = raw.read(6)
            raw.seek(0)
            size, name = path.stat().st_size, f"reading {path.name}"
            bar: Any = tqdm.wrapattr(raw, "read", total=size, desc=name, delay=1, leave=False)
            with bar as file:
                yield _decompressed(file, magic)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}", "get the file again") from None
    except FileNotFoundError:
        example = path.name == SMALL_TALK.name
        raise not_found(
            path,
            suffixes=() if example else (".txt", ".json", ".jsonl", ".csv", ".tsv", ".gz", ".xz"),
            advice="use your own text (UTF-8, one utterance a line, a blank line between "
            "dialogues), or the public text of 500,000 dialogues linked at "
            "github.com/yangjianxin1/GPT2-chitchat, or built-in small talk: "
            f"python -m smallgpt data smalltalk --output {path if example else SMALL_TALK}",
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory", "name the text file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _decompressed(file: Any, magic: bytes) -> Any:
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    return lzma.LZMAFile(file) if magic.startswith(XZ_MAGIC) else file
