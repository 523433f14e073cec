"""Scaling of the 300M model on GPUs, on paper: what docs/scaling.md shows, from formulas.

`python -m benchmarks.scaling --paper` prints it. The time of a step on one GPU is an assumption
until somebody gives `--step-seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from smallgpt.config import Config, load_config
from smallgpt.model.gpt import GPT

CONFIG = "config/train300M_ddp.yaml"
GPUS = (2, 8, 16, 64)
GIGABITS = (25, 100, 400)
"""Speed of a machine's network card, a second and direction."""
NVLINK = 200e9
"""Assumed bytes a second between GPUs of one machine, of which there are at most 8."""
SUSTAINED = 0.4 * 312e12
"""Assumed FLOP/s of one GPU: 40 % of what an A100 is sold as in bfloat16."""
BACKWARD = 2 / 3
"""Share of a step's arithmetic during which gradients become ready to be sent."""
CARDS_GB = (16, 24, 40, 80)
FOR_STATES = 0.75
"""Assumed share of a card's memory that need not hold activations."""
STATE_BYTES = 16
"""Bytes a parameter: weights, gradients and AdamW's two moments, all in float32."""


@dataclass(frozen=True)
class Task:
    """What is trained: the model and one step of it.

    parameters: positions included; named: without them; embeddings: those of them whose gradient
    is complete only at the end of the backward pass; rows: of a step; positions: of a row.
    """

    parameters: int
    named: int
    embeddings: int
    rows: int
    positions: int

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients, in float32."""
        return 4 * self.parameters

    def step_seconds(self) -> float:
        """Seconds one GPU is assumed to take: 6 operations a parameter and position."""
        return 6 * self.named * self.rows * self.positions / SUSTAINED


def task(config: Config) -> Task:
    """The task a config describes."""
    with torch.device("meta"):
        model = GPT(config)
    return Task(
        parameters=sum(p.numel() for p in model.parameters()),
        named=model.parameter_count(),
        embeddings=model.wte.weight.numel() + model.wpe.weight.numel(),
        rows=config.train_batch,
        positions=config.block_size,
    )


def sent_bytes(gpus: int, gradient_bytes: int) -> float:
    """Bytes each GPU sends a step: a ring sums, then hands round, all parts but one's own."""
    return 2 * (gpus - 1) / gpus * gradient_bytes


def efficiency(compute: float, communication: float, tail: float) -> tuple[float, float]:
    """Share of the time spent computing, with gradients sent during backward, and after it.

    Args:
        compute: seconds of arithmetic a step.
        communication: seconds to average the gradients when nothing else is done.
        tail: share of the gradients that are ready only when backward has ended.
    """
    left = max(tail * communication, communication - BACKWARD * compute)
    return compute / (compute + left), compute / (compute + communication)


def rows_needed(communication: float, tail: float, row_seconds: float) -> int:
    """Rows a GPU and step at which 90 % is reached with overlap."""
    compute = max(9 * tail * communication, communication / (BACKWARD + 1 / 9))
    return math.ceil(compute / row_seconds)


def report(step_seconds: float | None) -> str:
    """All tables, as Markdown.

    Args:
        step_seconds: of one GPU for the config's whole batch; None for the assumption.
    """
    it = task(load_config(CONFIG))
    row_seconds = (step_seconds or it.step_seconds()) / it.rows
    share = it.rows // GPUS[0]
    return "\n\n".join(
        [
            f"One GPU takes {1000 * row_seconds * it.rows:.0f} ms for {it.rows} rows "
            f"({'as given' if step_seconds else 'assumed'}); "
            f"gradients: {it.gradient_bytes / 1e9:.3f} GB.",
            f"The same batch for all, at least {it.rows} rows (strong scaling):",
            _efficiencies(it, row_seconds, [(n, math.ceil(it.rows / n)) for n in GPUS]),
            f"{share} rows for each GPU (weak scaling):",
            _efficiencies(it, row_seconds, [(n, share) for n in GPUS]),
            "Rows a GPU and step from which on overlap gives 90 %:",
            _rows_for_90(it, row_seconds),
            "GPUs that must share one copy of the states; 1: no sharding needed:",
            _cards(it),
        ]
    )


def _efficiencies(it: Task, row_seconds: float, shares: Iterable[tuple[int, int]]) -> str:
    """A row for each number of GPUs and of rows each has."""
    lines = []
    for gpus, rows in shares:
        sent = sent_bytes(gpus, it.gradient_bytes)
        cells = [str(gpus), str(rows), str(gpus * rows), f"{1000 * rows * row_seconds:.0f}"]
        for speed in [n * 1e9 / 8 for n in GIGABITS] + [NVLINK]:
            pair = efficiency(rows * row_seconds, sent / speed, it.embeddings / it.parameters)
            shown = " / ".join(f"{100 * part:.0f}" for part in pair)
            cells.append("–" if speed == NVLINK and gpus > 8 else shown)
        lines.append([*cells[:4], f"{sent / 1e9:.2f}", *cells[4:]])
    head = ["GPUs", "rows each", "rows in all", "computing, ms", "GB sent by each"]
    return _table([*head, *(f"{n} Gbit/s" for n in GIGABITS), "NVLink"], lines)


def _rows_for_90(it: Task, row_seconds: float) -> str:
    lines = []
    for gpus in GPUS:
        sent = sent_bytes(gpus, it.gradient_bytes)
        tail = it.embeddings / it.parameters
        seconds = [sent * 8 / (n * 1e9) for n in GIGABITS]
        lines.append([str(gpus), *(str(rows_needed(s, tail, row_seconds)) for s in seconds)])
    return _table(["GPUs", *(f"{n} Gbit/s" for n in GIGABITS)], lines)


def _cards(it: Task) -> str:
    sizes = {"300M": it.parameters, "1B": 1e9, "2B": 2e9, "4B": 4e9, "7B": 7e9}
    lines = []
    for name, parameters in sizes.items():
        states = STATE_BYTES * parameters
        counts = [math.ceil(states / (FOR_STATES * card * 1e9)) for card in CARDS_GB]
        lines.append([name, f"{states / 1e9:.1f}", *map(str, counts)])
    return _table(["model", "states, GB", *(f"{card} GB" for card in CARDS_GB)], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
