"""Ctrl-C and SIGTERM ask the run to stop after the step in hand."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from smallgpt.distributed.world import World


class StopRequest:
    """`number` is that of the signal that has come, or 0."""

    number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C does not wait, it raises KeyboardInterrupt."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def agreed(self, world: World) -> bool:
        """Whether a signal has come to any of the processes; then all have received it."""
        received = world.max(self.number)
        if received:  # else one that came while they asked each other waits for the next time
            self.number = received
        return received != 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, Ctrl-C and SIGTERM are only noted, in the request it gives."""
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop.receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
