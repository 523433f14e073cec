"""What a user can put right is told in words, without a traceback."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as the shell counts a program that SIGPIPE ends
SECONDS_FOR_THE_FIRST = 3.0
"""Where torchrun started several processes and all find the same error, the first of the machine
tells it; the others wait so long before they do, and torchrun ends them meanwhile."""

_quiet = False


class UserError(Exception):
    """Something the user can put right.

    Args:
        problem: what is wrong and where (file, line, key, value).
        advice: what to do about it; may be empty.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.advice}" if self.advice else self.problem


def note(message: str = "") -> None:
    """Tell the user something. Everything but replies and results goes to standard error."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def be_quiet() -> None:
    """From now on `note` says nothing: another process of this run speaks for all."""
    global _quiet
    _quiet = True


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn `UserError` and Ctrl-C into one message and an exit code, with no traceback.

    Every command runs inside this; it serves as a decorator too.
    """
    try:
        yield
        sys.stdout.flush()  # here, where an error is told in words, not at exit
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SECONDS_FOR_THE_FIRST)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        note("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        _close_output()  # its reader went away (`… | head`)
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _close_output()
        note(f"error: the output cannot be written: {error.strerror}\n  -> make room on the disk")
        raise SystemExit(EXIT_BAD_INPUT) from None


def _close_output() -> None:
    """Point standard output at nothing, so that Python's flush at exit stays silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
