"""How an id is drawn, against plain computations of the same thing."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from smallgpt.config import SamplingConfig
from smallgpt.model.sampling import draw


def frequencies(
    logits: list[float],
    sampling: SamplingConfig,
    *said: int,
    dtype: torch.dtype = torch.float32,
    draws: int = 4000,
) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.tensor(logits, dtype=dtype)
    counts = Counter(draw(tensor, said, sampling, generator) for _ in range(draws))
    return [counts[token] / draws for token in range(len(logits))]


LOGITS = [0.3, 2.0, -1.0, 1.9, 0.0, -math.inf]


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def only(kept: Collection[int], logits: list[float] = LOGITS) -> list[float]:
    return softmax([x if i in kept else -math.inf for i, x in enumerate(logits)])


# Probabilities of LOGITS by rank: 1: 0.416, 3: 0.377, 0: 0.076, 4: 0.056, 2: 0.021.
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (
            SamplingConfig(temperature=1.0, top_p=1.0, repetition_penalty=2.0),
            softmax([0.3, 2.0 / 2, -1.0 * 2, 1.9, 0.0, -math.inf]),
        ),
        (
            SamplingConfig(
                temperature=1.0, top_p=1.0, frequency_penalty=0.7, presence_penalty=-0.4
            ),
            softmax([0.3, 2.0 - 2 * 0.7 + 0.4, -1.0 - 0.7 + 0.4, 1.9, 0.0, -math.inf]),
        ),
        (
            SamplingConfig(
                temperature=1.0,
                top_p=1.0,
                repetition_penalty=2.0,
                frequency_penalty=0.3,
                presence_penalty=0.5,
            ),
            softmax([0.3, 2.0 / 2 - 2 * 0.3 - 0.5, -1.0 * 2 - 0.3 - 0.5, 1.9, 0.0, -math.inf]),
        ),
        (SamplingConfig(temperature=1.0, top_p=1.0), softmax(LOGITS)),
        (SamplingConfig(temperature=0.5, top_p=1.0), softmax([x / 0.5 for x in LOGITS])),
        (SamplingConfig(temperature=2.0, top_p=1.0), softmax([x / 2 for x in LOGITS])),
        (SamplingConfig(temperature=1.0, top_p=1.0, top_k=2), only([1, 3])),
        (SamplingConfig(temperature=1.0, top_p=1.0, top_k=99), softmax(LOGITS)),
        (SamplingConfig(temperature=1.0, top_p=0.5), only([1, 3])),
        (SamplingConfig(temperature=1.0, top_p=0.1), only([1])),
        (SamplingConfig(temperature=1.0, top_p=0.9, top_k=3), only([1, 3])),
    ],
)
def test_draws_follow_the_distribution(sampling: SamplingConfig, expected: list[float]) -> None:
    for seen, wanted in zip(frequencies(LOGITS, sampling, 1, 2, 1), expected, strict=True):
        assert seen == pytest.approx(wanted, abs=5 * math.sqrt(0.25 / 4000))
        assert (seen > 0) == (wanted > 0)


def test_repetition_penalty_lowers_what_was_said() -> None:
    greedy = SamplingConfig(temperature=0, repetition_penalty=2.0)
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    assert draw(logits, [], greedy, torch.Generator()) == 1
    assert draw(logits, [1], greedy, torch.Generator()) == 3
    below = torch.tensor([-1.0, -1.5], dtype=torch.float64)
    assert draw(below, [0], greedy, torch.Generator()) == 1
    assert logits.tolist() == LOGITS  # the caller's logits stay as they are


@example([0.0, 1.401298464324817e-45], 1.0, 0, 0.25)  # probabilities are alike, logits are not
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12),
    st.floats(0.05, 5),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
)
def test_top_k_and_top_p_keep_the_likeliest(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    largest = max(logits)
    scores = sorted((math.exp((x - largest) / temperature) for x in logits), reverse=True)
    scores = scores[: top_k or None]
    reached = list(itertools.accumulate(score / sum(scores) for score in scores))
    # Rounding may decide otherwise at the very edge: hence the margin.
    count = next((i for i, total in enumerate(reached, 1) if total >= top_p + 1e-9), len(scores))
    allowed = sorted(logits, reverse=True)[:count]
    generator = torch.Generator().manual_seed(1)
    tensor = torch.tensor(logits, dtype=torch.float64)
    for _ in range(5):
        assert logits[draw(tensor, [], sampling, generator)] in allowed


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324, 1e300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_temperatures_still_draw(temperature: float, dtype: torch.dtype) -> None:
    sampling = SamplingConfig(temperature=temperature, top_p=1.0)
    seen = frequencies(LOGITS, sampling, dtype=dtype, draws=500)
    assert seen[5] == 0  # a banned id stays banned however hot
    if temperature < 1:
        assert seen[1] == 1.0
    else:
        assert min(seen[:5]) > 0.1


def test_a_top_p_too_small_for_float32_takes_the_likeliest() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    for seed in range(8):  # most draw another first
        generator = torch.Generator().manual_seed(seed)
        assert draw(logits, [], SamplingConfig(temperature=9, top_p=1e-320), generator) == 1


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("size", [1, 7, 600, 3000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.9999])
def test_draws_are_from_the_nucleus_of_all_sorted(spread: float, size: int, top_p: float) -> None:
    torch.manual_seed(size)
    logits = torch.randn(size) * spread
    ordered = torch.softmax(logits.double(), 0).sort(descending=True, stable=True)
    before = ordered.values.cumsum(0) - ordered.values
    count = int((before < top_p).sum())
    # Rounding may decide otherwise at the very edge: hence the margin.
    allowed = ordered.indices[: int((before < top_p + 1e-6).sum())].tolist()
    sampling = SamplingConfig(temperature=1.0, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    draws = [draw(logits, [], sampling, generator) for _ in range(300)]
    assert set(draws) <= set(allowed)
    # The second half of the nucleus comes as often as it should.
    second = set(allowed[count // 2 :])
    share = float(ordered.values[count // 2 : count].sum() / ordered.values[:count].sum())
    seen = sum(token in second for token in draws) / 300
    assert seen == pytest.approx(share, abs=5 * math.sqrt(0.25 / 300))


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(top_k=9, top_p=1.0)])
def test_float32_draws_what_float64_does(sampling: SamplingConfig) -> None:
    for seed, logits in enumerate(torch.randn(100, 50, generator=torch.Generator().manual_seed(0))):
        ids = [
            draw(logits.to(dtype), [1], sampling, torch.Generator().manual_seed(seed))
            for dtype in (torch.float32, torch.float64)
        ]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_from_logits_that_are_not_finite_nothing_is_drawn(wrong: float, top_k: int) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, top_k=top_k)
    with pytest.raises(ValueError, match="not finite"):
        draw(torch.tensor([*LOGITS, wrong]), [], sampling, torch.Generator())
