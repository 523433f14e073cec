"""Files and directories that appear complete or not at all, whoever writes beside them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from smallgpt.utils import atomic
from tests.helpers.processes import python_environment

PROGRAM = """
import sys
from pathlib import Path
from smallgpt.utils import atomic

def wait(*arguments, **options):
    print("so far", flush=True)
    sys.stdin.read()

def rename_and_wait(old, new, rename=Path.rename):
    rename(old, new)
    wait()

"""
# What a process does before it has come so far, and waits.
WRITERS = {
    "directory": "with atomic.directory(Path('x')) as work: (work / 'part').touch(); wait()",
    "file": "with atomic.file(Path('x')) as work: work.touch(); wait()",
    "remove": "Path('x').mkdir(); atomic.shutil.rmtree = wait; atomic.remove(Path('x'))",
    "replace": """(Path('x') / 'old').mkdir(parents=True)
with atomic.directory(Path('x')): Path.rename = rename_and_wait""",
}


@contextmanager
def writing(folder: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the midst of writing (or deleting) `x` in `folder`; it ends with its input."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + WRITERS[how]],
        cwd=folder,
        env=python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "so far\n"
        yield process


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def write_directory(target: Path) -> None:
    with atomic.directory(target) as work:
        (work / "part").touch()


@pytest.mark.parametrize("how", WRITERS)
def test_what_a_killed_writer_left_is_removed_and_what_it_moved_away_put_back(
    tmp_path: Path, how: str
) -> None:
    with writing(tmp_path, how) as process:
        process.kill()
    assert len(hidden(tmp_path)) == 1
    assert not (tmp_path / "x").exists()
    with atomic.file(tmp_path / "other") as work:
        work.touch()
    assert not hidden(tmp_path)
    assert (tmp_path / "x" / "old").exists() == (how == "replace")


@pytest.mark.parametrize("how", ["directory", "file", "replace"])
def test_a_living_writer_is_left_alone(tmp_path: Path, how: str) -> None:
    with writing(tmp_path, how) as process:
        write_directory(tmp_path / "y")
        process.communicate("")
    assert process.returncode == 0
    assert (tmp_path / "x").exists()
    assert not hidden(tmp_path)


def test_a_pipe_is_written_to_and_a_link_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic.file(pipe) as work:
        work.write_text("x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    assert pipe.is_fifo()
    link.symlink_to("folder/file")
    (tmp_path / "folder").mkdir()
    for text in ("new", "replaced"):
        with atomic.file(link) as work:
            work.write_text(text)
        assert (tmp_path / "folder" / "file").read_text() == text
        assert link.is_symlink()
    with atomic.file(Path(os.devnull)) as work:
        work.write_text("x")
    assert not Path(os.devnull).is_file()


def test_writers_with_the_same_process_id_do_not_meet(tmp_path: Path) -> None:
    """As the first processes of two containers."""
    with atomic.directory(tmp_path / "x") as one, atomic.file(tmp_path / "x.txt") as two:
        write_directory(tmp_path / "x")
        write_directory(tmp_path / "y")
        (one / "mine").touch()
        two.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.txt", "y"]
    assert (tmp_path / "x" / "mine").exists()


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    names = [
        ".writing-cpt4-123456",  # as versions before this one named them
        ".replaced-cpt4-123456",
        ".removed-cpt4-123456",
        ".writing-cpt4-abcd_123",
        ".writing-notes",
        ".writing--abcd_123",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    for name in ("smallgpt.lock", ".writing-smallgpt.lock", ".writing-a_file-abcd_123"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    write_directory(tmp_path / "x")
    atomic.remove(tmp_path / "x")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_what_a_writer_killed_before_its_lock_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".writing-cpt4-abcd_123").mkdir()
    write_directory(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]

    make, made = tempfile.mkdtemp, []

    def removed_by_another(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", removed_by_another)
    write_directory(tmp_path / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_writer_taken_for_a_leftover_before_it_is_locked_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, failures = FileLock.acquire, [Timeout("taken"), FileNotFoundError()]

    def taken(self: FileLock, *, blocking: bool) -> object:
        if failures:
            raise failures.pop()
        return acquire(self, blocking=blocking)

    monkeypatch.setattr(FileLock, "acquire", taken)
    with atomic.file(tmp_path / "x") as work:
        work.write_text("x")
    assert (tmp_path / "x").read_text() == "x"
    assert not failures


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_nothing_can_be_locked_all_else_works_and_leftovers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with writing(tmp_path, "directory") as process:
        process.kill()
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_directory(tmp_path / "x")
    write_directory(tmp_path / "x")
    with atomic.exclusive(tmp_path), atomic.exclusive(tmp_path):
        pass
    assert (tmp_path / "x" / "part").exists()
    assert len([path for path in hidden(tmp_path) if path.is_dir()]) == 1
    monkeypatch.undo()
    write_directory(tmp_path / "x")
    assert [path.name for path in hidden(tmp_path)] == [atomic.LOCK_FILE]


def test_a_folder_has_one_process_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with atomic.exclusive(folder), pytest.raises(BlockingIOError), atomic.exclusive(folder):
        pass
    with atomic.exclusive(folder):
        pass
