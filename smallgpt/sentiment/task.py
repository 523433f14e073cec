"""What a classifier learns from, and its verdict on reviews it does not learn from."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import IntArray, Reviews, Split, fingerprint, hashes
from smallgpt.distributed.world import ALONE, World
from smallgpt.model.classifier import Classifier, mean_by_text
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime, to_device
from smallgpt.sentiment.examples import Examples, ReviewBatch
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.trainer import Task
from smallgpt.training.validation import in_evaluation
from smallgpt.utils.commands import python_command

FloatArray = npt.NDArray[np.float32]
MOST_ROWS_TO_LEARN = 16
"""Of a longer review so many rows are learnt from."""


@dataclass(frozen=True)
class Verdicts:
    """logits: of each review, (N, C), float32; labels: the right ones, (N,)."""

    logits: Tensor
    labels: Tensor

    @property
    def validation_loss(self) -> float:
        """Mean cross entropy, nats."""
        return F.cross_entropy(self.logits, self.labels).item()

    @property
    def accuracy(self) -> float:
        """Share of reviews judged right."""
        return (self.logits.argmax(1) == self.labels).float().mean().item()

    def probabilities(self) -> FloatArray:
        """(N, C)."""
        return self.logits.softmax(1).numpy()

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return {"validation_loss": self.validation_loss, "validation_accuracy": self.accuracy}

    def __str__(self) -> str:
        loss, accuracy = self.validation_loss, 100 * self.accuracy
        return f"validation loss {loss:.4f}, accuracy {accuracy:.2f} %"


@dataclass(frozen=True)
class Part:
    """Some reviews of a step.

    reviews, characters: how many all of it has.
    targets, soft_labels, states: what else of these reviews the loss needs, if anything; only on
        the device (see ReviewTask.on_device).
    """

    batch: ReviewBatch
    reviews: float
    characters: float
    targets: Tensor | None = None
    soft_labels: Tensor | None = None
    states: Tensor | None = None


class ReviewTask(Task):
    """Learning the labels of reviews (see training.trainer.Task).

    Args:
        model: moved to the device; trained in place.
        soft_labels: probabilities of the classes of the reviews to train on, (N, C), for
            `reference_weight`.
    """

    model: Classifier
    keeps_every_best = True

    def __init__(
        self,
        config: SentimentConfig,
        runtime: Runtime,
        model: Classifier,
        tokenizer: Tokenizer,
        reviews: Reviews,
        split: Split,
        soft_labels: FloatArray | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.runtime, self.world = config, runtime, world
        self.model, self.tokenizer, self.labels = model, tokenizer, reviews.names
        self.reviews, self.split = reviews, split
        self.examples = self.examples_of(split.train, MOST_ROWS_TO_LEARN)
        self.validation = self.examples_of(split.validation)
        self.soft_labels = None if soft_labels is None else torch.from_numpy(soft_labels)
        self.saves_memory = f"lower max_positions (now {config.max_positions:,})"
        if config.frozen:
            model.freeze()
        self.steps_per_epoch = -(-len(self.examples) // config.train_batch)
        self._epoch: tuple[int, list[IntArray]] = (-1, [])

    def examples_of(self, indices: IntArray, most_rows: int | None = None) -> Examples:
        """Some of the reviews, as the classifier reads them."""
        some, config = self.reviews.part(indices), self.config
        return Examples(
            some.texts, some.labels, self.tokenizer, config.block_size, config.use_mask, most_rows
        )

    def state(self, completed: int) -> dict[str, Any]:
        """What it learns from: whoever goes on must have the same, and whoever begins with this
        model is told of it (see recipe)."""
        return self._learnt

    @cached_property
    def _learnt(self) -> dict[str, Any]:
        learnt = np.concatenate([self.split.train, self.split.validation])
        return {
            "reviews": fingerprint(self.reviews, self.split),
            "learnt": torch.from_numpy(hashes(self.reviews.part(learnt).texts).copy()),
        }

    def how_to_use(self, path: Path, it: str = "it") -> str:
        """The command that judges a review with the best checkpoint of the run."""
        run = shlex.quote(str(path.parent))
        return f'use {it}: {python_command()} -m smallgpt sentiment predict {run} "房间很干净"'

    def keep_states(self) -> None:
        """Compute the states of frozen blocks once, in the folder of the run. Only now that the
        model is replicated do all processes have its weights."""
        config = self.config
        folder = Path(config.checkpoint_root)
        for examples in (self.examples, self.validation):
            examples.keep_states(self.model, self.runtime, folder, config.max_positions)

    def parts(self, step: int, count: int) -> tuple[Sequence[Part], int]:
        """The reviews of a step in `count` parts of nearly equal size; where one of them has more
        than `max_positions`, in several."""
        config = self.config
        epoch, at = divmod(step, int(self.steps_per_epoch))
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.examples.epoch(config.train_batch, (config.seed, 8, epoch))
        batch = self.examples.batch(self._epoch[1][at])
        characters = max(1, int((batch.targets() != IGNORED).sum()))
        tokens = int(self.examples.lengths[batch.rows].sum())
        if config.character_dropout:
            batch = batch.with_gaps(config.character_dropout, (config.seed, 10, step))
        parts: list[Part] = []
        for some in np.array_split(np.arange(len(batch.labels)), count):
            if len(some):
                within = batch.within(config.max_positions, some)
                parts += [Part(part, len(batch.labels), characters) for part in within]
            else:  # there is no review left for it: it computes one that does not count
                parts.append(Part(batch.part(np.arange(1)), math.inf, math.inf))
        return parts, tokens

    def on_device(self, part: Part) -> Part:
        """The part with all that `loss` needs, on the device."""
        batch, device = part.batch, self.runtime.device
        soft_labels = None
        if self.soft_labels is not None:
            soft_labels = to_device(self.soft_labels[torch.from_numpy(batch.reviews)], device)
        return dataclasses.replace(
            part,
            batch=batch.to(device),
            targets=to_device(batch.targets(), device) if self.config.lm_weight else None,
            soft_labels=soft_labels,
            states=self.examples.states_of(batch.rows, device),
        )

    def loss(self, network: nn.Module, part: Part) -> Tensor:
        """Cross entropy of the labels (and soft labels), mean over reviews, and `lm_weight` times
        the mean over characters: what the part adds to these means."""
        config, batch = self.config, part.batch
        with self.runtime.autocast():
            if part.targets is not None:
                logits, summed = network(batch.ids, batch.ends, part.targets)
            else:
                logits = network(batch.ids, batch.ends, None, part.states)
        logits = mean_by_text(logits, batch.texts, len(batch.labels))
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        if part.soft_labels is not None:
            towards = F.cross_entropy(logits, part.soft_labels, reduction="sum")
            loss = loss + config.reference_weight * (towards - loss)
        loss = loss / part.reviews
        if part.targets is not None:
            loss = loss + config.lm_weight * summed / part.characters
        return loss

    def validate(self, stopped: Callable[[], bool]) -> Verdicts | None:
        """The verdicts on the reviews kept for validation."""
        positions = self.config.max_positions
        return judge(self.model, self.validation, self.runtime, positions, stopped, self.world)


@torch.no_grad()
def judge(
    model: Classifier,
    examples: Examples,
    runtime: Runtime,
    positions: int,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Verdicts | None:
    """The mean logits of every review; None where a process was stopped.

    Args:
        positions: computed at a time, which changes nothing.
        world: the processes that take turns with the batches; all get the result of all.
    """
    device = runtime.device
    classes = model.score.out_features
    logits_RC = torch.zeros(len(examples.lengths), classes, device=device)
    for rows in in_evaluation(model, examples.rows_in_order(positions), "judging", stopped, world):
        ids_RT, ends_R = (to_device(tensor, device) for tensor in examples.gather(rows))
        with runtime.autocast():
            some = model(ids_RT, ends_R, None, examples.states_of(rows, device))
        logits_RC.index_copy_(0, to_device(torch.from_numpy(rows), device), some.float())
    if any(world.sum(stopped())):
        return None
    logits_RC = torch.tensor(world.sum(*logits_RC.flatten().tolist())).view(logits_RC.shape)
    text_R = torch.from_numpy(np.repeat(np.arange(len(examples)), examples.counts))
    logits_NC = mean_by_text(logits_RC, text_R, len(examples))
    return Verdicts(logits_NC, torch.from_numpy(examples.labels))
