"""Reading text files: every kind of newline and separator, compression, and what is refused."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallgpt.data import text as text_module
from smallgpt.data.text import check_files, fingerprint, read_text
from smallgpt.utils.errors import UserError

# Newlines, spaces of several kinds, characters of 1 to 4 bytes, and the byte order mark.
ALPHABET = ["\n", "\r", "\r\n", "\n\n", " ", "\u3000", "\t", "\x85", "\u2028", "a", "é", "好", "𠮷"]
ALPHABET += ["😀", "\ufeff"]
TEXTS = st.lists(st.sampled_from(ALPHABET), max_size=30).map("".join)


def naive_raw(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def naive_dialogues(text: str) -> list[str]:
    """An independent implementation, line by line: lists of utterances between blank lines."""
    dialogues: list[list[str]] = [[]]
    for line in naive_raw(text).rstrip().split("\n"):
        if line.strip():
            dialogues[-1].append(line)
        elif dialogues[-1]:
            dialogues.append([])
    return ["\n".join(utterances) for utterances in dialogues if utterances]


def chunks_of(path: Path, chunk_bytes: int | None = None) -> list[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        if chunk_bytes:
            patch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
        return list(read_text(path))


def problem_of(path: Path, read: Callable[[Path], object] = chunks_of) -> str:
    with pytest.raises(UserError) as stopped:
        read(path)
    return str(stopped.value)


def check(path: Path) -> None:
    check_files([path])


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, chunk_bytes=st.sampled_from([None, 1, 2, 3, 7]))
@example(text="好\r", chunk_bytes=None)
@example(text="好\r\r\n\n", chunk_bytes=1)
@example(text="\ufeff \n好\n \n\u3000\n呀", chunk_bytes=3)
def test_chunks_make_up_the_clean_text_whatever_their_size(
    text: str, chunk_bytes: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.txt"
    path.write_bytes(text.encode())
    chunks = chunks_of(path, chunk_bytes)
    assert "".join(raw for raw, _ in chunks) == naive_raw(text)
    assert "".join(clean for _, clean in chunks) == "\n\n".join(naive_dialogues(text))
    # Each separator lies in one chunk, so that whoever reads chunk by chunk finds it.
    assert not any(clean.endswith("\n") for _, clean in chunks)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gz", "xz"])
@pytest.mark.parametrize("chunk_bytes", [None, 5])
def test_compressed_text_is_read_whatever_its_name(
    tmp_path: Path, compress: Callable[[bytes], bytes], chunk_bytes: int | None
) -> None:
    text = "早上好\n早\n\n吃了吗\n吃了"
    path = tmp_path / "text"
    path.write_bytes(compress(text.encode()))
    assert "".join(clean for _, clean in chunks_of(path, chunk_bytes)) == text


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
    message = problem_of(path, lambda path: chunks_of(path, chunk_bytes))
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


def test_other_compression_is_refused_as_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.bz2"
    path.write_bytes(bz2.compress(("早上好\n" * 1000).encode()))
    assert "not UTF-8" in problem_of(path)


def test_unusable_files_stop_before_any_work(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert f"{tmp_path} is a directory" in problem_of(tmp_path, check)
    assert f"{empty} is empty" in problem_of(empty, check)
    assert "cannot be read" in problem_of(tmp_path / ("long" * 1000), check)
    missing = problem_of(tmp_path / "missing.txt", check)
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
