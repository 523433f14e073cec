"""Directories and files that appear complete or not at all, and locks.

Each is written in a work folder beside its place and then renamed. The writer holds a lock in that
folder until it ends, however it ends. So the next writer, on whichever machine or in whichever
container, can tell the leftovers of a killed one from the work of a living one, and removes them.
Where the file system cannot lock, leftovers stay.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
_WORK_FOLDER = re.compile(r"\.writing-(.+)-[a-z0-9_]{8}")
_WORK_LOCK = "smallgpt.lock"  # by this name in it a work folder is known to be ours
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)


@contextmanager
def directory(target: Path) -> Iterator[Path]:
    """A new, empty directory to write files into, which becomes `target` at the end of the block.

    An existing one is replaced. If the block or the renaming fails, everything is as before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(target) as work:
        new = work / "new"
        new.mkdir()
        yield new
        for path in (*new.iterdir(), new):
            to_disk(path)
        if target.exists():
            target.rename(work / "old")
        new.rename(target)  # where this fails, `_discard` puts the old one back
        to_disk(target.parent)


@contextmanager
def file(target: Path) -> Iterator[Path]:
    """The path of a file to write, which becomes `target` at the end of the block.

    Otherwise as `directory`. A device or a pipe, such as /dev/null, is written to directly, never
    replaced; a link stays, and what it leads to is replaced.
    """
    if is_device(target):
        yield target
        return
    target = target.resolve()
    with _work_folder(target) as work:
        yield work / "new"
        put(work / "new", target)


def is_device(path: Path) -> bool:
    """Whether there is something at `path` that is written to, but is neither file nor folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def put(work: Path, target: Path) -> None:
    """Make a finished file, on the same disk, `target`; an existing one is replaced."""
    to_disk(work)
    work.replace(target)


def remove(path: Path) -> None:
    """Delete a directory; at no time is there half of it."""
    with _work_folder(path) as work:
        path.rename(work / "removed")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if it is missing.

    The system drops the lock when the process ends, however it ends. Where another process is at
    work in it, this raises BlockingIOError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquired(FileLock(folder / LOCK_FILE))
    except Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process", folder) from None
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock) -> FileLock:
    """The lock, held now unless the file system cannot lock; Timeout if another process has it."""
    try:
        lock.acquire(blocking=False)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
    return lock


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A locked folder beside `target`, which is gone at the end of the block."""
    _remove_leftovers(target.parent)
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".writing-{target.name}-", dir=target.parent))
        try:
            lock = _acquired(_lock_of(work))
            break
        except (Timeout, FileNotFoundError):
            continue  # not locked yet, it looked like a leftover to another writer
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    try:
        yield work
    finally:
        _discard(work, target, lock)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`; put back what they had moved away."""
    for work in folder.glob(".writing-*"):
        name = _WORK_FOLDER.fullmatch(work.name)
        if name:
            with suppress(OSError):  # not empty
                work.rmdir()  # a writer that lives, and has no lock yet, begins anew
        if name and (work / _WORK_LOCK).is_file():
            with suppress(OSError):  # Timeout too: its writer lives
                lock = _lock_of(work)
                lock.acquire(blocking=False)
                _discard(work, folder / name[1], lock)


def _lock_of(work: Path) -> FileLock:
    return FileLock(work / _WORK_LOCK, mode=0o600)


def _discard(work: Path, target: Path, lock: FileLock) -> None:
    """Remove a work folder, its lock last; put `target` back if it was moved away for nothing."""
    try:
        if (work / "old").exists() and not target.exists():
            (work / "old").rename(target)
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _WORK_LOCK:
                path.unlink(missing_ok=True)
    finally:
        lock.release()
    shutil.rmtree(work, ignore_errors=True)


def to_disk(path: Path) -> None:
    """fsync, so that a power cut after the renaming finds the contents too."""
    if os.name != "posix":
        return  # there, only a file opened for writing can be flushed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
