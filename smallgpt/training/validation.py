"""How well a model predicts text it was not trained on, in nats a character.

So vocabularies compare: the loss of a token is that of all its characters. The first token of a
dialogue is no target. Of characters that leaves out one; of pieces it would leave out up to four,
so all but the first of them count here too: they cost −log p(token | first character) by Zipf's
law, as ids fall in frequency (`Tokenizer.first_nats`). With the model these are one distribution
over the same characters as any other vocabulary's. The ids of other programs do not fall so: there
the whole first token does not count.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from smallgpt.data.corpus import IntArray
from smallgpt.data.packing import Batch, PackedRows
from smallgpt.distributed.world import ALONE, World
from smallgpt.runtime import Runtime, to_device
from smallgpt.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Validation:
    """validation_loss: mean nats over `targets` characters, each `<sep>` and end included.

    A token of a vocabulary of subwords is as many of them as it has."""

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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and then in its mode before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
    own = batches[world.rank :: world.size]
    with evaluation_mode(model):
        for batch in tqdm(own, description, leave=False, delay=1, disable=not world.is_first):
            if stopped():
                return
            yield batch


def inputs_of(batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
    """What `GPT.forward` is given for a batch and its loss, on the device."""
    inputs = {"ids_BT": batch.ids, "positions_BT": batch.positions, "targets_BT": batch.targets}
    if runtime.varlen:
        inputs["bounds_N"] = batch.bounds()
    else:
        inputs["documents_BT"] = batch.documents
    inputs = {name: to_device(tensor, runtime.device) for name, tensor in inputs.items()}
    if runtime.varlen:  # how many dialogues there are must not compile the model anew
        torch._dynamo.maybe_mark_dynamic(inputs["bounds_N"], 0)
    return inputs


def summed_loss(network: nn.Module, inputs: dict[str, Tensor], runtime: Runtime) -> Tensor:
    """Next-token loss over all targets of a batch, nats: a scalar on the device."""
    with runtime.autocast():
        loss: Tensor = network(**inputs)
    return loss


@torch.no_grad()
def validate(
    model: nn.Module,
    rows: PackedRows,
    runtime: Runtime,
    sample: IntArray,
    rows_at_a_time: int,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Validation | None:
    """Mean loss over some of the rows; None where a process was stopped.

    The processes of `world` take turns with the batches; all get the result of all.

    Args:
        sample: the numbers of the rows, as from `sample_of`.
        rows_at_a_time: rows of a batch, at most. It changes nothing but time and memory.

    Raises:
        UserError: the sample has no target.
    """
    size = max(1, min(rows_at_a_time, -(-len(sample) // world.size)))
    losses, targets, first = [torch.zeros((), device=runtime.device)], 0, 0.0
    for numbers in in_evaluation(model, in_batches(sample, size), "validating", stopped, world):
        batch = rows.batch(numbers)
        behind, nats = rows.behind_first(numbers)
        targets, first = targets + rows.characters(batch) + behind, first + nats
        # All batches of one size, and no waiting for a loss: a GPU has always something to do.
        losses.append(summed_loss(model, inputs_of(batch.filled_up(size), runtime), runtime))
    total = torch.stack(losses).cpu().double().sum().item()
    total, all_targets, any_stopped = world.sum(total + first, targets, stopped())
    if any_stopped:
        return None
    if not all_targets:
        raise no_targets("validate on")
    return Validation(total / all_targets, int(all_targets))


def sample_of(rows: PackedRows, most: int, seed: int) -> IntArray:
    """The numbers of the rows that are validated on, rising."""
    return np.sort(np.random.default_rng((seed, 5)).permutation(len(rows))[:most])


def in_batches(numbers: IntArray, size: int) -> list[IntArray]:
    """Neighbours together, `size` at a time."""
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def no_targets(purpose: str) -> UserError:
    """The error where rows have no target at all."""
    return UserError(
        f"there is nothing to {purpose}: no reply, or no character that the model knows",
        "with loss_on: replies dialogues of two and more utterances are needed, in the part for "
        "training and in that for validation: add some, or set loss_on: all",
    )
