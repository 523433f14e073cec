"""Background work, whose result is waited for only when it is needed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def begin(work: Callable[[], Result]) -> Future[Result]:
    """Start `work` in a thread of its own. What it raises is raised where its result is asked for.

    A program that ends waits for its threads: long work must call `end_with_the_program` now and
    then. (A daemon thread would be running in torch while that is torn down.)
    """
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def end_with_the_program() -> None:
    """End background work if the program is ending and nobody waits for the result any more."""
    if not threading.main_thread().is_alive():
        raise SystemExit
