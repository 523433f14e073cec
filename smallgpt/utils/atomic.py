"""Directories and files that are complete or not there, and locks.

Each is written beside its place, under a name with the number of the writing process, and
renamed. What a killed process left behind is removed by the next writer.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_LEFTOVER = re.compile(r"\.(writing|replaced|removed)-(.+)-(\d{1,9})")


@contextmanager
def directory(target: Path) -> Iterator[Path]:
    """A new, empty directory to write files into, which becomes `target` at the end of the block.

    One that is there already is replaced. Where the block or the renaming fails, all is as before.

    Raises:
        OSError: it cannot be written.
    """
    work = _beside(target, "writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target.parent)
        work.mkdir()
        yield work
        for path in (*work.iterdir(), work):
            _to_disk(path)
        _put_in_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def file(target: Path) -> Iterator[Path]:
    """The path of a file to write, which becomes `target` at the end of the block.

    One that is there already is replaced. Where the block or the renaming fails, all is as before.

    Raises:
        OSError: it cannot be written.
    """
    work = _beside(target, "writing")
    try:
        _clean_up(target.parent, own=False)  # several may be written side by side
        yield work
        put(work, target)
    finally:
        work.unlink(missing_ok=True)


def put(work: Path, target: Path) -> None:
    """Make a finished file, on the same disk, `target`; one that is there already is replaced.

    Raises:
        OSError: it cannot be renamed.
    """
    _to_disk(work)
    work.replace(target)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made where it is missing.

    The system drops the lock when the process ends, however it ends. Where the system (Windows) or
    the file system cannot lock there is no lock.

    Raises:
        BlockingIOError: another process is at work in it.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
                raise
        yield


def remove(path: Path) -> None:
    """Delete a directory; at no time is there half of it."""
    gone = path.rename(_beside(path, "removed"))
    shutil.rmtree(gone, ignore_errors=True)


def _beside(target: Path, state: str) -> Path:
    return target.with_name(f".{state}-{target.name}-{os.getpid()}")


def _put_in_place(work: Path, target: Path) -> None:
    old = _beside(target, "replaced")
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        work.rename(target)
    except BaseException:  # Ctrl-C too
        if replaces:
            old.rename(target)
        raise
    try:
        _to_disk(target.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _clean_up(folder: Path, own: bool = True) -> None:
    """Remove what processes that were killed left here; put back what they had moved away.

    Args:
        own: also what has this process's number, which another one had before.
    """
    for path in list(folder.iterdir()):
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover is None or _belongs_to_another(int(leftover[3])):
            continue
        if not own and int(leftover[3]) == os.getpid():
            continue
        place = folder / leftover[2]
        if leftover[1] == "replaced" and not place.exists():
            path.rename(place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _belongs_to_another(process: int) -> bool:
    """Whether another process of this number runs."""
    if process == os.getpid():
        return False
    if os.name != "posix":
        return True  # unknown: there, os.kill would not ask but kill
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _to_disk(path: Path) -> None:
    """fsync, so that a power cut after the renaming finds the contents too."""
    if os.name != "posix":
        return  # there, only a file opened for writing can be flushed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)
