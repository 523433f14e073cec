"""Errors that the user can fix: a message that says how, and no traceback."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as the shell counts a program that SIGPIPE ends
SECONDS_FOR_FIRST_PROCESS = 3.0
"""When all processes of a machine find the same error, its first one reports it; the others wait
this long before they would, and torchrun ends them meanwhile."""

_quiet = False


class UserError(Exception):
    """Something the user can fix.

    Args:
        problem: what is wrong and where (file, line, key, value).
        advice: how to fix it; may be empty.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.advice}" if self.advice else self.problem


def note(message: str = "") -> None:
    """Print a message to standard error, as everything but replies and results."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def be_quiet() -> None:
    """Silence `note`: another process of this run speaks for all."""
    global _quiet
    _quiet = True


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn `UserError` and Ctrl-C into one message and an exit code, with no traceback.

    Every command runs inside this; it can also be used as a decorator.
    """
    try:
        yield
        sys.stdout.flush()  # here, not at exit, where an error would be a traceback
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SECONDS_FOR_FIRST_PROCESS)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except ModuleNotFoundError as error:
        missing = (error.name or "smallgpt").partition(".")[0]
        if missing == "smallgpt":
            raise
        note(f"error: {_how_to_install(missing)}")
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        note("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        _close_output()  # its reader went away (`… | head`)
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)
            note(f"error: {name[:60]} … is too long for a path\n  -> is one missing before it?")
            raise SystemExit(EXIT_BAD_INPUT) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _close_output()
        note(f"error: the output cannot be written: {error.strerror}\n  -> make room on the disk")
        raise SystemExit(EXIT_BAD_INPUT) from None


def _how_to_install(package: str) -> str:
    """One line: a newcomer's first message, where the environment was not made or not activated."""
    for python in (Path(".venv", "bin", "python"), Path(".venv", "Scripts", "python.exe")):
        if python.exists() and not Path(sys.prefix).samefile(".venv"):
            return f"{sys.executable} has no {package}: use {python}, or activate .venv"
    install = f"{sys.executable} -m pip install -r requirements.txt"
    return f"{sys.executable} has no {package}: run make demo, or {install}"


def _close_output() -> None:
    """Point standard output at nothing, so that Python's flush at exit stays silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
