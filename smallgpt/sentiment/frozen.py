"""The states of frozen blocks, computed once: what is below the last block does not change."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from smallgpt.data.reviews import IntArray
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime
from smallgpt.sentiment.examples import Examples
from smallgpt.training.validation import in_evaluation
from smallgpt.utils.errors import UserError


class FrozenStates:
    """What the last block is given, for each row of some examples.

    The states lie one row after the other in a file in `folder`, which is mapped into memory and
    has no name any more, so that nothing is left of it when the process ends.

    Args:
        model: the classifier, whose lower blocks are frozen.
    """

    def __init__(
        self, model: Classifier, examples: Examples, runtime: Runtime, folder: Path
    ) -> None:
        lengths = examples.lengths
        if not examples.use_mask:
            lengths = np.full(len(lengths), examples.block_size)
        self._starts, self._lengths = np.cumsum(lengths) - lengths, lengths
        width, total = model.config.n_embd, int(lengths.sum())
        size = total * width * runtime.dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
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
        for rows in in_evaluation(model, examples.rows_in_order(64), "frozen blocks"):
            ids_RT, _ = examples.gather(rows)
            with runtime.autocast():
                x_RTE = model.transformer.below_last_block(ids_RT.to(runtime.device))
            x_RTE = x_RTE.to("cpu", self._states.dtype)
            for row, x_TE in zip(rows, x_RTE, strict=True):
                start, length = self._starts[row], self._lengths[row]
                self._states[start : start + length] = x_TE[:length]

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
