"""What people think of replies, in a file: a JSON object a line, for preference tuning later."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from smallgpt.server.protocol import Message
from smallgpt.utils.errors import UserError

SECONDS_TO_WAIT = 10.0
"""For another server that appends."""


class FeedbackFile:
    """Appends to a file, of which several servers may be at work.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise UserError(
                f"--feedback {path} cannot be written: {error.strerror}", "name another file"
            ) from None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)  # on Windows
        return os.open(self.path, flags, 0o600)

    def append(
        self,
        model: str,
        messages: Sequence[Message],
        verdict: str | None = None,
        correction: str | None = None,
    ) -> None:
        """Add what somebody thinks of the last message; it is on the disk when this returns.

        Args:
            verdict: up or down.
            correction: what they would have said instead.

        Raises:
            OSError: it cannot be, such as on a full disk; the file is as before.
        """
        said = [{"role": message.role, "content": message.text} for message in messages]
        record = {"time": round(time.time()), "model": model, "messages": said}
        given = {"verdict": verdict, "correction": correction}
        record |= {key: value for key, value in given.items() if value is not None}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with FileLock(f"{self.path}.lock", timeout=SECONDS_TO_WAIT, mode=0o600):
            file = self._open()
            try:
                size = os.fstat(file).st_size
                if size:
                    os.lseek(file, size - 1, os.SEEK_SET)
                    if os.read(file, 1) != b"\n":  # killed while it wrote
                        line = b"\n" + line
                try:
                    if os.write(file, line) < len(line):
                        raise OSError(28, "No space left on device")
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, size)
                    raise
            finally:
                os.close(file)
