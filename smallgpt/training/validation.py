"""How well a model predicts text it was not trained on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from smallgpt.data.corpus import IntArray
from smallgpt.data.packing import Batch, PackedRows
from smallgpt.distributed.world import ALONE, World
from smallgpt.runtime import Runtime
from smallgpt.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Validation:
    """validation_loss: mean nats over `targets` characters, each `<sep>` and end included."""

    validation_loss: float
    targets: int

    def as_dict(self) -> dict[str, float]:
        """The figures by name; perplexity says how many characters the model hesitates between."""
        return {
            "validation_loss": self.validation_loss,
            "perplexity": math.exp(min(self.validation_loss, 700.0)),
            "bits_per_character": self.validation_loss / math.log(2),
        }

    def __str__(self) -> str:
        loss, perplexity, bits = self.as_dict().values()
        return (
            f"validation loss {loss:.4f}, perplexity {perplexity:.2f}, "
            f"{bits:.3f} bits a character ({self.targets:,} characters)"
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


def summed_loss(network: nn.Module, batch: Batch, runtime: Runtime) -> Tensor:
    """Next-token loss over all targets of a batch, nats."""
    batch = batch.to(runtime.device)
    with runtime.autocast():
        loss: Tensor = network(batch.ids, batch.positions, batch.documents, None, batch.targets)
    return loss


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
    """Mean loss over a fixed sample of `rows`; None where a process was stopped.

    The same arguments give the same sample. The processes of `world` take turns with its batches;
    all get the result of all.

    Raises:
        UserError: the sample has no target.
    """
    batches = sample_of(rows, rows_per_batch, most_batches, seed)
    total, targets = 0.0, 0
    for numbers in in_evaluation(model, batches, "validating", stopped, world):
        batch = rows.batch(numbers)
        targets += batch.target_count()
        total += summed_loss(model, batch, runtime).item()
    total, all_targets, any_stopped = world.sum(total, targets, stopped())
    if any_stopped:
        return None
    if not all_targets:
        raise no_targets("validate on")
    return Validation(total / all_targets, int(all_targets))


def sample_of(
    rows: PackedRows, rows_per_batch: int, most_batches: int, seed: int
) -> list[IntArray]:
    """The numbers of the rows that are validated on, by batches."""
    sample = np.random.default_rng((seed, 5)).permutation(len(rows))
    sample = np.sort(sample[: rows_per_batch * most_batches])
    return [sample[at : at + rows_per_batch] for at in range(0, len(sample), rows_per_batch)]


def no_targets(purpose: str) -> UserError:
    """The error where rows have no target at all."""
    return UserError(
        f"there is nothing to {purpose}: no reply, or no character that the model knows",
        "with loss_on: replies dialogues of two and more utterances are needed, in the part for "
        "training and in that for validation: add some, or set loss_on: all",
    )
