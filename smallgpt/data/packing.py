"""Dialogues -> rows of `block_size` positions with next to nothing wasted, and their order.

A dialogue of n ids has n - 1 positions: the input is every id but the last, the target every id but
the first. Several dialogues share a row; each keeps its own positions from 0 and, through its
document number, its own attention (see model.GPT.forward).

A dialogue longer than a row is cut into chunks, each in a row of its own or with others. The rule:
a chunk ends at the last `<sep>` in the last quarter of its row, else at the row's end; the next
chunk begins with the very id the last one ended on (that `<sep>`). So every id but the dialogue's
first is a target once. A dialogue that fits a row is one chunk.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallgpt.data.corpus import Corpus, IntArray
from smallgpt.model.loss import IGNORED
from smallgpt.tokenizer.characters import PAD, SEP, UNK
from smallgpt.tokenizer.subwords import SubwordTokenizer


class Batch(NamedTuple):
    """Rows for the model; all tensors int64, shape (B, T).

    ids: inputs; targets: the next ids, `IGNORED` where there is nothing to learn;
    positions: place in the dialogue; documents: which dialogue of the row, -1 for empty places.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor

    def joined(self, other: Batch) -> Batch:
        """The rows of this batch, and behind them those of the other."""
        return Batch(*(torch.cat(both) for both in zip(self, other, strict=True)))

    def parts(self, count: int) -> list[Batch]:
        """`count` batches of equal size, for gradient accumulation."""
        return [Batch(*part) for part in zip(*(t.chunk(count) for t in self), strict=True)]

    def filled_up(self, rows: int) -> Batch:
        """The same batch with empty rows behind it, `rows` in all."""
        missing = (0, 0, 0, rows - len(self.ids))
        filled = zip(self, (PAD, IGNORED, 0, -1), strict=True)
        return Batch(*(F.pad(values, missing, value=empty) for values, empty in filled))

    def bounds(self) -> Tensor:
        """Where each dialogue begins, as `GPT.forward` has it; what is empty counts as a dialogue.

        Filled up with its end, which are dialogues of no length, to a multiple of 64: memory for
        them is asked for in few sizes.
        """
        begins = torch.ones_like(self.documents, dtype=torch.bool)
        begins[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        (starts,) = begins.flatten().nonzero(as_tuple=True)
        size = (len(starts) // 64 + 1) * 64
        return F.pad(starts, (0, size - len(starts)), value=begins.numel()).int()

    def target_count(self) -> int:
        """Number of targets that count: real tokens, each `<sep>` and end of dialogue."""
        return int(np.count_nonzero(self.targets.numpy() != IGNORED))


class PackedRows:
    """Chosen dialogues of a corpus, by index, packed into rows of `block_size` positions.

    Args:
        seed: which dialogues of equal length meet in a row.
        id_map: for each id of the corpus its id in the model's vocabulary, where that is another
            one (resuming on new text). What is `<unk>` in it is never a target.
        replies_only: only every second utterance is a target, what the model is to say.
    """

    def __init__(
        self,
        corpus: Corpus,
        dialogues: IntArray,
        block_size: int,
        seed: int,
        id_map: npt.NDArray[Any] | None = None,
        replies_only: bool = False,
    ) -> None:
        self.corpus = corpus
        self.dialogues = dialogues
        self.block_size = block_size
        self.id_map = id_map
        self.replies_only = replies_only
        own = corpus.tokenizer
        self._sizes = own.lengths() if isinstance(own, SubwordTokenizer) else None
        self._first_nats = own.first_nats()
        starts, lengths, self.continued = split_long(corpus, dialogues, block_size)
        row, offset = pack(lengths, block_size, np.random.default_rng((seed, 1)))
        order = np.lexsort((offset, row))
        self._starts, self._lengths, self._offset = starts[order], lengths[order], offset[order]
        rows = int(row.max()) + 1 if len(row) else 0
        self._first_chunk = np.searchsorted(row[order], np.arange(rows + 1))
        self.positions = int(lengths.sum())

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._first_chunk) - 1

    def texts_a_row(self, context_dropout: float = 0.0) -> float:
        """Dialogues, or parts that begin anew, in a row, on average."""
        beginning = self.corpus.ids[:1_000_000]
        separators = self.positions * np.count_nonzero(beginning == SEP) / max(1, len(beginning))
        return float(len(self._lengths) + context_dropout * separators) / max(1, len(self))

    def efficiency(self) -> float:
        """Share of the computed positions that carry a target."""
        return self.positions / max(1, len(self) * self.block_size)

    def batch(
        self,
        rows: IntArray,
        unk_rate: float = 0.0,
        context_dropout: float = 0.0,
        seed: tuple[int, ...] = (0,),
    ) -> Batch:
        """Gather rows by their numbers, (B,).

        What is random is drawn from `seed`; targets stay as they are.

        Args:
            unk_rate: how likely a rare character is shown to the model as `<unk>`, so that it
                learns to read past unknown ones.
            context_dropout: how likely an utterance, with its `<sep>` in front, begins anew, as if
                nothing had been said before, so that the model learns p(reply) too.
        """
        first, last = self._first_chunk[rows], self._first_chunk[rows + 1]
        count = last - first
        chunk = _ranges(first, count)
        length = self._lengths[chunk]
        within = _ranges(np.zeros_like(length), length)
        source = np.repeat(self._starts[chunk], length) + within
        row = np.repeat(np.repeat(np.arange(len(rows)), count), length)
        place = row * self.block_size + np.repeat(self._offset[chunk], length) + within

        ids = self.corpus.ids[source].astype(np.int64)
        targets = self.corpus.ids[source + 1].astype(np.int64)
        if self.replies_only:
            turns = self._turns(ids, chunk, length)
            targets = np.where(turns % 2 == 1, targets, IGNORED)
        random, shown = np.random.default_rng(seed), ids
        if unk_rate:
            chance = random.random(len(ids), np.float32)
            shown = np.where((ids >= self.corpus.rare_from) & (chance < unk_rate), UNK, ids)
        begins = within == 0
        if context_dropout:
            begins |= (ids == SEP) & (random.random(len(ids), np.float32) < context_dropout)
        number = np.cumsum(begins) - 1
        positions = np.arange(len(ids)) - np.flatnonzero(begins)[number]
        documents = number - number[np.searchsorted(row, row)]  # less that of the row's first place
        if self.id_map is not None:
            counts = targets != IGNORED
            shown, targets = self.id_map[shown], self.id_map[np.where(counts, targets, UNK)]
        targets = np.where(targets == UNK, IGNORED, targets)

        def filled(values: IntArray, empty: int) -> Tensor:
            flat = np.full(len(rows) * self.block_size, empty, np.int64)
            flat[place] = values
            return torch.from_numpy(flat.reshape(len(rows), self.block_size))

        return Batch(
            ids=filled(shown, PAD),
            targets=filled(targets, IGNORED),
            positions=filled(positions, 0),
            documents=filled(documents, -1),
        )

    def characters(self, batch: Batch) -> int:
        """How many characters the targets of a batch of these rows stand for, each `<sep>` and end
        of a dialogue included."""
        if self._sizes is None:
            return batch.target_count()
        targets = batch.targets.numpy()
        return int(self._sizes[targets[targets != IGNORED]].sum())

    def behind_first(self, rows: IntArray) -> tuple[int, float]:
        """How many characters the first tokens of the dialogues in these rows have behind their
        first, and what these cost, nats; see training/validation.py."""
        if self._first_nats is None or self._sizes is None or self.replies_only:
            return 0, 0.0
        first = self._first_chunk[rows]
        starts = self._starts[_ranges(first, self._first_chunk[rows + 1] - first)]
        begins = (starts == 0) | (self.corpus.ids[starts - 1] == PAD)
        ids = self.corpus.ids[starts[begins]]
        return int((self._sizes[ids] - 1).sum()), float(self._first_nats[ids].sum())

    def _turns(self, ids: IntArray, chunk: IntArray, length: IntArray) -> IntArray:
        """The number of the utterance, from 0, that each target belongs to."""
        starts, ends = self._starts[chunk], self.corpus.ends
        dialogue = np.searchsorted(ends, starts, side="right")
        begins = np.where(dialogue > 0, ends[dialogue - 1], 0)
        before = np.zeros_like(starts)
        for i in np.flatnonzero(begins < starts):  # of a continued dialogue, ended earlier
            before[i] = np.count_nonzero(self.corpus.ids[begins[i] : starts[i]] == SEP)
        ended = np.cumsum(ids == SEP)
        first = np.cumsum(length) - length
        before_chunk = ended[first] - (ids[first] == SEP)
        return ended + np.repeat(before - before_chunk, length)


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """start, start + 1, … of each given length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def split_long(
    corpus: Corpus, dialogues: IntArray, block_size: int
) -> tuple[IntArray, IntArray, int]:
    """Cut the dialogues into chunks that fit a row.

    Returns where each chunk's input starts in `corpus.ids`, its positions (1 to block_size), and
    how many dialogues had to be continued.
    """
    begin = np.concatenate(([0], corpus.ends[:-1]))[dialogues]
    end = corpus.ends[dialogues] - 1  # the last id is a target only
    continued = int(np.count_nonzero(end - begin > block_size))
    starts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while len(begin):
        long = end - begin > block_size
        starts.append(begin[~long])
        lengths.append((end - begin)[~long])
        begin, end = begin[long], end[long]
        cut = _last_separator(corpus.ids, begin, block_size)
        starts.append(begin)
        lengths.append(cut - begin)
        begin = cut
    return np.concatenate(starts), np.concatenate(lengths), continued


def _last_separator(ids: npt.NDArray[Any], begin: IntArray, block_size: int) -> IntArray:
    """Place of the last `<sep>` in the last quarter of each row, else the row's end."""
    cut = begin + block_size
    back = np.arange(block_size // 4)
    for at in range(0, len(begin), 1 << 14):  # in parts, to bound memory
        part = slice(at, at + (1 << 14))
        is_separator = ids[cut[part, None] - back] == SEP
        cut[part] -= np.where(is_separator.any(1), is_separator.argmax(1), 0)
    return cut


def pack(lengths: IntArray, block_size: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Best-fit decreasing bin packing: each chunk goes into the fullest row that has room.

    Works on whole groups of chunks of equal length and rows of equal room, so the cost grows with
    block_size², not with chunks (histogram packing, Krell et al., arXiv:2107.02027).
    Returns the row of each chunk and its offset in that row.
    """
    row, offset = np.empty_like(lengths), np.empty_like(lengths)
    room: list[list[IntArray]] = [[] for _ in range(block_size + 1)]  # rows by free positions
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bounds = np.flatnonzero(np.diff(lengths[by_length])) + 1
    rows = 0
    for chunks in np.split(by_length, bounds) if len(lengths) else []:
        length = int(lengths[chunks[0]])
        for free in range(length, block_size + 1):
            each = free // length
            while len(chunks) and (room[free] or free == block_size):
                if room[free]:
                    group = room[free].pop()
                else:
                    group = rows + np.arange(-(-len(chunks) // each))
                    rows += len(group)
                # A row takes all it can before the next: it is the fullest with room now.
                placed = min(len(chunks), each * len(group))
                nth = np.arange(placed)
                row[chunks[:placed]] = group[nth // each]
                offset[chunks[:placed]] = block_size - free + nth % each * length
                chunks = chunks[placed:]
                full, more = divmod(placed, each)
                touched = full + (more > 0)
                used = (group[:full], each), (group[full:touched], more), (group[touched:], 0)
                for some, taken in used:
                    if len(some):
                        room[free - taken * length].append(some)
    return row, offset


class RowOrder(NamedTuple):
    """The endless sequence of the `rows` rows of a run: each epoch is a permutation of its own."""

    rows: int
    seed: int

    def take(self, start: int, count: int) -> IntArray:
        """Rows number `start` to `start + count` of the sequence, counted over all epochs."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, at = divmod(start, self.rows)
            part = _permutation(self.rows, self.seed, epoch)[at : at + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


@functools.lru_cache(maxsize=2)  # the text's, and that of what is mixed in
def _permutation(rows: int, seed: int, epoch: int) -> IntArray:
    return np.random.default_rng((seed, 2, epoch)).permutation(rows)
