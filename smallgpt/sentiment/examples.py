"""Reviews -> rows `<start> review <extract>` -> batches of rows of like length.

A review that is longer than a row is cut into chunks of equal length; their logits are averaged.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smallgpt.data.reviews import IntArray
from smallgpt.model.classifier import Classifier
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import PAD, UNK, Tokenizer
from smallgpt.training.validation import in_evaluation
from smallgpt.utils.errors import UserError

BUCKET = 32
"""Batches whose reviews are sorted by length together: what an epoch's order leaves to chance."""


@dataclass(frozen=True)
class ReviewBatch:
    """Rows for the classifier; all int64.

    ids: (R, T), padded with `<pad>`; ends: position of the verdict in each row, (R,);
    texts: number of the review of each row within the batch, (R,), rising; labels: (N,), by review;
    rows, reviews: numbers in the Examples, (R,) and (N,).
    """

    ids: Tensor
    ends: Tensor
    texts: Tensor
    labels: Tensor
    rows: IntArray
    reviews: IntArray

    def part(self, reviews: IntArray) -> ReviewBatch:
        """A batch of some neighbouring reviews, by their numbers in this one; at least one."""
        first, last = int(reviews[0]), int(reviews[-1]) + 1
        rows = ((self.texts >= first) & (self.texts < last)).numpy()
        ends = self.ends[rows]
        ids = self.ids[rows, : int(ends.max()) + 1]
        texts, labels = self.texts[rows] - first, self.labels[first:last]
        return ReviewBatch(ids, ends, texts, labels, self.rows[rows], self.reviews[first:last])

    def targets(self) -> Tensor:
        """The next ids, for the language-model loss, (R, T): the characters of the review."""
        place = torch.arange(self.ids.shape[1])
        following = self.ids.roll(-1, dims=1)
        return following.masked_fill(place + 1 >= self.ends[:, None], IGNORED)

    def with_gaps(self, rate: float, seed: tuple[int, ...]) -> ReviewBatch:
        """The same batch, with characters shown as `<unk>` at this rate."""
        chance = np.random.default_rng(seed).random(tuple(self.ids.shape), np.float32)
        place = torch.arange(self.ids.shape[1])
        inside = (place > 0) & (place < self.ends[:, None])
        ids = self.ids.masked_fill(inside & torch.from_numpy(chance < rate), UNK)
        return dataclasses.replace(self, ids=ids)


class Examples:
    """Encoded reviews; each has `counts` of the rows, in order.

    Args:
        labels: the number of each review's label, (N,).
        use_mask: read the verdict at `<extract>`; else every row is padded to `block_size` and it
            is read at its end.
        most_rows: of a review with more rows only so many are used, evenly spaced, so that memory
            is bounded where a review is learnt from as a whole.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: IntArray,
        tokenizer: Tokenizer,
        block_size: int,
        use_mask: bool,
        most_rows: int | None = None,
    ) -> None:
        self.labels = labels
        self.rows: list[Tensor] = []
        counts, lengths = [], []
        for text in texts:
            chunks = rows_of(tokenizer.encode(text), tokenizer.start, block_size)
            counts.append(min(len(chunks), most_rows or len(chunks)))
            for number in range(counts[-1]):
                row = chunks[number * len(chunks) // counts[-1]]
                lengths.append(len(row))
                padding = [] if use_mask else [PAD] * (block_size - len(row))
                self.rows.append(torch.tensor(row + padding, dtype=torch.int32))
        self.counts = np.array(counts, np.int64)
        self.lengths = np.array(lengths, np.int64)
        """Of the rows, without padding."""
        self.states: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.labels)

    def batch(self, reviews: npt.ArrayLike) -> ReviewBatch:
        """Gather reviews by number, padded to the longest row."""
        reviews = np.asarray(reviews, np.int64)
        ends, counts = np.cumsum(self.counts)[reviews], self.counts[reviews]
        rows = np.concatenate(list(map(np.arange, ends - counts, ends)))
        texts = torch.from_numpy(np.repeat(np.arange(len(reviews)), counts))
        return ReviewBatch(
            *self.gather(rows), texts, torch.from_numpy(self.labels[reviews]), rows, reviews
        )

    def gather(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """ids, (R, T), padded to the longest of these rows, and ends, (R,)."""
        chosen = [self.rows[row] for row in rows]
        ids = pad_sequence(chosen, batch_first=True, padding_value=PAD).long()
        return ids, torch.tensor([len(row) - 1 for row in chosen])

    def keep_states(self, model: Classifier, runtime: Runtime, folder: Path) -> None:
        """Compute what the last block is given for each row, once, as all below it is frozen.

        The states lie one row after the other in a file in `folder`, which is mapped into memory
        and has no name any more, so that nothing is left of it when the process ends.

        Raises:
            UserError: there is no room for it.
        """
        lengths, width = [len(row) for row in self.rows], model.config.n_embd
        size = sum(lengths) * width * runtime.dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # Writing to a mapped file that has no room would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
        except OSError as error:
            raise UserError(
                f"no room in {folder} for {size / 2**30:.1f} GiB of states: {error.strerror}",
                "make room, or set frozen: False",
            ) from None
        states = torch.from_numpy(mapped).view(runtime.dtype).view(-1, width).split(lengths)
        for rows in in_evaluation(model, self.rows_in_order(64), "frozen blocks"):
            ids_RT, _ = self.gather(rows)
            with torch.no_grad(), runtime.autocast():
                x_RTE = model.transformer.below_last_block(ids_RT.to(runtime.device))
            for row, x_TE in zip(rows, x_RTE.to("cpu", runtime.dtype), strict=True):
                states[row].copy_(x_TE[: lengths[row]])
        self.states = states

    def states_of(self, rows: IntArray, device: torch.device) -> Tensor | None:
        """The kept states of some rows, (R, T, E), zeros where padded; None where none is kept."""
        if self.states is None:
            return None
        return pad_sequence([self.states[row] for row in rows], batch_first=True).to(device)

    def rows_in_order(self, batch_size: int) -> list[IntArray]:
        """All rows once, in batches of like length, the longest first."""
        return _batches(np.argsort(self.lengths, kind="stable")[::-1].copy(), batch_size)

    def epoch(self, batch_size: int, seed: tuple[int, ...]) -> list[IntArray]:
        """All reviews once, by chance, in batches of like length.

        The order is a function of the seed alone. A last batch that is not full is kept.
        """
        generator = np.random.default_rng(seed)
        longest = np.maximum.reduceat(self.lengths, np.cumsum(self.counts) - self.counts)
        batches = []
        for bucket in _batches(generator.permutation(len(self)), batch_size * BUCKET):
            batches += _batches(bucket[np.argsort(longest[bucket], kind="stable")], batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]


def _batches(order: IntArray, size: int) -> list[IntArray]:
    return np.split(order, np.arange(size, len(order), size))


def rows_of(ids: list[int], start: int, block_size: int) -> list[list[int]]:
    """`<start> chunk <extract>` for each chunk of a text, as few and as equal as can be.

    Args:
        start: the id of `<start>`; that of `<extract>` is the next one.
    """
    count = max(1, -(-len(ids) // (block_size - 2)))
    cuts = [len(ids) * n // count for n in range(count + 1)]
    return [[start, *ids[begin:end], start + 1] for begin, end in itertools.pairwise(cuts)]
