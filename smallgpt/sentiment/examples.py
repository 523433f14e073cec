"""Reviews -> rows `<start> review <extract>` -> batches of rows of like length.

A review that is longer than a row is cut into chunks of equal length; their logits are averaged.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallgpt.data.reviews import IntArray
from smallgpt.model.classifier import Classifier
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime, to_device
from smallgpt.tokenizer.characters import PAD, UNK, Tokenizer
from smallgpt.training.memory import gib
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

    def to(self, device: torch.device) -> ReviewBatch:
        """The same with its tensors on the device."""
        names = ("ids", "ends", "texts", "labels")
        moved: dict[str, Any] = {name: to_device(getattr(self, name), device) for name in names}
        return dataclasses.replace(self, **moved)

    def within(self, positions: int, reviews: IntArray) -> Iterator[ReviewBatch]:
        """Some neighbouring reviews, as many together as have at most so many positions (rows x
        length with padding). A review's loss needs all its rows: one with more is alone."""
        counts = np.bincount(self.texts)
        lengths = np.maximum.reduceat(self.ends.numpy() + 1, np.cumsum(counts) - counts)
        for group in _neighbours(counts[reviews], lengths[reviews], positions):
            yield self.part(reviews[group])

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
        counts, lengths, flat = [], [], array("i")
        for text in texts:
            chunks = rows_of(tokenizer.encode(text), tokenizer.start, block_size)
            counts.append(min(len(chunks), most_rows or len(chunks)))
            for number in range(counts[-1]):
                row = chunks[number * len(chunks) // counts[-1]]
                lengths.append(len(row))
                flat.extend(row if use_mask else row + [PAD] * (block_size - len(row)))
        self.counts = np.array(counts, np.int64)
        self.lengths = np.array(lengths, np.int64)
        """Of the rows, without padding."""
        self.widths = self.lengths if use_mask else np.full_like(self.lengths, block_size)
        """Of the rows, with the padding that is read."""
        self._starts = np.cumsum(self.widths) - self.widths
        self._ids = np.array(flat, np.int32)
        """All rows, one after the other."""
        self._states: Tensor | None = None
        """Of the same positions, (positions, E)."""

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.labels)

    @property
    def largest(self) -> int:
        """Positions of the review with most: its rows times the longest of them."""
        begins = np.cumsum(self.counts) - self.counts
        return int((self.counts * np.maximum.reduceat(self.widths, begins)).max())

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
        places, inside = self._places(rows)
        ids = np.where(inside, self._ids[places], PAD).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(self.widths[rows] - 1)

    def _places(self, rows: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Where the positions of some rows are among all, (R, T), the last again where padded; and
        which of them are not padded."""
        widths = self.widths[rows, None]
        place = np.arange(widths.max())
        return self._starts[rows, None] + np.minimum(place, widths - 1), place < widths

    def keep_states(
        self, model: Classifier, runtime: Runtime, folder: Path, positions: int
    ) -> None:
        """Compute what the last block is given for each row, once, as all below it is frozen.

        They stay on a GPU where they take at most half of its free memory. Otherwise they lie in a
        file in `folder`, which is mapped into memory and has no name any more, so that nothing is
        left of it when the process ends.

        Args:
            positions: computed at a time.

        Raises:
            UserError: there is no room for it.
        """
        device, dtype, width = runtime.device, runtime.dtype, model.config.n_embd
        size = len(self._ids) * width * dtype.itemsize
        if _fits(size, device):
            states = torch.empty(len(self._ids), width, dtype=dtype, device=device)
        else:
            states = _mapped_file(folder, size).view(dtype).view(-1, width)
        for rows in in_evaluation(model, self.rows_in_order(positions), "frozen blocks"):
            ids_RT, _ = self.gather(rows)
            with torch.no_grad(), runtime.autocast():
                x_RTE = model.transformer.below_last_block(to_device(ids_RT, device))
            places, inside = self._places(rows)
            real = to_device(torch.from_numpy(np.flatnonzero(inside)), device)
            target = to_device(torch.from_numpy(places[inside]), states.device)
            x_NE = x_RTE.flatten(0, 1).index_select(0, real)
            states.index_copy_(0, target, x_NE.to(states.device, dtype))
        self._states = states

    def states_of(self, rows: IntArray, device: torch.device) -> Tensor | None:
        """The kept states of some rows, (R, T, E); None where none is kept."""
        if self._states is None:
            return None
        places = torch.from_numpy(self._places(rows)[0])
        if self._states.device.type == "cpu":
            return to_device(F.embedding(places, self._states), device)
        return F.embedding(to_device(places, device), self._states)

    def rows_in_order(self, positions: int) -> list[IntArray]:
        """All rows once, in batches of like length, the longest first; of as many rows as have at
        most so many positions with padding, or of one."""
        order = np.argsort(self.lengths, kind="stable")[::-1].copy()
        groups = _neighbours(np.ones_like(order), self.widths[order], positions)
        return [order[group] for group in groups]

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


def _neighbours(rows: IntArray, lengths: IntArray, positions: int) -> list[IntArray]:
    """The numbers of neighbours, as many together as have at most so many positions, or one.

    Args:
        rows, lengths: of each one, how many rows it has, and the length of the longest, (N,).
    """
    cuts, count, longest = [], 0, 0
    for number, (more, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        count, longest = count + more, max(longest, length)
        if count > more and count * longest > positions:
            cuts.append(number)
            count, longest = more, length
    return np.split(np.arange(len(rows)), cuts)


def _fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may stay on a device."""
    return device.type == "cuda" and 2 * size <= torch.cuda.mem_get_info(device)[0]


def _mapped_file(folder: Path, size: int) -> Tensor:
    """So many bytes in a file without a name, mapped into memory."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Writing to a mapped file that has no room would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
    except OSError as error:
        raise UserError(
            f"no room in {folder} for {gib(size)} of states: {error.strerror}",
            "make room, or set frozen: False",
        ) from None


def rows_of(ids: list[int], start: int, block_size: int) -> list[list[int]]:
    """`<start> chunk <extract>` for each chunk of a text, as few and as equal as can be.

    Args:
        start: the id of `<start>`; that of `<extract>` is the next one.
    """
    count = max(1, -(-len(ids) // (block_size - 2)))
    cuts = [len(ids) * n // count for n in range(count + 1)]
    return [[start, *ids[begin:end], start + 1] for begin, end in itertools.pairwise(cuts)]
