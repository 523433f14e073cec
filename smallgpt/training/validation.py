"""How well a model predicts text it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from smallgpt.data.packing import PackedRows
from smallgpt.distributed.world import World
from smallgpt.runtime import Runtime


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


@torch.inference_mode()
def validate(
    model: nn.Module,
    rows: PackedRows,
    runtime: Runtime,
    rows_per_batch: int,
    most_batches: int,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    world: World = World(),  # noqa: B008 - it is frozen
) -> Validation | None:
    """Mean loss over a fixed sample of `rows`: the same arguments, the same rows.

    The processes of `world` take turns with the batches; all get the result of all.

    Returns:
        the result, or None where `stopped()` became true before the end.
    """
    sample = np.random.default_rng((seed, 5)).permutation(len(rows))
    sample = np.sort(sample[: rows_per_batch * most_batches])
    starts = range(0, len(sample), rows_per_batch)[world.rank :: world.size]
    total, targets, cut_short = 0.0, 0, False
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(
            starts, desc="validating", leave=False, delay=1, disable=not world.is_first
        ):
            if stopped():
                cut_short = True
                break
            batch = rows.batch(sample[start : start + rows_per_batch])
            targets += batch.target_count()
            batch = batch.to(runtime.device)
            with runtime.autocast():
                loss = model(batch.ids, batch.positions, batch.documents, None, batch.targets)
            total += loss.item()
    finally:
        model.train(was_training)
    total, all_targets, any_cut_short = world.sum(total, targets, cut_short)
    if any_cut_short:
        return None
    return Validation(total / max(1, all_targets), int(all_targets))
