"""Adapters (LoRA) against training the whole model: time of a step, memory, and size on disk.

    python -m benchmarks.adapters                     12M, 90M and 300M

The weights are random, which changes none of these. Steps are timed on this machine, in processes
of their own that take turns. Memory is that of a step on a GPU in 16 bits, counted without one (see
benchmarks.memory), with frozen matrices in bfloat16. One JSON object a size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Contestant, Size, print_json, size_named, timed
from benchmarks.memory import measure
from smallgpt.cli.arguments import run_script
from smallgpt.config import Config
from smallgpt.model import lora
from smallgpt.model.gpt import GPT
from smallgpt.training.optimizer import make_optimizers

VOCABULARY = 13_000
BLOCK = 256


def shape(size: Size, rank: int) -> Config:
    """A model of a size, and with a rank its adapters."""
    config = replace(Config(vocab_size=VOCABULARY, block_size=BLOCK), **size.keys())  # type: ignore[arg-type]
    return replace(config, lora_rank=rank, lora_alpha=2.0 * max(rank, 1))


def make_model(config: Config, dtype: torch.dtype = torch.float32) -> GPT:
    """The network that is trained; `dtype` is that of frozen matrices."""
    model = GPT(config).train()
    if config.lora_rank:
        scale = config.lora_alpha / config.lora_rank
        lora.add_adapters(model, config.lora_matrices(), config.lora_rank, scale, dtype=dtype)
    return model


class Trained:
    """A model and its optimizer, which take steps on rows of random ids."""

    def __init__(self, config: Config, rows: int) -> None:
        torch.manual_seed(0)
        self.model = make_model(config)
        self.optimizers = make_optimizers(self.model, config)
        self.ids = torch.randint(3, VOCABULARY, (rows, BLOCK))

    def step(self) -> float:
        """Seconds of a step."""
        return timed(self._step)[0]

    def _step(self) -> None:
        (self.model(self.ids, targets_BT=self.ids) / self.ids.numel()).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)


def memory_of(config: Config, rows: int) -> float:
    """Bytes at the peak of a step on a GPU."""

    def build() -> tuple[nn.Module, Callable[[], Tensor]]:
        model = make_model(config, torch.bfloat16)

        def loss() -> Tensor:
            ids = torch.zeros(rows, BLOCK, dtype=torch.long)
            summed: Tensor = model(ids, ids, ids, None, ids)
            return summed

        return model, loss

    return measure(config, torch.bfloat16, build).peak


def saved(config: Config) -> int:
    """Bytes of the weights that a checkpoint holds."""
    with torch.device("meta"):
        model = make_model(config)
    every = lora.learnt(model) if config.lora_rank else model.state_dict()
    return sum(4 * tensor.numel() for tensor in every.values())


def main(
    sizes: Annotated[list[str] | None, typer.Argument(metavar="[SIZE …]")] = None,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    rows: Annotated[int, typer.Option(min=1, help="Of 256 positions, a step.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="To time of each, after one more.")] = 5,
) -> None:
    """Print one JSON line a size."""
    for name in sizes or ["12M", "90M", "300M"]:
        size = size_named(name)
        configs = [shape(size, 0), shape(size, rank)]
        with (
            Contestant(Trained, configs[0], rows) as one,
            Contestant(Trained, configs[1], rows) as two,
        ):
            contestants = [one, two]
            times = [[c.call("step") for c in contestants] for _ in range(steps + 1)][1:]
            resident = [c.peak_memory() for c in contestants]
        whole, adapters = (median(column) for column in zip(*times, strict=True))
        on_gpu, on_disk = (
            [of(c) for c in configs] for of in (partial(memory_of, rows=rows), saved)
        )
        print_json(
            size=name,
            rank=rank,
            seconds=whole,
            seconds_adapters=adapters,
            time_ratio=adapters / whole,
            gpu_gb=on_gpu[0] / 1e9,
            gpu_gb_adapters=on_gpu[1] / 1e9,
            cpu_gb=resident[0] / 1e9,
            cpu_gb_adapters=resident[1] / 1e9,
            disk_mb=on_disk[0] / 1e6,
            disk_mb_adapters=on_disk[1] / 1e6,
        )


if __name__ == "__main__":
    run_script(main)
