"""Reading text files: encodings, blank lines, what is refused, and their fingerprint. See
test_corpus.py for the rest."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.data import text as text_module
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.tables import read_rows
from smallgpt.data.text import check_files, fingerprint, read_text
from tests.helpers.commands import refusal


def chunks_of(path: Path, chunk_bytes: int | None = None) -> list[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        if chunk_bytes:
            patch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
        return list(read_text(path))


def problem_of(path: Path, chunk_bytes: int | None = None) -> str:
    return refusal(lambda: chunks_of(path, chunk_bytes))


@pytest.mark.parametrize("chunk_bytes", [None, 3])
@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"a\nb\ncaf\xe9\nd\n", 3, "neither UTF-8 nor GB18030 (byte 0xe9)"),
        ("你好\r\n再见\r\n".encode() + b"\xff\r\n", 3, "not UTF-8, as the rest is (byte 0xff)"),
        ("你好\r再见\r".encode() + b"\xff\r", 3, "not UTF-8, as the rest is (byte 0xff)"),
        ("你好\n再见".encode()[:-1], 2, "not UTF-8, as the rest is (byte 0xe8)"),
        # The bytes of one half of a surrogate pair.
        ("早上好呀\n".encode() + b"\xed\xa0\xbd\n", 2, "not UTF-8, as the rest is (byte 0xed)"),
        ("你好\n再见\n".encode("gb18030") + b"\xff\n", 3, "neither UTF-8 nor GB18030 (byte 0xff)"),
        ("上好\n上".encode("utf-16") + b"\x00", 2, "not UTF-16, as the rest is (byte 0x00)"),
        ("你好\n再\0见".encode(), 2, "a NUL byte"),
        ("hello\nworld".encode("utf-16-le"), 1, "a NUL byte"),
    ],
    ids=["latin", "crlf", "cr", "cut-off", "surrogate", "gb18030", "utf-16", "nul", "no-mark"],
)
def test_undecodable_bytes_are_named_with_their_line(
    tmp_path: Path, content: bytes, line: int, problem: str, chunk_bytes: int | None
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert f"{path}, line {line}: {problem}" in problem_of(path, chunk_bytes)


TALK = "在的\n好呀，一会儿见\n\n几点\n五点一刻🙂\n"


@pytest.mark.parametrize("chunk_bytes", [None, 5])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-32"])
def test_encodings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str, chunk_bytes: int | None
) -> None:
    path = tmp_path / "text.txt"
    for beginning in ("", "hello\n" * 1000, "…\n" * 1000):
        path.write_bytes((beginning + TALK).encode(encoding))
        raw = "".join(raw for raw, _ in chunks_of(path, chunk_bytes))
        assert raw == beginning + TALK
        said = capsys.readouterr().err
        name = encoding.removesuffix("-sig").upper()
        assert said.count(f"{path}: not UTF-8, read as {name}\n") == (name != "UTF-8")


def test_a_text_of_replacement_characters_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\ufffd\ufffd\n\ufffd好\n", "utf-8")
    assert chunks_of(path) == [("\ufffd\ufffd\n\ufffd好", "\ufffd\ufffd\n\ufffd好"), ("\n", "")]


@pytest.mark.parametrize("chunk_bytes", [None, 1, 4])
@pytest.mark.parametrize(
    "character", [*"\u200b\ufeff\u2060\xad\u3164\u2028\x85\u3000\xa0 \t\v\f", ""]
)
def test_a_line_that_shows_nothing_divides_dialogues(
    tmp_path: Path, character: str, chunk_bytes: int | None
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(
        f"\n{character}\n早\n好\n{character}{character}\n晚\u200b\n安\u200d \n{character}", "utf-8"
    )
    assert (
        "".join(clean for _, clean in chunks_of(path, chunk_bytes))
        == "早\n好\n\n晚\u200b\n安\u200d"
    )


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in names:
            packed.writestr(name, "早" * 100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "what", "advice"),
    [
        (archive("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "CSV UTF-8"),
        (archive("[Content_Types].xml", "word/document.xml"), "a Word document", "plain text"),
        (archive("chat.txt"), "a ZIP archive", "unpack"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file (.xls, .doc)", "CSV UTF-8"),
        (b"%PDF-1.7\n", "a PDF document", "plain text"),
        (b"{\\rtf1\\ansi", "a rich text document", "plain text"),
        (b"\x89PNG\r\n\x1a\n", "a picture", "a file of text"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a picture", "a file of text"),
        (b"BM\x36\x00\x0c\x00\0\0\0\0", "a picture", "a file of text"),
        (b"\0\0\0\x20ftypmp42", "a picture, sound or video", "a file of text"),
        (bz2.compress(b"1"), "a bzip2 archive", "unpack"),
        (gzip.compress(b"x" * 257 + b"ustar"), "an archive", "unpack"),
        (b"SQLite format 3\0", "a database", "export"),
        (b"PAR1", "a Parquet or Arrow table", "CSV or JSONL"),
        (b"\n <!DOCTYPE HTML><table>", "a web page (HTML)", "in Excel"),
        ("\ufeff<html>".encode(), "a web page (HTML)", "in Excel"),
        (b"<?xml version='1.0'?>", "an XML file", "CSV UTF-8"),
        (b"From: <Save>\r\nSubject: IM\r\nMIME-Version: 1.0\r\n", "a web archive", "export"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives tell the time
)
@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
def test_what_is_no_text_is_told_what_it_is(
    tmp_path: Path, content: bytes, what: str, advice: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    readers: list[Callable[[], object]] = [lambda: list(read_rows(path, ["review"]))]
    if what != "a Parquet or Arrow table":  # which dialogues are read from
        readers.append(lambda: list(text_chunks(path)))
    for read in readers:
        said = refusal(read)
        assert said.startswith(f"{path} is {what}") and advice in said
        assert "iconv" not in said


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_cut_off_or_damaged_archive(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    archive = compress("".join(chr(0x4E00 + i) for i in range(2000)).encode())
    path = tmp_path / "text"
    for left in (0.3, 0.5, 0.9):
        path.write_bytes(archive[: int(len(archive) * left)])
        assert problem_of(path).startswith(f"{path} is damaged or cut off")
    middle = len(archive) // 2
    path.write_bytes(archive[:middle] + bytes([archive[middle] ^ 0xFF]) + archive[middle + 1 :])
    assert problem_of(path).startswith(str(path))


def test_unusable_files_stop_before_any_work(tmp_path: Path) -> None:
    def check(path: Path) -> str:
        return refusal(lambda: check_files([path]))

    empty, bz2_file = tmp_path / "empty.txt", tmp_path / "text.bz2"
    empty.touch()
    bz2_file.write_bytes(bz2.compress(("早上好\n" * 1000).encode()))
    assert "unpack it" in problem_of(bz2_file)
    assert f"{tmp_path} is a directory" in check(tmp_path)
    assert f"{empty} is empty" in check(empty)
    assert "cannot be read" in check(tmp_path / ("long" * 1000))
    if Path("/dev/fd").exists():
        reading, writing = os.pipe()
        os.close(writing)
        assert "is a pipe or the like" in check(Path(f"/dev/fd/{reading}"))
        os.close(reading)
    missing = check(tmp_path / "missing.txt")
    assert "missing.txt not found" in missing
    for way_to_get_a_text in ("your own", "GPT2-chitchat", "smallgpt data smalltalk"):
        assert way_to_get_a_text in missing


def test_fingerprint_is_of_the_bytes_in_order(tmp_path: Path) -> None:
    def file(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    one, two, copy = file("one", "a"), file("two", "b"), file("copy", "a")
    both, rest = file("both", "ab"), file("rest", "")
    assert fingerprint([one]) == fingerprint([copy])
    different = [[one], [two], [one, two], [two, one], [both], [both, rest]]
    assert len({fingerprint(paths) for paths in different}) == len(different)


def test_a_misspelt_text_is_told_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never is another text to be made under the name that was typed."""
    monkeypatch.chdir(tmp_path)
    for name in ("my.txt", "requirements.txt", "picture.png", "other.jsonl"):
        (tmp_path / name).write_text("早\n好\n", "utf-8")
    small_talk = "smallgpt data smalltalk --output data/smalltalk.txt"
    for name in ("missing.txt", "mx.txt"):
        said = problem_of(Path(name))
        assert (
            "did you mean my.txt?" in said and small_talk in said and f"output {name}" not in said
        )
    assert "did you mean other.jsonl?" in problem_of(Path("x.jsonl"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("早\n好\n", "utf-8")
    said = problem_of(Path("data/smalltalk.txt"))
    assert "did you mean" not in said and small_talk in said
