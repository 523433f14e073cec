"""How well a model predicts text it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from smallgpt.data.packing import PackedRows
from smallgpt.distributed.world import ALONE, World
from smallgpt.runtime import Runtime

T = TypeVar("T")


@dataclass(frozen=True)
class Validation:
    """validation_loss: mean nats over `targets` characters, each `<sep>` and end included."""

    validation_loss: float
    targets: int

    @property
    def perplexity(self) -> float:
        """exp(loss): how many characters the model hesitates between."""
        return math.exp(min(self.validation_loss, 700.0))

    @property
    def bits_per_character(self) -> float:
        """The loss in bits."""
        return self.validation_loss / math.log(2)

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "validation_loss": self.validation_loss,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
        }

    def __str__(self) -> str:
        return (
            f"validation loss {self.validation_loss:.4f}, perplexity {self.perplexity:.2f}, "
            f"{self.bits_per_character:.3f} bits a character ({self.targets:,} characters)"
        )


def in_evaluation(
    model: nn.Module,
    batches: Sequence[T],
    description: str,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Iterator[T]:
    """This process's share of the batches, with a progress bar and the model in evaluation mode.

    Ends early where `stopped()` becomes true.
    """
    was_training = model.training
    model.eval()
    own = batches[world.rank :: world.size]
    try:
        for batch in tqdm(own, description, leave=False, delay=1, disable=not world.is_first):
            if stopped():
                return
            yield batch
    finally:
        model.train(was_training)


@torch.inference_mode()
def validate(
    model: nn.Module,
    rows: PackedRows,
    runtime: Runtime,
    rows_per_batch: int,
    most_batches: int,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Validation | None:
    """Mean loss over a fixed sample of `rows`: the same arguments, the same rows.

    The processes of `world` take turns with the batches; all get the result of all.

    Returns:
        the result, or None where a process was stopped.
    """
    sample = np.random.default_rng((seed, 5)).permutation(len(rows))
    sample = np.sort(sample[: rows_per_batch * most_batches])
    batches = [sample[at : at + rows_per_batch] for at in range(0, len(sample), rows_per_batch)]
    total, targets = 0.0, 0
    for numbers in in_evaluation(model, batches, "validating", stopped, world):
        batch = rows.batch(numbers)
        targets += batch.target_count()
        batch = batch.to(runtime.device)
        with runtime.autocast():
            loss = model(batch.ids, batch.positions, batch.documents, None, batch.targets)
        total += loss.item()
    total, all_targets, any_stopped = world.sum(total, targets, stopped())
    return None if any_stopped else Validation(total / max(1, all_targets), int(all_targets))
