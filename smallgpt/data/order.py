"""Which rows form which batch: a pure function of the seed, so that a resumed run goes on exactly.

Rows come in epochs, each a fresh permutation; a batch may reach over the end of an epoch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class RowOrder:
    """The endless sequence of rows of a run.

    Args:
        rows: number of rows in an epoch, at least 1.
        seed: of the permutations.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Rows number `start` to `start + count` of the sequence, counted over all epochs."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, at = divmod(start, self.rows)
            part = self._rows_of(epoch)[at : at + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _rows_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self.seed, 2, epoch)).permutation(self.rows)
            self._epoch = epoch
        return self._permutation
