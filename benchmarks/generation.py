"""Chat without waiting: seconds a character, seconds to the first one, seconds to the prompt.

    python -m benchmarks.generation
    python -m benchmarks.generation --size 300M --rounds 5
    python -m benchmarks.generation --peer llama.cpp

Plain is the published architecture in float32 with a full forward pass a character. Ours is
`model.generate` on a model as chat has it. Weights are random, batch 1, on the CPU. Each
contestant has a process of its own, and they take turns. With `--peer` ours takes turns with
llama.cpp's server on as many threads, one reply at a time and several side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.llama_cpp import LlamaCpp
from benchmarks.measure import Contestant, print_json, read_bandwidth, timed
from benchmarks.plain import PlainGPT
from smallgpt.checkpoints import checkpoint, gguf, huggingface
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.cli.arguments import CHAT_SPINS
from smallgpt.config import Config, SamplingConfig
from smallgpt.config_file import load_config
from smallgpt.model import inference, native
from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Batch, Request
from smallgpt.model.gpt import GPT
from smallgpt.runtime import choose_precision
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.utils.c_library import compiled
from smallgpt.utils.errors import UserError, note, user_errors

CPU = torch.device("cpu")
SIZES = ("90M", "300M")
DTYPES = ("float32", "bfloat16", "int8", "int4")
CONTEXTS = (20, 250)
PROMPT = 50
"""Characters of the prompt whose reply's first character is waited for."""
CHARACTERS = 11
"""Characters timed a turn, the middle one of them at the context in question."""
QUANTIZATIONS: dict[str, gguf.Quantization] = {"bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""llama.cpp's names for what is closest to ours."""
ROWS = (1, 2, 4, 8, 16, 32)
"""Replies side by side, at the first of `CONTEXTS`."""
CHAT = Path(__file__).resolve().parent.parent / "chat.py"


def shape_of(size: str) -> Config:
    """The shape of `config/train{size}.yaml`; `tiny` is for trying out."""
    if size == "tiny":
        return Config(vocab_size=200, n_layer=2, n_head=2, n_embd=64)
    path = Path("config") / f"train{size}.yaml"
    if not path.exists():
        raise UserError(f"--size: {size} has no {path}", f"use {' or '.join(SIZES)}")
    return dataclasses.replace(load_config(path), dropout=0.0)


class Plain:
    """The plain model; made in its own process."""

    def __init__(self, size: str) -> None:
        shape = shape_of(size)
        self.model = PlainGPT(
            shape.vocab_size, shape.n_layer, shape.n_head, shape.n_embd, shape.block_size
        ).eval()

    @torch.inference_mode()
    def seconds_a_character(self, context: int) -> float:
        """One full forward pass, and the likeliest character."""
        ids = torch.ones(1, context, dtype=torch.long)
        return timed(lambda: int(self.model(ids)[0, -1].argmax()))[0]


class Ours:
    """Our model as chat has it in `dtype`, with random weights; made in its own process."""

    def __init__(self, size: str, dtype: str, device: torch.device = CPU) -> None:
        shape = shape_of(size)
        weights = GPT(shape).state_dict()
        self.vocab_size = shape.vocab_size
        precision = choose_precision(dtype, device, sum(w.numel() for w in weights.values()))
        self.model = inference.load_inference_weights(
            huggingface.hollow_model(shape).eval(),
            weights,
            precision.dtype,
            precision.bits,
            device,
            compiled(native.SOURCE, native.PURPOSE) if device.type == "cpu" else None,
        )
        matrices = [w for name, w in weights.items() if name.startswith("h.") and w.dim() == 2]
        layers, head = sum(m.numel() for m in matrices), weights["wte.weight"].numel()
        width = precision.dtype.itemsize
        self._bytes = layers * (precision.bits / 8 if precision.bits else width) + head * width

    def threads(self) -> int:
        """The number that it computes with."""
        return torch.get_num_threads()

    def bytes_a_character(self) -> int:
        """Bytes of the weights that one character needs: the layers' matrices and the head."""
        return self._bytes

    def seconds_a_character(self, context: int, rows: int = 1) -> float:
        """The median over characters around this context, each the likeliest one; with several
        rows, all of which are replying, the seconds of a step divided by their number."""
        times = self._times(context - CHARACTERS // 2 - 1, CHARACTERS + 1, rows)
        return median(later - earlier for earlier, later in itertools.pairwise(times[1:])) / rows

    def seconds_to_first(self, prompt: int) -> float:
        """From a prompt of so many characters to the first of the reply."""
        times = self._times(prompt, 1)
        return times[1] - times[0]

    def _times(self, context: int, characters: int, rows: int = 1) -> list[float]:
        """When so many replies began, and when all of them had another character."""
        sampling = SamplingConfig(temperature=0, max_new_tokens=characters, max_repeats=0)
        cache = KeyValueCache(self.model.config, self.model.wte.weight, rows)
        batch = Batch(self.model, cache, chunk=rows * context)
        prompts = torch.randint(self.vocab_size, (rows, context)).tolist()
        times = [time.perf_counter()]
        for ids in prompts:
            batch.join(Request(ids, sampling, [torch.Generator()]))
        while batch.replying:
            batch.step()
            times.append(time.perf_counter())
        return times


def main(
    size: Annotated[list[str] | None, typer.Option(help="90M or 300M; both unless given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model, to try this out.")] = False,
    peer: Annotated[
        Literal["llama.cpp"] | None, typer.Option(help="Compare with it, and nothing else.")
    ] = None,
) -> None:
    """Print one JSON object a case."""
    sizes = ["tiny"] if quick else size or list(SIZES)
    for name in sizes:
        shape_of(name)
    if peer:
        for name in sizes:
            compare_with_peer(name, rounds)
        return
    for name in sizes:
        compare(name, rounds)
    compare_startup(sizes[-1], rounds)


def compare(size: str, rounds: int) -> None:
    """Seconds a character of all contestants at every context; and to the first character."""
    note(f"{size}: making the models")
    with ExitStack() as stack:
        os.environ.pop("GOMP_SPINCOUNT", None)
        plain = stack.enter_context(Contestant(Plain, size))
        os.environ["GOMP_SPINCOUNT"] = CHAT_SPINS  # as chat.py does
        ours = {dtype: stack.enter_context(Contestant(Ours, size, dtype)) for dtype in DTYPES}
        for context in CONTEXTS:
            contestants = [plain, *ours.values()]
            turns = [
                (read_bandwidth(), [c.call("seconds_a_character", context) for c in contestants])
                for _ in range(rounds + 1)
            ][1:]  # the first turn warms up
            bandwidth = median(speed for speed, _ in turns)
            seconds = [median(column) for column in zip(*(s for _, s in turns), strict=True)]
            print_json(case="plain", size=size, context=context, seconds_a_character=seconds[0])
            for (dtype, contestant), took in zip(ours.items(), seconds[1:], strict=True):
                needed = contestant.call("bytes_a_character")
                print_json(
                    case="ours",
                    size=size,
                    dtype=dtype,
                    context=context,
                    seconds_a_character=took,
                    times_plain=seconds[0] / took,
                    weight_bytes=needed,
                    memory_gigabytes_a_second=bandwidth / 1e9,
                    share_of_bandwidth_limit=needed / bandwidth / took,
                )
        for dtype, contestant in ours.items():
            took = median(contestant.call("seconds_to_first", PROMPT) for _ in range(rounds))
            print_json(case="first", size=size, dtype=dtype, prompt=PROMPT, seconds=took)


def compare_with_peer(size: str, rounds: int) -> None:
    """Milliseconds a character of ours and of llama.cpp, in every precision."""
    shape = shape_of(size)
    with tempfile.TemporaryDirectory() as folder:
        stored = open_checkpoint(save_random(shape, Path(folder)))
        for dtype, quantization in QUANTIZATIONS.items():
            path = Path(folder) / f"{quantization}.gguf"
            gguf.write(stored, path, quantization)
            with ExitStack() as stack:
                os.environ["GOMP_SPINCOUNT"] = CHAT_SPINS
                ours = stack.enter_context(Contestant(Ours, size, dtype))
                threads = int(ours.call("threads"))
                limits = path, shape.vocab_size, shape.block_size, threads

                def peer(rows: int, stack: ExitStack = stack, limits: Any = limits) -> Contestant:
                    return stack.enter_context(Contestant(LlamaCpp, *limits, rows))

                alone = peer(1)
                cases = [(context, 1, alone) for context in CONTEXTS]
                cases += [(CONTEXTS[0], rows, peer(rows)) for rows in ROWS if rows > 1]
                for context, rows, other in cases:
                    turns = [
                        (
                            ours.call("seconds_a_character", context, rows),
                            other.call("seconds_a_character", context, rows, CHARACTERS),
                        )
                        for _ in range(rounds + 1)
                    ][1:]
                    case = {"size": size, "context": context, "rows": rows}
                    _print_pair(case, dtype, quantization, turns, "ms_per_character")
                prompts = [
                    (ours.call("seconds_to_first", PROMPT), alone.call("seconds_to_first", PROMPT))
                    for _ in range(rounds + 1)
                ][1:]
                case = {"size": size, "prompt": PROMPT}
                _print_pair(case, dtype, quantization, prompts, "ms_to_first_character")


def _print_pair(
    case: dict[str, Any],
    dtype: str,
    quantization: str,
    turns: list[tuple[float, float]],
    figure: str,
) -> None:
    """A line of ours and one of llama.cpp's, each the median of its turns."""
    ours, theirs = (1000 * median(column) for column in zip(*turns, strict=True))
    print_json(**case, dtype=dtype, who="ours", **{figure: ours}, times_as_fast=theirs / ours)
    print_json(**case, dtype=quantization, who="llama.cpp", **{figure: theirs})


def compare_startup(size: str, rounds: int) -> None:
    """From the start of chat.py to its prompt, against importing torch and reading the weights."""
    note(f"{size}: writing a checkpoint")
    os.environ.pop("GOMP_SPINCOUNT", None)
    with tempfile.TemporaryDirectory() as folder:
        path = save_random(shape_of(size), Path(folder))
        importing = [sys.executable, "-c", "import torch"]
        turns = [
            (
                timed(lambda: subprocess.run(importing, check=True))[0],
                timed(lambda: _read(path / huggingface.WEIGHTS_FILE))[0],
                seconds_to_prompt(path),
            )
            for _ in range(rounds + 1)
        ][1:]
    imported, read, prompt = (median(column) for column in zip(*turns, strict=True))
    print_json(
        case="startup",
        size=size,
        import_torch_seconds=imported,
        read_weights_seconds=read,
        prompt_seconds=prompt,
        ratio=prompt / (imported + read),
    )


def characters_for(shape: Config) -> Tokenizer:
    """A vocabulary of so many characters as a model has."""
    return Tokenizer([chr(0x4E00 + number) for number in range(shape.vocab_size - 3)])


def save_random(shape: Config, folder: Path) -> Path:
    """A checkpoint with random weights."""
    return checkpoint.save(folder, 1, shape, characters_for(shape), GPT(shape).state_dict(), {}, {})


def seconds_to_prompt(path: Path) -> float:
    """From the start of `python chat.py` to its prompt, at a pipe."""
    command = [sys.executable, str(CHAT), str(path), "device=cpu"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        assert chat.stderr and chat.stdin
        said = b""
        while not said.endswith(b">>> "):
            byte = chat.stderr.read(1)
            if not byte:
                raise RuntimeError(f"chat.py ended: {said.decode(errors='replace')}")
            said += byte
        took = time.perf_counter() - began
        chat.stdin.close()
    return took


def _read(file: Path) -> None:
    part = bytearray(1 << 20)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(part):
            pass


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
