"""Many clients at once: characters a second, the wait for the first, what the server adds.

    python -m benchmarks.serving --peer llama.cpp
    python -m benchmarks.serving --size 90M --clients 8 --rounds 5

The server is `smallgpt serve` as users start it, with random weights in bfloat16 and 8 slots, on
the CPU; with `--peer` it takes turns with llama.cpp's server, which has as many slots and threads.
All clients stream a reply of 48 characters to a prompt of 20 that nobody sent before, from a
process of their own. What the server adds to a character is measured against the bare `Batch`, in
the same run. Its memory is measured on a tiny model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from benchmarks.generation import CONTEXTS, Ours, save_random, shape_of
from benchmarks.llama_cpp import LENGTH, LlamaCpp
from benchmarks.measure import Contestant, print_json
from smallgpt.checkpoints import gguf
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.cli.arguments import CHAT_SPINS
from smallgpt.utils.errors import note, user_errors

CLIENTS = (1, 2, 4, 8, 16, 64)
SLOTS, QUEUE = 8, 64
PROMPT = 20
"""Characters of a prompt."""
UNREAD = 60
"""Characters of the prompt for which an idle server's first character is waited for."""
OURS: Mapping[str, Any] = {"max_repeats": 0}
THEIRS: Mapping[str, Any] = {"ignore_eos": True, "cache_prompt": False}
_TEXT = re.compile(rb'"text": ?("(?:[^"\\]|\\.)+")')


@dataclass
class Streamed:
    """A reply: when it was asked for, and when how many characters of it came."""

    asked: float
    status: int = 0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def characters(self) -> int:
        """Of the whole reply."""
        return sum(self.counts)

    @property
    def seconds_to_first(self) -> float:
        """That the client waited."""
        return self.times[0] - self.asked


class Clients:
    """Clients that ask at the same time; made in a process of their own."""

    def stream(self, url: str, bodies: Sequence[Mapping[str, Any]], at_once: int) -> list[Streamed]:
        """Ask for completions, so many at a time."""
        return asyncio.run(self._stream(url, bodies, at_once))

    async def _stream(
        self, url: str, bodies: Sequence[Mapping[str, Any]], at_once: int
    ) -> list[Streamed]:
        free = asyncio.Semaphore(at_once)
        address = urlsplit(url)
        assert address.hostname and address.port

        async def one(body: Mapping[str, Any]) -> Streamed:
            async with free:
                return await _ask(str(address.hostname), int(address.port or 0), body)

        return list(await asyncio.gather(*map(one, bodies)))


async def _ask(host: str, port: int, body: Mapping[str, Any]) -> Streamed:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    reply = Streamed(time.perf_counter())
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head.encode() + data)
    reply.status = int((await reader.readline()).split()[1])
    async for line in reader:
        if texts := _TEXT.findall(line):
            reply.times.append(time.perf_counter())
            reply.counts.append(sum(len(json.loads(text)) for text in texts))
    writer.close()
    return reply


def characters_a_second(replies: Sequence[Streamed]) -> float:
    """From the first request to the last character, prompts included."""
    end = max(reply.times[-1] for reply in replies)
    return sum(reply.characters for reply in replies) / (
        end - min(reply.asked for reply in replies)
    )


def seconds_a_character(replies: Sequence[Streamed]) -> float:
    """The median over the characters of all replies, which take a step together, divided by their
    number."""
    gaps = [later - at for reply in replies for at, later in itertools.pairwise(reply.times)]
    return median(gaps) / len(replies)


@contextmanager
def smallgpt_serve(checkpoint: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The server as a command: its address, and its process."""
    command = [sys.executable, "-m", "smallgpt", "serve", str(checkpoint), "--no-browser"]
    command += ["--port", "0", "--slots", str(SLOTS), "--queue", str(QUEUE), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            said = process.stdout.readline()
            if not said:
                raise RuntimeError("the server ended")
            yield said.split()[-1], process.pid
        finally:
            process.terminate()


def resident_megabytes(pid: int) -> float:
    """Memory that a process has now, by /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def bodies(
    characters: Sequence[str], count: int, prompt: int, more: Mapping[str, Any]
) -> list[Any]:
    """Requests for replies of `LENGTH` characters to prompts that nobody sent before."""
    same = {"max_tokens": LENGTH, "temperature": 0, "stream": True, **more}
    return [{"prompt": "".join(random.choices(characters, k=prompt)), **same} for _ in range(count)]


def main(
    size: Annotated[str, typer.Option(help="90M or 300M.")] = "300M",
    clients: Annotated[list[int] | None, typer.Option(help="At once; several times.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 3,
    requests: Annotated[int, typer.Option(help="After which memory is looked at.")] = 10_000,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model, to try this out.")] = False,
    peer: Annotated[Literal["llama.cpp"] | None, typer.Option(help="Compare with it.")] = None,
) -> None:
    """Print one JSON object a case."""
    size = "tiny" if quick else size
    shape = shape_of(size)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        asking = stack.enter_context(Contestant(Clients))
        note(f"{size}: writing a checkpoint")
        path = save_random(shape, Path(folder, "run"))
        stored = open_checkpoint(path)
        ours, _ = stack.enter_context(smallgpt_serve(path, "--dtype", "bfloat16"))
        servers = {"ours": (ours, OURS)}
        os.environ["GOMP_SPINCOUNT"] = CHAT_SPINS
        bare = stack.enter_context(Contestant(Ours, size, "bfloat16"))
        if peer:
            file = Path(folder, "model.gguf")
            gguf.write(stored, file, "bf16")
            threads = int(bare.call("threads"))
            limits = file, shape.vocab_size, shape.block_size, threads, SLOTS
            llama = stack.enter_context(Contestant(LlamaCpp, *limits))
            servers[peer] = llama.call("address"), THEIRS
        letters = stored.tokenizer.characters
        for count in clients or CLIENTS:
            compare(asking, servers, letters, count, rounds)
        for rows in (1, SLOTS):
            overhead(asking, bare, ours, letters, rows, rounds)
        first_when_idle(asking, servers, letters, rounds)
    if requests:
        memory(requests)


def compare(
    asking: Contestant,
    servers: Mapping[str, tuple[str, Mapping[str, Any]]],
    letters: Sequence[str],
    count: int,
    rounds: int,
) -> None:
    """Characters a second and the wait for the first of so many clients, of each server."""
    turns: dict[str, list[list[Streamed]]] = {who: [] for who in servers}
    for _ in range(rounds):
        for who, (url, more) in servers.items():
            replies = asking.call("stream", url, bodies(letters, count, PROMPT, more), count)
            turns[who].append(replies)
    speeds = {who: median(map(characters_a_second, several)) for who, several in turns.items()}
    for who, several in turns.items():
        firsts = [[reply.seconds_to_first for reply in replies] for replies in several]
        print_json(
            case="clients",
            who=who,
            clients=count,
            characters_a_second=speeds[who],
            ms_to_first_character=1000 * median(map(median, firsts)),
            slowest_ms_to_first_character=1000 * median(map(max, firsts)),
            characters=sum(reply.characters for reply in several[0]),
            times_as_fast=speeds["ours"] / speeds[who],
        )


def overhead(
    asking: Contestant, bare: Contestant, url: str, letters: Sequence[str], rows: int, rounds: int
) -> None:
    """What a character costs more in the server than in a `Batch` of as many rows."""
    turns = []
    for _ in range(rounds + 7):  # the difference is smaller than what a machine varies by
        alone = bare.call("seconds_a_character", CONTEXTS[0] + LENGTH // 2, rows)
        replies = asking.call("stream", url, bodies(letters, rows, PROMPT, OURS), rows)
        turns.append((alone, seconds_a_character(replies)))
    alone, served = (1000 * median(column) for column in zip(*turns[1:], strict=True))
    more = 1000 * median(served - alone for alone, served in turns[1:])
    print_json(
        case="overhead",
        rows=rows,
        ms_a_character=served,
        ms_a_character_of_the_batch=alone,
        overhead_ms=more,
    )


def first_when_idle(
    asking: Contestant,
    servers: Mapping[str, tuple[str, Mapping[str, Any]]],
    letters: Sequence[str],
    rounds: int,
) -> None:
    """The wait for the first character where nobody else asks."""
    waits: dict[str, list[float]] = {who: [] for who in servers}
    for _ in range(2 * rounds + 1):
        for who, (url, more) in servers.items():
            (body,) = bodies(letters, 1, UNREAD, {**more, "max_tokens": 2})
            (reply,) = asking.call("stream", url, [body], 1)
            waits[who].append(reply.seconds_to_first)
    for who, several in waits.items():
        print_json(
            case="idle", who=who, unread=UNREAD, ms_to_first_character=1000 * median(several)
        )


def memory(requests: int) -> None:
    """What a tiny model's server holds more after so many requests; the first tenth warm up."""
    shape = shape_of("tiny")
    with tempfile.TemporaryDirectory() as folder, Contestant(Clients) as asking:
        path = save_random(shape, Path(folder, "run"))
        letters = open_checkpoint(path).tokenizer.characters
        with smallgpt_serve(path) as (url, pid):
            more = {**OURS, "max_tokens": 8}
            asking.call("stream", url, bodies(letters, requests // 10, PROMPT, more), SLOTS)
            before, began = resident_megabytes(pid), time.perf_counter()
            asking.call("stream", url, bodies(letters, requests, PROMPT, more), SLOTS)
            print_json(
                case="memory",
                requests=requests,
                megabytes=before,
                megabytes_more=resident_megabytes(pid) - before,
                requests_a_second=requests / (time.perf_counter() - began),
            )


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
