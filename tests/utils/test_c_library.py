"""Compiling C once, and what happens where that cannot be."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from smallgpt.utils import c_library


def compiled(source: Path, purpose: str) -> Any:
    """Each call is as in a new process."""
    return c_library.compiled.__wrapped__(source, purpose)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return 42; }\n")
    return file


def libraries(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "smallgpt").iterdir())


def test_it_is_compiled_once_and_anew_when_the_source_changes(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled(source, "the answer").answer() == 42
    assert capsys.readouterr().err == "compiling the answer for this CPU, once\n"
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert compiled(source, "the answer").answer() == 42
    assert capsys.readouterr().err == ""
    source.write_text("int answer(void) { return 43; }\n")
    assert compiled(source, "the answer").answer() == 43
    assert [path.suffix for path in libraries(source)] == [".so", ".so"]


def test_another_processor_has_another_library(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(source, "the answer")
    monkeypatch.setattr(c_library, "_processor", lambda: "another")
    compiled(source, "the answer")
    assert len(libraries(source)) == 2


@pytest.mark.parametrize("how", ["CC names none", "none on the path", "not posix"])
def test_without_a_compiler_it_says_so(
    how: str, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "CC names none":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif how == "none on the path":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(c_library, "POSIX", False)
    assert compiled(source, "the answer") is None
    said = capsys.readouterr().err
    assert ("no C compiler" in said) == (how != "not posix")
    assert "the answer is slower" in said
    assert ("CC=no-such-compiler" in said) == (how == "CC names none")


def test_c_that_does_not_compile_leaves_nothing_behind(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text("int answer(void) { return fourty_two; }\n")
    assert compiled(source, "the answer") is None
    said = capsys.readouterr().err
    assert "failed: the answer is slower without it" in said and "fourty_two" in said
    assert libraries(source) == []


def test_files_that_a_group_may_write_by_default_are_kept_too(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o002)  # as on Fedora, and wherever each user has a group of his own
    try:
        compiled(source, "the answer")
        assert compiled(source, "the answer").answer() == 42
    finally:
        os.umask(before)
    assert capsys.readouterr().err == "compiling the answer for this CPU, once\n"


def test_where_nothing_that_was_compiled_may_run_it_says_so(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert compiled(source, "the answer") is None
    assert "failed to map segment" in capsys.readouterr().err


def test_a_compiler_that_hangs_is_given_up(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = source.parent / "cc"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(c_library, "SECONDS", 0.1)
    assert compiled(source, "the answer") is None
    assert "took more than 0.1 seconds" in capsys.readouterr().err
    assert libraries(source) == []


@pytest.mark.parametrize("named", ["", " ", '"', "no-such-compiler --option"])
def test_whatever_cc_holds_it_does_not_end_the_program(
    named: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", named)
    library = compiled(source, "the answer")
    assert (library is not None) == (not named.strip())


def test_a_home_that_cannot_be_written_does_not_matter(source: Path) -> None:
    (source.parent / "cache").write_text("a file where the folder should be")
    assert compiled(source, "the answer").answer() == 42


def test_what_others_can_write_is_not_run(source: Path) -> None:
    compiled(source, "the answer")
    [library] = libraries(source)
    library.unlink()
    library.write_bytes(b"not a library")
    library.chmod(0o666)
    assert compiled(source, "the answer").answer() == 42


def test_a_damaged_library_is_compiled_anew(source: Path) -> None:
    compiled(source, "the answer")
    [library] = libraries(source)
    half = library.read_bytes()[:1000]
    library.unlink()  # not into the file that this process runs
    library.write_bytes(half)
    assert compiled(source, "the answer").answer() == 42


def test_two_at_once_get_it_both(source: Path) -> None:
    found = list[int]()
    asking = [
        threading.Thread(target=lambda: found.append(compiled(source, "it").answer()))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert found == [42] * 4
    assert len(libraries(source)) == 1


def test_the_users_compiler_is_taken(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{shutil.which('cc')} -Danswer=renamed")
    assert compiled(source, "the answer").renamed() == 42
