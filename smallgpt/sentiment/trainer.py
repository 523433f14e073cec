"""One training step of a classifier, and its verdict on reviews it does not learn from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import IntArray
from smallgpt.model.classifier import Classifier, mean_by_text
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime, seed_everything
from smallgpt.sentiment.examples import Examples, ReviewBatch
from smallgpt.tokenizer.characters import UNK
from smallgpt.training.trainer import StepResult
from smallgpt.training.update import Updater
from smallgpt.utils.errors import UserError

FloatArray = npt.NDArray[np.float32]


class FrozenStates:
    """What the last block is given, computed once: the blocks below it do not change.

    The states lie one row after the other in a file in `folder`, which is mapped into memory and
    has no name any more, so that nothing is left of it when the process ends.

    Args:
        model: the classifier, whose lower blocks are frozen.
    """

    def __init__(
        self, model: Classifier, examples: Examples, runtime: Runtime, folder: Path
    ) -> None:
        lengths = (
            examples.lengths
            if examples.use_mask
            else np.full(len(examples.lengths), examples.block_size)
        )
        self._starts, self._lengths = np.cumsum(lengths) - lengths, lengths
        width, total = model.config.n_embd, int(lengths.sum())
        size = total * width * runtime.dtype.itemsize
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                reserve(file, size)
                mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
        except OSError as error:
            raise UserError(
                f"no room in {folder} for {size / 2**30:.1f} GiB of states: {error.strerror}",
                "make room, or set frozen: False",
            ) from None
        self._states = torch.from_numpy(mapped).view(runtime.dtype).view(total, width)
        self._fill(model, examples, runtime)

    @torch.no_grad()
    def _fill(self, model: Classifier, examples: Examples, runtime: Runtime) -> None:
        was_training = model.training
        model.eval()
        for rows in tqdm(examples.rows_in_order(64), desc="frozen blocks", leave=False, delay=1):
            ids_RT, _ = examples.gather(rows)
            with runtime.autocast():
                x_RTE = model.transformer.below_last_block(ids_RT.to(runtime.device))
            x_RTE = x_RTE.to("cpu", self._states.dtype)
            for row, x_TE in zip(rows, x_RTE, strict=True):
                start, length = self._starts[row], self._lengths[row]
                self._states[start : start + length] = x_TE[:length]
        model.train(was_training)

    def of(self, rows: IntArray) -> Tensor:
        """The states of some rows, (R, T, E); zeros where it is padded."""
        T = int(self._lengths[rows].max())
        x_RTE = torch.zeros(len(rows), T, self._states.shape[1], dtype=self._states.dtype)
        for place, row in zip(x_RTE, rows, strict=True):
            start, length = self._starts[row], self._lengths[row]
            place[:length] = self._states[start : start + length]
        return x_RTE


def reserve(file: IO[bytes], size: int) -> None:
    """Make a file `size` bytes long, with room on the disk for all of them.

    Raises:
        OSError: there is no room; found out here, as writing to a mapped file that has none would
            kill the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@dataclass(frozen=True)
class Verdicts:
    """logits: of each review, (N, C), float32; labels: the right ones, (N,)."""

    logits: Tensor
    labels: Tensor

    @property
    def loss(self) -> float:
        """Mean cross entropy, nats."""
        return F.cross_entropy(self.logits, self.labels).item()

    @property
    def accuracy(self) -> float:
        """Share of reviews judged right."""
        return (self.logits.argmax(1) == self.labels).float().mean().item()

    def probabilities(self) -> FloatArray:
        """(N, C)."""
        return self.logits.softmax(1).numpy()


class ClassifierTrainer(Updater):
    """Model, optimizer and place in the data.

    Every random number of a step is a function of the seed and the step, as in training.loop.

    Args:
        model: moved to the device; trained in place.
        soft_labels: probabilities of the classes, (N, C), for `reference_weight`.
        folder: where the states of frozen blocks are kept while it trains.
    """

    config: SentimentConfig
    model: Classifier

    def __init__(
        self,
        config: SentimentConfig,
        runtime: Runtime,
        model: Classifier,
        examples: Examples,
        folder: Path,
        soft_labels: FloatArray | None = None,
    ) -> None:
        self.examples = examples
        self.soft_labels = None if soft_labels is None else torch.from_numpy(soft_labels)
        self.frozen: FrozenStates | None = None
        if config.frozen:
            model.freeze()
            self.frozen = FrozenStates(model, examples, runtime, folder)
        super().__init__(config, runtime, model)
        self._epoch: tuple[int, list[IntArray]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every review is seen once."""
        return -(-len(self.examples) // self.config.train_batch)

    def step(self) -> StepResult:
        """One optimizer step over `train_batch` reviews.

        Raises:
            DivergedError: the loss or the gradient is not finite; nothing was changed.
        """
        config, step = self.config, self.completed
        seed_everything(config.seed, 7, step)
        lr = self._set_rate()
        reviews = self._reviews(step)
        loss, tokens = 0.0, 0
        for part in np.array_split(reviews, min(config.accumulate, len(reviews))):
            batch = self.examples.batch(part)
            share = len(part) / len(reviews)
            tokens += int(self.examples.lengths[batch.rows].sum())
            part_loss = self._loss(batch.to(self.runtime.device), part) * share
            self._backward(part_loss)
            loss += part_loss.item()
        return StepResult(loss, self._update(loss), lr, tokens)

    def _reviews(self, step: int) -> IntArray:
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = self.examples.epoch(self.config.train_batch, (self.config.seed, 8, epoch))
            self._epoch = (epoch, order)
        return self._epoch[1][at]

    def _loss(self, batch: ReviewBatch, reviews: IntArray) -> Tensor:
        """Cross entropy of the labels (and soft labels), mean over reviews, and `lm_weight` times
        the mean over characters.

        Args:
            reviews: the numbers of the batch's reviews in the Examples.
        """
        model, weight = self.model, self.config.lm_weight
        ids = self._with_gaps(batch)
        with self.runtime.autocast():
            if self.frozen:
                states = self.frozen.of(batch.rows).to(self.runtime.device)
                logits = model(ids, batch.ends, states_RTE=states)
            elif weight:
                targets = batch.targets()
                logits, summed = model(ids, batch.ends, targets)
            else:
                logits = model(ids, batch.ends)
        logits = mean_by_text(logits, batch.texts, len(batch))
        loss = F.cross_entropy(logits, batch.labels)
        if self.soft_labels is not None:
            soft = self.soft_labels[torch.from_numpy(reviews)].to(logits.device)
            loss = loss + self.config.reference_weight * (F.cross_entropy(logits, soft) - loss)
        if weight:
            loss = loss + weight * summed / (targets != IGNORED).sum().clamp(min=1)
        return loss

    def _with_gaps(self, batch: ReviewBatch) -> Tensor:
        """The ids, (R, T), with some characters shown as `<unk>`."""
        rate = self.config.character_dropout
        if not rate:
            return batch.ids
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        inside = (place > 0) & (place < batch.ends[:, None])
        gaps = torch.rand(batch.ids.shape, device=batch.ids.device) < rate
        return batch.ids.masked_fill(gaps & inside, UNK)


@torch.inference_mode()
def judge(
    model: Classifier,
    examples: Examples,
    runtime: Runtime,
    batch_size: int,
    frozen: FrozenStates | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdicts | None:
    """The mean logits of every review; None where `stopped()` became true.

    Args:
        batch_size: rows computed at a time, which changes nothing.
    """
    logits_RC = torch.zeros(len(examples.lengths), model.score.out_features)
    was_training = model.training
    model.eval()
    try:
        for rows in tqdm(examples.rows_in_order(batch_size), desc="judging", leave=False, delay=1):
            if stopped():
                return None
            ids_RT, ends_R = (t.to(runtime.device) for t in examples.gather(rows))
            with runtime.autocast():
                states = frozen.of(rows).to(runtime.device) if frozen else None
                some = model(ids_RT, ends_R, states_RTE=states)
            logits_RC[torch.from_numpy(rows)] = some.float().cpu()
    finally:
        model.train(was_training)
    logits_NC = mean_by_text(logits_RC, examples.text_of_row(), len(examples))
    return Verdicts(logits_NC, torch.from_numpy(examples.labels))
