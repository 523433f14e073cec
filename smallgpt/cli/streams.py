"""Standard input, output and error, made ready for a command."""

import io
import os
import sys
from contextlib import suppress


class _Notes(io.TextIOWrapper):
    """Standard error that leaves out what cannot be written: no message is worth the work."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def replace_closed() -> None:
    """Replace what the caller has closed (`<&-`), before another file gets its number.

    Input is at its end, an output is refused as soon as there is some, and notes go nowhere.
    """
    modes = {"stdin": os.O_RDONLY, "stdout": os.O_RDONLY, "stderr": os.O_WRONLY}
    for name, mode in modes.items():
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, mode)
            stream = open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: PTH123, SIM115
            setattr(sys, name, stream)


def prepare() -> None:
    """To a pipe or file, standard output is UTF-8; to a terminal what that shows, else `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = _Notes(sys.stderr.buffer, encoding, errors, line_buffering=True)
