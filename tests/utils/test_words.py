"""How numbers are worded."""

from __future__ import annotations

import pytest

from smallgpt.utils.words import rounded, size


@pytest.mark.parametrize(
    ("number", "said"),
    [
        *((0, "0.0 kB"), (484, "0.5 kB"), (24_355, "24 kB"), (1_500_000, "1.5 MB")),
        *((14_106_608, "14 MB"), (2_400_000_000, "2.4 GB"), (1.4e12, "1,400 GB")),
    ],
)
def test_sizes(number: float, said: str) -> None:
    assert size(number) == said


def test_rounded() -> None:
    assert [rounded(v) for v in (1.23456, 0.0123456, 40996.18, 7, "x", float("inf"))] == [
        *(1.235, 0.01235, 40996, 7, "x"),
        float("inf"),
    ]
