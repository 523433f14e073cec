"""Work behind the user's back, whose result is waited for only when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def begin(work: Callable[[], Result]) -> Future[Result]:
    """Start `work` in a thread of its own. What it raises is raised where its result is asked for.

    A program that ends waits for its threads: long work must call `end_with_the_program` now and
    then. (A daemon thread would be running in torch while that is torn down.)
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future


def end_with_the_program() -> None:
    """Leave work begun here where the program is ending and nobody waits for it any more."""
    if not threading.main_thread().is_alive():
        raise SystemExit
