"""The order of rows: a permutation each epoch, and the same from wherever one starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.data.packing import RowOrder

ROWS = st.integers(1, 30)
SEEDS = st.integers(0, 2**63 - 1)
COUNTS = st.integers(0, 100)


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 5))
def test_each_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    taken = RowOrder(rows, seed).take(epoch * rows, rows)
    assert sorted(taken) == list(range(rows))


@settings(deadline=None)
@given(ROWS, SEEDS, COUNTS, COUNTS, COUNTS)
def test_two_takes_are_one_also_across_epochs_and_backwards(
    rows: int, seed: int, start: int, first: int, second: int
) -> None:
    order = RowOrder(rows, seed)
    whole = order.take(start, first + second)
    later = order.take(start + first, second)  # before the part in front of it
    earlier = order.take(start, first)
    assert np.array_equal(np.concatenate((earlier, later)), whole)


@settings(deadline=None)
@given(ROWS, SEEDS, COUNTS, COUNTS)
def test_a_fresh_order_goes_on_where_another_stopped(
    rows: int, seed: int, start: int, count: int
) -> None:
    used = RowOrder(rows, seed)
    used.take(0, start)
    assert np.array_equal(RowOrder(rows, seed).take(start, count), used.take(start, count))


def test_epochs_and_seeds_differ() -> None:
    order = RowOrder(100, seed=1)
    first, second = order.take(0, 100), order.take(100, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, RowOrder(100, seed=2).take(0, 100))


@pytest.mark.parametrize("start", [0, 3, 10])
def test_nothing_taken_is_an_empty_array_of_rows(start: int) -> None:
    taken = RowOrder(4, seed=1).take(start, 0)
    assert taken.shape == (0,)
    assert taken.dtype == np.int64
