"""What a classifier learns from, and its verdict on reviews it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import IntArray
from smallgpt.distributed.world import ALONE, World
from smallgpt.model.classifier import Classifier, mean_by_text
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime
from smallgpt.sentiment.examples import Examples, ReviewBatch
from smallgpt.sentiment.frozen import FrozenStates
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.trainer import Task
from smallgpt.training.validation import in_evaluation

FloatArray = npt.NDArray[np.float32]


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
class _Part:
    """Some reviews of a step; of all of it: how many reviews, and how many characters.

    weight: 0 where there were fewer reviews than parts, and this one stands for none.
    """

    batch: ReviewBatch
    reviews: int
    characters: int
    weight: float


class ReviewTask(Task):
    """Learning the labels of reviews (see training.trainer.Task).

    Args:
        model: moved to the device; trained in place.
        examples: to learn from.
        validation: to choose the best model with.
        names: the labels, in the order of the model's classes.
        folder: where the states of frozen blocks are kept while it trains.
        soft_labels: probabilities of the classes, (N, C), for `reference_weight`.
    """

    model: Classifier
    keeps_every_best = True

    def __init__(
        self,
        config: SentimentConfig,
        here: Runtime,
        model: Classifier,
        tokenizer: Tokenizer,
        examples: Examples,
        validation: Examples,
        names: list[str],
        folder: Path,
        soft_labels: FloatArray | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.runtime, self.world = config, here, world
        self.model, self.tokenizer, self.labels = model, tokenizer, names
        self.examples, self.validation = examples, validation
        self.soft_labels = None if soft_labels is None else torch.from_numpy(soft_labels)
        self.frozen = self.frozen_validation = None
        if config.frozen:
            model.freeze()
            self.frozen = FrozenStates(model, examples, here, folder)
            self.frozen_validation = FrozenStates(model, validation, here, folder)
        self.steps_per_epoch = -(-len(examples) // config.train_batch)
        self._epoch: tuple[int, list[IntArray]] = (-1, [])

    def parts(self, step: int, count: int) -> tuple[Sequence[_Part], int]:
        """The reviews of a step in `count` parts of nearly equal size."""
        config = self.config
        batch = self.examples.batch(self._reviews(step))
        characters = int((batch.targets() != IGNORED).sum())
        tokens = int(self.examples.lengths[batch.rows].sum())
        if config.character_dropout:
            batch = batch.with_gaps(config.character_dropout, (config.seed, 10, step))
        parts = []
        for part in np.array_split(np.arange(len(batch)), count):
            # Where there is no review left for it, a process computes one that does not count.
            some = batch.part(part if len(part) else np.arange(1))
            parts.append(_Part(some, len(batch), characters, float(len(part) > 0)))
        return parts, tokens

    def _reviews(self, step: int) -> IntArray:
        epoch, at = divmod(step, int(self.steps_per_epoch))
        if self._epoch[0] != epoch:
            order = self.examples.epoch(self.config.train_batch, (self.config.seed, 8, epoch))
            self._epoch = (epoch, order)
        return self._epoch[1][at]

    def loss(self, network: nn.Module, part: _Part) -> Tensor:
        """Cross entropy of the labels (and soft labels), mean over reviews, and `lm_weight` times
        the mean over characters: what the part adds to these means."""
        config, batch = self.config, part.batch.to(self.runtime.device)
        states = self.frozen.of(batch.rows).to(self.runtime.device) if self.frozen else None
        with self.runtime.autocast():
            if config.lm_weight:
                logits, summed = network(batch.ids, batch.ends, batch.targets())
            else:
                logits = network(batch.ids, batch.ends, None, states)
        logits = mean_by_text(logits, batch.texts, len(batch))
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        if self.soft_labels is not None:
            soft = self.soft_labels[torch.from_numpy(batch.reviews)].to(logits.device)
            towards = F.cross_entropy(logits, soft, reduction="sum")
            loss = loss + config.reference_weight * (towards - loss)
        loss = loss / part.reviews
        if config.lm_weight:
            loss = loss + config.lm_weight * summed / max(1, part.characters)
        return loss * part.weight

    def validate(self, stopped: Callable[[], bool]) -> Verdicts | None:
        """The verdicts on the reviews kept for validation."""
        return judge(
            self.model,
            self.validation,
            self.runtime,
            self.config.test_batch,
            self.frozen_validation,
            stopped,
            self.world,
        )


@torch.inference_mode()
def judge(
    model: Classifier,
    examples: Examples,
    runtime: Runtime,
    batch_size: int,
    frozen: FrozenStates | None = None,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Verdicts | None:
    """The mean logits of every review; None where a process was stopped.

    Args:
        batch_size: rows computed at a time, which changes nothing.
        world: the processes that take turns with the batches; all get the result of all.
    """
    logits_RC = torch.zeros(len(examples.lengths), model.score.out_features)
    for rows in in_evaluation(model, examples.rows_in_order(batch_size), "judging", stopped, world):
        ids_RT, ends_R = (t.to(runtime.device) for t in examples.gather(rows))
        states = frozen.of(rows).to(runtime.device) if frozen else None
        with runtime.autocast():
            some = model(ids_RT, ends_R, None, states)
        logits_RC[torch.from_numpy(rows)] = some.float().cpu()
    if any(world.sum(stopped())):
        return None
    logits_RC = torch.tensor(world.sum(*logits_RC.flatten().tolist())).view(logits_RC.shape)
    logits_NC = mean_by_text(logits_RC, examples.text_of_row(), len(examples))
    return Verdicts(logits_NC, torch.from_numpy(examples.labels))
