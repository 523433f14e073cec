"""Ctrl-C and SIGTERM ask the run to stop after the step in hand."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from smallgpt.distributed.world import World


class StopRequest:
    """Within `with StopRequest() as stop:`, `stop.signal` is the signal received, or None.

    A second Ctrl-C does not wait: it raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def agreed(self, world: World) -> bool:
        """Whether a signal has come to any of the processes; then all have received it."""
        received = world.max(self.signal or 0)
        if received:  # else one that came while they asked each other waits for the next time
            self.signal = received
        return received != 0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or 0)
