"""C compiled for the machine it runs on, once."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from smallgpt.utils import atomic
from smallgpt.utils.errors import note

POSIX = os.name == "posix"
SECONDS = 120
"""A compiler that takes longer hangs."""
COMPILERS = ("cc", "gcc", "clang")
OPTIONS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-Wno-psabi")
FOR_THIS_CPU = ("-march=native", "-mcpu=native")  # the second is how some compilers for ARM say it


@cache
def compiled(source: Path, purpose: str) -> ctypes.CDLL | None:
    """The library that a C file makes, or None where it cannot be had, and why is said.

    It is kept in the user's cache folder under a name that changes with the source, the compiler
    and the processor. `CC` names another compiler, as it does elsewhere.

    Args:
        purpose: ends the sentence "compiling … for this CPU".
    """
    named = os.environ.get("CC", "").strip()
    try:
        wanted, *options = shlex.split(named) or [""]
    except ValueError:  # a quotation without an end
        wanted, options = named, []
    compiler = next(filter(None, map(shutil.which, [wanted] if named else COMPILERS)), None)
    if not POSIX:
        note(f"{purpose} is slower here: it is compiled on Linux and macOS only")
        return None
    if compiler is None:
        looked_for = f"CC={named}" if named else " or ".join(COMPILERS)
        note(f"no C compiler ({looked_for}) found: {purpose} is slower without one")
        return None
    command = [compiler, *options, *OPTIONS]
    key = hashlib.sha256(source.read_bytes())
    for part in (*command, str(Path(compiler).resolve().stat().st_mtime_ns), _processor()):
        key.update(part.encode() + b"\0")
    name = f"{source.stem}-{key.hexdigest()[:24]}.so"
    try:
        return _library(source, command, _cache_folder() / name, purpose)
    except OSError:  # a home that cannot be written, that others can write, or that runs nothing
        pass
    try:
        with tempfile.TemporaryDirectory(prefix="smallgpt-") as folder:
            return _library(source, command, Path(folder) / name, purpose)
    except OSError as error:  # nor is there room, or leave to run anything, for temporary files
        note(f"{purpose} is slower, as it cannot be compiled: {error}")
        return None


def _library(source: Path, command: list[str], path: Path, purpose: str) -> ctypes.CDLL | None:
    if _is_ours(path):
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink()  # damaged
    note(f"compiling {purpose} for this CPU, once")
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=path.parent) as folder:
        work, said = Path(folder) / path.name, ""
        for option in FOR_THIS_CPU:
            compiling = [*command, option, str(source), "-o", str(work), "-lm"]
            try:
                done = subprocess.run(
                    compiling, capture_output=True, text=True, errors="replace", timeout=SECONDS
                )
            except subprocess.TimeoutExpired:
                said = f"error: it took more than {SECONDS} seconds"
                break
            said = said or done.stderr
            if done.returncode == 0:
                work.chmod(0o700)  # whatever the umask: see `_is_ours`
                atomic.put(work, path)
                return ctypes.CDLL(str(path))
    reason = next(iter(re.findall(r".*error.*", said)), said.strip()[:200])
    note(f"{command[0]} failed: {purpose} is slower without it\n  {reason}")
    return None


def _is_ours(path: Path) -> bool:
    """Whether it is there, and nobody else could have written it: it is about to be run."""
    try:
        found, folder = path.stat(), path.parent.stat()
    except FileNotFoundError:
        return False
    if found.st_uid == folder.st_uid == os.getuid() and not (found.st_mode | folder.st_mode) & 0o22:
        return True
    raise PermissionError(f"{path.parent} can be written by others")


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "smallgpt"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """What the compiler's choice of instructions depends on: a home may be shared by machines."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part")
    lines = {line for line in described.splitlines() if line.startswith(kept)}
    return "\n".join(sorted(lines))
