"""Ctrl-C, SIGTERM and a closed terminal ask the run to stop after the step in hand."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from smallgpt.distributed.world import World

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """`number` is that of the signal that has come, or 0."""

    number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C does not wait, it raises KeyboardInterrupt."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if number == _HANGUP:
            _let_go_of_terminal()

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
    """Within it, Ctrl-C, SIGTERM and SIGHUP are only noted, in the request it gives.

    SIGHUP stays ignored where it is (nohup): such a run outlives its terminal.
    """
    stop = StopRequest()
    numbers = {signal.SIGINT, signal.SIGTERM}
    if _HANGUP and signal.getsignal(_HANGUP) != signal.SIG_IGN:
        numbers.add(_HANGUP)
    previous = {number: signal.signal(number, stop.receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _let_go_of_terminal() -> None:
    """Send to nowhere what would be written to a terminal that is gone, which is an error."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
