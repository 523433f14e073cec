"""What generation keeps of the ids read so far, and what a forward pass adds to it.

Shapes are named as in `gpt.py`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from smallgpt.config import ModelConfig
from smallgpt.model.attention import additive, attend

MORE = 64
"""Positions that a cache grows by."""


class KeyValueCache:
    """Keys and values of the ids that rows have read so far; each row is a text of its own.

    Args:
        config: the model's shape.
        weight: one of the model's, for the device and the type.
        rows: B, how many texts there is room for.
        positions: S, which memory is taken for at once; `reserve` takes more.
    """

    def __init__(
        self, config: ModelConfig, weight: Tensor, rows: int = 1, positions: int = 0
    ) -> None:
        # A CPU is quicker at attention in float32, in which it need not copy keys and values.
        on_cpu = weight.device.type == "cpu"
        dtype = torch.promote_types(weight.dtype, torch.float32) if on_cpu else weight.dtype
        self.most = config.block_size
        """How many ids a row can have."""
        self.earlier = config.ngram_order - 1
        """How many ids before a new one its embedding needs."""
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        """What each row has read."""
        width = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, positions, width)
        self.memory = torch.zeros(shape, device=weight.device, dtype=dtype)
        """(layers, 2, B, H, S, D), on a CPU in float32. What is behind a row's ids is void, but
        finite: it is multiplied by 0."""

    @property
    def lengths(self) -> list[int]:
        """How many ids each row has read."""
        return [len(ids) for ids in self.ids]

    @torch.inference_mode(False)  # or nothing outside of it could write there
    def reserve(self, positions: int) -> None:
        """Take memory for so many positions of each row, where there is less.

        And for a few more, so that a talk which grows is not copied at every turn.
        """
        *shape, before, width = self.memory.shape
        if positions > before:
            end, room = max(self.lengths), math.ceil(positions / MORE) * MORE
            larger = self.memory.new_zeros(*shape, min(room, self.most), width)
            larger[..., :end, :] = self.memory[..., :end, :]
            self.memory = larger

    def common_prefix(self, row: int, ids: Sequence[int]) -> int:
        """How many of these ids the row begins with."""
        pairs = zip(self.ids[row], ids, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def keep_prefix(self, row: int, ids: Sequence[int]) -> int:
        """Forget what follows the longest common prefix of a row and `ids`; its length."""
        same = self.common_prefix(row, ids)
        del self.ids[row][same:]
        return same

    def copy(self, row: int, other: "KeyValueCache", other_row: int, length: int) -> None:
        """Let a row have read the first `length` ids of a row of `other`, which may be this."""
        self.reserve(length)
        self.memory[:, :, row, :, :length] = other.memory[:, :, other_row, :, :length]
        self.ids[row] = other.ids[other_row][:length]

    def append(self, rows: Sequence[int], new: Sequence[Sequence[int]]) -> None:
        """Let rows have read new ids, whose keys and values are in `memory` by now."""
        for row, ids in zip(rows, new, strict=True):
            self.ids[row] += ids

    def windows(self, row: int, new: Sequence[int]) -> list[list[int]]:
        """Each new id of a row behind those that its embedding needs, 0 where there are none."""
        before = self.earlier
        near = [*[0] * before, *self.ids[row][-before:], *new]
        first = len(near) - len(new) - before
        return [near[at : at + before + 1] for at in range(first, len(near) - before)]


class Reading:
    """New ids of some rows of a cache, for one forward pass: (N, 1), as if each were a row.

    What concerns a position alone is computed for all N together. Attention is computed by groups:
    all rows with one new id are a group, and all with equally many behind equally many.

    Args:
        rows: of the cache, in any order, each once.
        new: the ids of each row, at least one.
    """

    def __init__(
        self, cache: KeyValueCache, rows: Sequence[int], new: Sequence[Sequence[int]]
    ) -> None:
        self.cache, self._rows, self._new = cache, rows, new
        lengths = [len(cache.ids[row]) for row in rows]
        cache.reserve(max(map(sum, zip(lengths, map(len, new), strict=True))))
        together = dict[tuple[int, int], list[int]]()
        for number in sorted(range(len(rows)), key=rows.__getitem__):
            T = len(new[number])
            together.setdefault((T, lengths[number] if T > 1 else 0), []).append(number)
        ids, positions, windows, ends = list[int](), list[int](), list[list[int]](), [0] * len(rows)
        self.ids, self.rows, self.positions = ids, list[int](), positions
        """The new ids, the cache's row that each is of, and where in it."""
        self._parts = list[tuple[slice, list[int], list[int]]]()
        for numbers in together.values():
            begin = len(ids)
            for number in numbers:
                past, T = lengths[number], len(new[number])
                ids += new[number]
                self.rows += [rows[number]] * T
                positions += range(past, past + T)
                ends[number] = len(ids) - 1
                if cache.earlier:
                    windows += cache.windows(rows[number], new[number])
            line = slice(begin, len(ids))
            chosen, behind = ([each[number] for number in numbers] for each in (rows, lengths))
            self._parts.append((line, chosen, behind))
        device = cache.memory.device
        self.ids_N1, self.positions_N1 = torch.tensor((ids, positions), device=device)[..., None]
        self.windows_NS = torch.tensor(windows, device=device) if windows else self.ids_N1
        """See `KeyValueCache.windows`."""
        self._ends = ends

    def ends(self) -> Tensor | None:
        """Where the last id of each row is; None where each has one, in this order."""
        in_order = self._ends == list(range(len(self.ids_N1)))
        return None if in_order else torch.tensor(self._ends, device=self.ids_N1.device)

    @cached_property
    def _groups(self) -> "list[_Group]":
        return [_Group.of(self.cache, *part) for part in self._parts]

    def attend(self, layer: int, qkv_N1E: Tensor) -> Tensor:
        """Append one layer's new keys and values; what queries find there, (N, 1, E).

        Args:
            qkv_N1E: queries, keys and values of the new ids, (N, 1, 3 * E).
        """
        memory = self.cache.memory[layer]
        qkv_N3HD = qkv_N1E.to(memory.dtype).view(len(qkv_N1E), 3, memory.shape[2], -1)
        parts = [group.attend(memory, qkv_N3HD) for group in self._groups]
        y_NHD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y_NHD.reshape(len(y_NHD), 1, -1).to(qkv_N1E.dtype)

    def finish(self) -> None:
        """Let the rows have read the ids, when the model has run all its layers."""
        self.cache.append(self._rows, self._new)


@dataclass
class _Group:
    """Rows of a reading that attention is computed for together, with equally many new ids each.

    line: where these ids are among all N, row after row.
    new: T, ids of each row.
    rows: of the cache.
    places: rows and positions where keys and values are written, (B, T, …).
    end: S, the positions attended to.
    mask: as of `attend`.
    """

    line: slice
    new: int
    rows: slice | Tensor
    places: tuple[slice | Tensor, slice | Tensor]
    end: int
    mask: Tensor | None

    @staticmethod
    def of(cache: KeyValueCache, line: slice, rows: list[int], lengths: list[int]) -> "_Group":
        """Of rows in rising order, which have read so many ids."""
        T, past, memory = (line.stop - line.start) // len(rows), max(lengths), cache.memory
        adjacent = rows[-1] - rows[0] + 1 == len(rows)  # then keys and values are not copied
        device, mask = memory.device, None
        chosen = slice(rows[0], rows[-1] + 1) if adjacent else torch.tensor(rows, device=device)
        if min(lengths) == past:
            if past and T > 1:
                allowed = torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)
                mask = additive(allowed, memory.dtype)
            return _Group(line, T, chosen, (chosen, slice(past, past + T)), past + T, mask)
        rows_B1, lengths_B1 = torch.tensor((rows, lengths), device=device)[..., None]
        allowed_BS = torch.arange(past + 1, device=device) <= lengths_B1
        mask = additive(allowed_BS[:, None, None], memory.dtype)
        return _Group(line, T, chosen, (rows_B1, lengths_B1), past + 1, mask)

    def attend(self, memory: Tensor, qkv_N3HD: Tensor) -> Tensor:
        """Of a layer, whose part of the cache `memory` is, (2, B, H, S, D): the part of these ids
        of what `Reading.attend` gives, (N, H, D)."""
        qkv_BT3HD = qkv_N3HD[self.line].unflatten(0, (-1, self.new))
        memory.permute(1, 3, 0, 2, 4)[self.places] = qkv_BT3HD[:, :, 1:]
        k_BHSD, v_BHSD = memory[:, self.rows, :, : self.end]
        q_BHTD = qkv_BT3HD[:, :, 0].transpose(1, 2)
        y_BHTD = attend(q_BHTD, k_BHSD, v_BHSD, self.mask, dropout=0.0)
        return y_BHTD.transpose(1, 2).flatten(0, 1)
