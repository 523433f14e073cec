"""Reviews -> rows `<start> review <extract>` -> batches of rows of like length.

A review that is longer than a row is cut into pieces of equal length; their logits are averaged.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.data.reviews import IntArray
from smallgpt.model.loss import IGNORED
from smallgpt.tokenizer.characters import PAD, UNK, Tokenizer

BUCKET = 32
"""Batches whose reviews are sorted by length together: what an epoch's order leaves to chance."""


@dataclass(frozen=True)
class ReviewBatch:
    """Rows for the classifier; all int64.

    ids: (R, T), padded with `<pad>`; ends: position of the verdict in each row, (R,);
    texts: number of the review of each row within the batch, (R,), rising; labels: (N,), by review;
    rows, reviews: numbers in the Examples, (R,) and (N,), wherever the tensors are.
    """

    ids: Tensor
    ends: Tensor
    texts: Tensor
    labels: Tensor
    rows: IntArray
    reviews: IntArray

    def __len__(self) -> int:
        """N, the number of reviews."""
        return len(self.labels)

    def to(self, device: torch.device) -> ReviewBatch:
        """The same batch on another device."""
        ids, ends, texts, labels = (
            t.to(device) for t in (self.ids, self.ends, self.texts, self.labels)
        )
        return dataclasses.replace(self, ids=ids, ends=ends, texts=texts, labels=labels)

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
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        following = self.ids.roll(-1, dims=1)
        return following.masked_fill(place + 1 >= self.ends[:, None], IGNORED)

    def with_gaps(self, rate: float, seed: tuple[int, ...]) -> ReviewBatch:
        """The same batch, with characters shown as `<unk>` at this rate."""
        chance = np.random.default_rng(seed).random(tuple(self.ids.shape), np.float32)
        place = torch.arange(self.ids.shape[1])
        inside = (place > 0) & (place < self.ends[:, None])
        return dataclasses.replace(
            self, ids=self.ids.masked_fill(inside & torch.from_numpy(chance < rate), UNK)
        )


class Examples:
    """Encoded reviews.

    Args:
        texts: the reviews.
        labels: the number of each one's label, (N,).
        tokenizer: that of the classifier.
        block_size: T at most.
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
        self.block_size = block_size
        self.use_mask = use_mask
        encoded = [rows_of(tokenizer.encode(text), tokenizer.start, block_size) for text in texts]
        if most_rows is not None:
            encoded = [_spaced(rows, most_rows) for rows in encoded]
        rows = [row for review in encoded for row in review]
        self.first_row = np.cumsum([0, *(len(review) for review in encoded)])
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.array([i for row in rows for i in row], np.int32)

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.labels)

    def batch(self, reviews: npt.ArrayLike) -> ReviewBatch:
        """Gather reviews by number, padded to the longest row."""
        reviews = np.asarray(reviews, np.int64)
        counts = self.first_row[reviews + 1] - self.first_row[reviews]
        texts = np.repeat(np.arange(len(reviews)), counts)
        rows = np.concatenate(
            [np.arange(self.first_row[r], self.first_row[r + 1]) for r in reviews]
        )
        labels = torch.from_numpy(self.labels[reviews])
        ids, ends = self.gather(rows)
        return ReviewBatch(ids, ends, torch.from_numpy(texts), labels, rows, reviews)

    def gather(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """ids, (R, T), padded to the longest of these rows, and ends, (R,)."""
        width = int(self.lengths[rows].max()) if self.use_mask else self.block_size
        ids = np.full((len(rows), width), PAD, np.int64)
        for place, row in zip(ids, rows, strict=True):
            start, length = self.starts[row], self.lengths[row]
            place[:length] = self.ids[start : start + length]
        ends = self.lengths[rows] - 1 if self.use_mask else np.full(len(rows), width - 1)
        return torch.from_numpy(ids), torch.from_numpy(ends)

    def rows_in_order(self, batch_size: int) -> list[IntArray]:
        """All rows once, in batches of like length, the longest first."""
        return _batches(np.argsort(self.lengths, kind="stable")[::-1].copy(), batch_size)

    def text_of_row(self) -> Tensor:
        """The number of the review of each row."""
        return torch.from_numpy(np.repeat(np.arange(len(self)), np.diff(self.first_row)))

    def epoch(self, batch_size: int, seed: tuple[int, ...]) -> list[IntArray]:
        """All reviews once, by chance, in batches of like length.

        The order is a function of the seed alone. A last batch that is not full is kept.
        """
        generator = np.random.default_rng(seed)
        shuffled = generator.permutation(len(self))
        longest = self._longest()
        batches = []
        for at in range(0, len(shuffled), batch_size * BUCKET):
            bucket = shuffled[at : at + batch_size * BUCKET]
            batches += _batches(bucket[np.argsort(longest[bucket], kind="stable")], batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]

    @property
    def cut(self) -> int:
        """How many reviews have several rows."""
        return int((np.diff(self.first_row) > 1).sum())

    def _longest(self) -> IntArray:
        """Length of each review's longest row, (N,)."""
        if not len(self):
            return np.empty(0, np.int64)
        return np.maximum.reduceat(self.lengths, self.first_row[:-1])


def _batches(order: IntArray, size: int) -> list[IntArray]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def _spaced(rows: list[list[int]], most: int) -> list[list[int]]:
    if len(rows) <= most:
        return rows
    return [rows[n * len(rows) // most] for n in range(most)]


def rows_of(ids: list[int], start: int, block_size: int) -> list[list[int]]:
    """`<start> piece <extract>` for each piece of a text, as few and as equal as can be.

    Args:
        start: the id of `<start>`; that of `<extract>` is the next one.
    """
    count = max(1, -(-len(ids) // (block_size - 2)))
    cuts = [len(ids) * n // count for n in range(count + 1)]
    return [[start, *ids[begin:end], start + 1] for begin, end in itertools.pairwise(cuts)]
