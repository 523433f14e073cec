"""The benchmark of text to ids: its numbers. tests/data/test_corpus.py compares the ids."""

import json
import lzma
from pathlib import Path

import pytest

from benchmarks.data import main as benchmark
from smallgpt.demo.smalltalk import generate

FIELDS = {
    "text",
    "text_mb",
    "decompression_seconds",
    "cold_seconds",
    "cold_seconds_beyond_decompression",
    "mb_per_second",
    "cores_used",
    "plain_mb_per_second",
    "plain_sample_mb",
    "times_plain",
    "warm_seconds",
    "program_mb",
    "peak_mb",
    "peak_by_text",
}


@pytest.mark.slow
def test_one_line_a_text_with_all_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(generate(300, 1)).encode()
    (tmp_path / "plain.txt").write_bytes(text)
    (tmp_path / "packed.txt.xz").write_bytes(lzma.compress(text))
    benchmark([tmp_path / "plain.txt", tmp_path / "packed.txt.xz"])
    plain, packed = map(json.loads, capsys.readouterr().out.splitlines())
    assert [plain["text"], packed["text"]] == ["plain.txt", "packed.txt.xz"]
    assert plain["decompression_seconds"] == 0 < packed["decompression_seconds"]
    assert plain["cold_seconds"] == plain["cold_seconds_beyond_decompression"]
    for found in (plain, packed):
        assert set(found) == FIELDS
        assert found["text_mb"] == pytest.approx(len(text) / 1e6, rel=1e-3)
        assert found["plain_sample_mb"] == found["text_mb"]
        assert 0 < found["warm_seconds"] < found["cold_seconds"]
        assert found["times_plain"] == pytest.approx(
            found["mb_per_second"] / found["plain_mb_per_second"], rel=1e-2
        )
        assert 0 < found["program_mb"] <= found["peak_mb"]
        assert found["peak_by_text"] == pytest.approx(found["peak_mb"] / found["text_mb"], rel=1e-2)
    # Nothing of the user's is touched: no cache beside the texts.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed.txt.xz", "plain.txt"]


def test_unusable_texts_are_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("早\n好\n".encode() + b"\xff")
    missing = tmp_path / "missing.txt"
    unusable = {missing: "not found", tmp_path: "is a directory", bad: "line 3: not UTF-8"}
    for path, problem in unusable.items():
        with pytest.raises(SystemExit) as stopped:
            benchmark([path])
        assert stopped.value.code == 2
        said = capsys.readouterr()
        assert problem in said.err
        assert "Traceback" not in said.err
        assert not said.out
