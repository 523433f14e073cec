"""Reading text files: what is refused, and their fingerprint. See test_corpus.py for the rest."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.data import text as text_module
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
    ("content", "line", "byte", "encoding"),
    [
        ("你好\n再见\n".encode("gb18030"), 1, 0xC4, "GB18030"),
        ("你好".encode("utf-16"), 1, 0xFF, "UTF-16"),
        (b"a\nb\ncaf\xe9\nd\n", 3, 0xE9, "GB18030"),
        ("你好\r\n再见\r\n".encode() + b"\xff\r\n", 3, 0xFF, "GB18030"),
        ("你好\r再见\r".encode() + b"\xff\r", 3, 0xFF, "GB18030"),
        ("你好\n再见".encode()[:-1], 2, 0xE8, "GB18030"),
    ],
    ids=["gb18030", "utf-16", "latin", "crlf", "cr", "cut-off"],
)
def test_undecodable_bytes_are_named_with_their_line(
    tmp_path: Path, content: bytes, line: int, byte: int, encoding: str, chunk_bytes: int | None
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    message = problem_of(path, chunk_bytes)
    assert message.startswith(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x})")
    assert f"iconv -f {encoding} -t UTF-8 text.txt" in message


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
    assert "not UTF-8" in problem_of(bz2_file)
    assert f"{tmp_path} is a directory" in check(tmp_path)
    assert f"{empty} is empty" in check(empty)
    assert "cannot be read" in check(tmp_path / ("long" * 1000))
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
