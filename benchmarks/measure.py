"""What the benchmarks share: a process for each contestant, the machine's limits, JSON lines."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from smallgpt.utils.errors import UserError, note

CHITCHAT = Path("../shared/data/chitchat.txt.xz")
SMALLTALK = Path("data/smalltalk.txt")
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """A model's shape; rows of 256 a step of the plain recipe and, on a CPU, of ours."""

    layers: int
    heads: int
    width: int
    plain_rows: int
    our_rows: int

    def keys(self) -> dict[str, int]:
        """The shape as keys of a config."""
        return {"n_layer": self.layers, "n_head": self.heads, "n_embd": self.width}


SIZES = {
    "tiny": Size(2, 2, 32, 4, 4),
    "12M": Size(6, 6, 384, 32, 32),
    "90M": Size(12, 12, 768, 8, 16),
    "300M": Size(26, 15, 960, 8, 8),
}


def size_named(name: str) -> Size:
    """One of `SIZES`; a UserError lists them where there is none of that name."""
    if name not in SIZES:
        raise UserError(f"--size: {name!r} is unknown", f"use one of {', '.join(SIZES)}")
    return SIZES[name]


def benchmark_text(given: Path | None) -> Path:
    """The text to measure on: the one given, the chitchat corpus where it is at hand, else small
    talk of our own.
    """
    if given is not None and not given.exists():
        raise UserError(f"--data: {given} not found", "name a text file of dialogues")
    path = given or (CHITCHAT if CHITCHAT.exists() else SMALLTALK)
    if not path.exists():
        from smallgpt.demo.smalltalk import generate

        note(f"writing small talk to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(generate(60_000, 1)) + "\n", encoding="utf-8")
    note(f"text: {path}")
    return path


class Contestant:
    """An object in a process of its own, so that settings and peak memory are its own.

    Calls of several contestants alternate: while one works, the others sleep.

    Args:
        make: builds the object; called in the new process, so it must be importable.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        receive(self._connection)

    def call(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """Call a method of the object and wait for its result.

        Raises:
            UserError: what the method raised as such.
            RuntimeError: it failed otherwise; the message is its traceback.
            TimeoutError: it has taken so many seconds and more.
        """
        self._connection.send((method, args))
        if seconds is not None and not self._connection.poll(seconds):
            raise TimeoutError
        return receive(self._connection)

    def peak_memory(self) -> int:
        """Largest resident size of its process so far, in bytes."""
        return int(self.call("<peak memory>"))

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._connection.close()  # which ends `serve`
        if kind:
            self._process.terminate()  # and what it still does
        self._process.join(10)
        self._process.kill()
        self._process.join()


def receive(connection: Connection) -> Any:
    """The result of the call that `serve` was sent.

    Raises:
        UserError: what the method raised as such.
        RuntimeError: it failed otherwise, or its process is gone.
    """
    try:
        failed, result = connection.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError("a benchmark's process ended, perhaps out of memory") from None
    if failed:
        raise result if isinstance(result, UserError) else RuntimeError(result)
    return result


def serve(connection: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make an object and answer calls of its methods until the other end is closed.

    SIGTERM ends a call as an error does: what it has started is ended, what it wrote is removed.
    """
    signal.signal(signal.SIGTERM, _end_the_call)
    try:
        served = make(*args)
        connection.send((False, None))
        while True:
            method, args = connection.recv()
            call = peak_memory if method == "<peak memory>" else getattr(served, method)
            connection.send((False, call(*args)))
    except (EOFError, KeyboardInterrupt):
        return
    except UserError as error:
        connection.send((True, error))
    except BaseException:
        with suppress(OSError):  # nobody waits for it after SIGTERM
            connection.send((True, traceback.format_exc()))


def _end_the_call(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would end the cleaning up
    raise SystemExit(128 + number)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss starts at what the parent process had
        (size,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(size.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product: the best of several."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / min(timed(lambda: a @ b, device)[0] for _ in range(12))


def read_bandwidth(megabytes: int = 400, device: torch.device | None = None) -> float:
    """Bytes a second at which a device (the CPU) reads memory that no cache holds: the best of
    several."""
    numbers = torch.ones(megabytes * 250_000, device=device)
    return numbers.nbytes / min(timed(numbers.sum, device)[0] for _ in range(12))


def timed(work: Callable[[], T], device: torch.device | None = None) -> tuple[float, T]:
    """Wall-clock seconds of one call, until the device has finished, and what it returned."""
    finish = torch.cuda.synchronize if device and device.type == "cuda" else lambda device: None
    finish(device)
    began = time.perf_counter()
    result = work()
    finish(device)
    return time.perf_counter() - began, result


def print_json(**values: Any) -> None:
    """One JSON object on a line of standard output; floats with four significant digits."""
    shown = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps(shown, ensure_ascii=False), flush=True)
