"""Is a file text, and in which encoding? Told from its bytes, never from its name."""

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from smallgpt.utils.errors import UserError

_AS_TABLE = "save it as CSV UTF-8 first: in Excel or WPS, File > Save As"
_AS_TEXT = "save it as plain text in UTF-8 first"
_UNPACK = "unpack it, and give the text file in it"
_OTHER = "give a file of text"
_NOT_TEXT = [
    (re.compile(pattern), name, advice)
    for pattern, name, advice in (
        (rb"PK\x03\x04(?s:.)*(xl/|mimetype\S*\.spreadsheet)", "an Excel workbook", _AS_TABLE),
        (rb"PK\x03\x04(?s:.)*(word/|mimetype\S*\.text)", "a Word document", _AS_TEXT),
        (rb"PK\x03\x04", "a ZIP archive", _UNPACK),
        (rb"\xd0\xcf\x11\xe0", "an Office file (.xls, .doc)", f"{_AS_TABLE}; or as plain text"),
        (rb"%PDF-", "a PDF document", _AS_TEXT),
        (rb"\{\\rtf", "a rich text document (.rtf)", _AS_TEXT),
        (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*", "a picture", _OTHER),
        (rb"RIFF(?s:.){4}(WEBP|WAVE|AVI )|(?s:.){4}ftyp", "a picture, sound or video", _OTHER),
        (rb"ID3[\x02-\x04]|OggS\0|fLaC\0|#!(AMR|SILK)|\x02#!SILK", "a sound", _OTHER),
        (rb"BZh[1-9]1AY", "a bzip2 archive", _UNPACK),
        (rb"7z\xbc\xaf|Rar!\x1a|\x28\xb5\x2f\xfd|(?s:.){257}ustar", "an archive", _UNPACK),
        (rb"SQLite format 3\0", "a database (SQLite)", "export its texts as CSV or JSON"),
        (rb"PAR1|ARROW1\0", "a Parquet or Arrow table", "save it as CSV or JSONL"),
        (
            rb"\x93NUMPY|GGUF[\x01-\x09]\0|\x80[\x02-\x05]",
            "no text but numbers (NumPy, GGUF, pickle)",
            _OTHER,
        ),
        (rb"\x7fELF|MZ\x90\0", "a program", _OTHER),
        (
            rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|table)",
            "a web page (HTML)",
            "open it in a browser or in Excel, and save it as text or as CSV UTF-8",
        ),
        (rb"(\xef\xbb\xbf)?\s*<\?xml", "an XML file", f"{_AS_TABLE}; or as plain text"),
        (
            rb"(?i)(from: .*\n)?(subject: .*\n)?mime-version:",
            "a web archive (.mht)",
            "export it as text, or open it in a browser and save it as text",
        ),
    )
]
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # it begins as the next one does
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
)
_ENOUGH = 1000
"""Characters that are not ASCII, after which the encoding is decided."""


def encoding_of(path: Path, chunks: Iterable[bytes]) -> str:
    """The encoding of a file with these bytes: as its byte order mark says, or UTF-8 or GB18030.

    It is GB18030 only where most of what is not ASCII is not UTF-8: one bad byte in a text in
    UTF-8 must not turn all of it into other characters. No more is read than it takes.

    Raises:
        UserError: it is no text but, say, a picture or an Excel workbook; with what to do.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    good = bad = 0
    for number, data in enumerate(chunks):
        if not number:
            for pattern, name, advice in _NOT_TEXT:
                if pattern.match(data):
                    raise UserError(f"{path} is {name}, not text", advice)
            for mark, encoding in _MARKS:
                if data.startswith(mark):
                    return encoding
        text = decoder.decode(data, final=not data)
        if not text.isascii():
            wrong = text.count("\ufffd") - data.count("\ufffd".encode())
            bad += wrong
            good += len(text) - len(text.encode("ascii", "ignore")) - wrong
        if good + bad > _ENOUGH:
            break
    return "gb18030" if bad > good else "utf-8"
