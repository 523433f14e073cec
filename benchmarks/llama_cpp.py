"""llama.cpp's server, timed as `benchmarks.generation` times ours."""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from smallgpt.utils.errors import UserError

LENGTH = 48
"""Characters of a reply, where several are drawn."""


class LlamaCpp:
    """A model in llama.cpp's server, with random prompts; made in its own process."""

    def __init__(self, path: Path, vocab_size: int, context: int, threads: int, rows: int) -> None:
        try:
            import xllamacpp
        except ModuleNotFoundError:
            raise UserError(
                "--peer needs xllamacpp", "install it: pip install -r requirements-dev.txt"
            ) from None
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = context * rows, rows
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_gpu_layers, parameters.verbosity = 0, -1
        self._server = xllamacpp.Server(parameters)
        self._vocab_size = vocab_size

    def address(self) -> str:
        """Where it answers HTTP."""
        return str(self._server.listening_address)

    def seconds_a_character(self, context: int, rows: int, characters: int) -> float:
        """As of `Ours.seconds_a_character`."""
        begin = context - characters // 2 - 1
        if rows == 1:
            times = self._times(begin, characters + 2)
            return median(later - earlier for earlier, later in itertools.pairwise(times))
        replies: list[list[float]] = [[] for _ in range(rows)]
        asking = [
            threading.Thread(target=lambda to: to.extend(self._times(begin, LENGTH)), args=(to,))
            for to in replies
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        # While all are replying: from when the last has begun to when the first ends.
        start, end = max(times[1] for times in replies), min(times[-1] for times in replies)
        if start >= end:  # a tiny model never has all
            start, end = min(times[1] for times in replies), max(times[-1] for times in replies)
        return (end - start) / sum(start < at <= end for times in replies for at in times[1:])

    def seconds_to_first(self, prompt: int) -> float:
        """From a prompt of so many characters to the first of the reply."""
        times = self._times(prompt, 1)
        return times[1] - times[0]

    def _times(self, prompt: int, characters: int) -> list[float]:
        """When a reply began, and when each of its characters came."""
        times = [time.perf_counter()]

        def heard(chunk: Any) -> None:
            times.append(time.perf_counter())

        wanted = {
            "prompt": [random.randrange(3, self._vocab_size) for _ in range(prompt)],
            "n_predict": characters,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        self._server.handle_completions(wanted, heard)
        return times[: characters + 1]  # a last chunk says why it ended
