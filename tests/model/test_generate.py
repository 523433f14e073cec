"""Sampling, against plain computations of the same thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.backends import cuda

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Reply, generate, generate_rows
from smallgpt.model.gpt import GPT, KeyValueCache
from smallgpt.model.sampling import FEW, draw, nucleus
from tests.helpers.models import random_model

STOP = (1, 2)
BANNED = (0, 7, 8)
CONTEXT = [5, 9, 4, 1]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)


def reply(
    model: GPT,
    sampling: SamplingConfig = GREEDY,
    context: list[int] = CONTEXT,
    seed: int = 0,
    stop: Collection[int] = STOP,
    banned: Collection[int] = BANNED,
) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return list(generate(model, context, sampling, stop, banned, generator))


def plain_reply(model: GPT, sampling: SamplingConfig, seed: int) -> list[int]:
    """The same without a cache: every character from a pass over all characters before it."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(CONTEXT)
    with torch.no_grad():
        for count in range(min(sampling.max_new_tokens, model.config.block_size - len(CONTEXT))):
            logits = model(torch.tensor([ids]))[0, -1].double()
            logits[list(BANNED)] = -math.inf
            if count == 0:
                logits[list(STOP)] = -math.inf
            token = draw(logits, ids[len(CONTEXT) :], sampling, generator)
            if token in STOP:
                break
            ids.append(token)
    return ids[len(CONTEXT) :]


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingConfig(temperature=1.0, top_p=1.0),
        SamplingConfig(temperature=0.7, top_k=5, top_p=0.8, repetition_penalty=1.3),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_cache_changes_nothing(sampling: SamplingConfig, seed: int) -> None:
    model = random_model(seed)
    assert reply(model, sampling, seed=seed) == plain_reply(model, sampling, seed)


@given(st.integers(0, 99), st.integers(2, 5), st.sampled_from([1, 4]))
@settings(max_examples=10)
def test_a_row_is_drawn_in_company_as_it_is_alone(seed: int, rows: int, ngram_order: int) -> None:
    """And its log-probability is that of a pass over all of it."""
    # The head is not tied, so that rows end at different times.
    model = random_model(seed, tied=False, ngram_order=ngram_order, ngram_rows=97, ngram_embd=8)
    sampling = SamplingConfig(temperature=0.8, top_p=0.95, repetition_penalty=1.2)
    replies = [Reply(torch.Generator().manual_seed(row)) for row in range(rows)]
    cache = KeyValueCache(model.config, model.wte.weight)
    for _ in generate_rows(model, CONTEXT, sampling, STOP, BANNED, replies, cache):
        pass
    for row, drawn in enumerate(replies):
        assert drawn.ids == reply(model, sampling, seed=row)
        with torch.no_grad():
            log_p_TV = model(torch.tensor([CONTEXT + drawn.ids]))[0].log_softmax(-1)
        log_p_T = log_p_TV[len(CONTEXT) - 1 : -1].gather(1, torch.tensor(drawn.ids)[:, None])
        assert drawn.log_probability == pytest.approx(log_p_T.sum().item(), rel=1e-4)
    # The cache of one row has read the context, and goes on to be one of one row.
    alone = generate(model, CONTEXT, GREEDY, STOP, BANNED, torch.Generator(), cache)
    assert cache.length == len(CONTEXT) and list(alone) == reply(model)


@pytest.mark.parametrize("seed", range(20))
def test_banned_ids_and_an_empty_reply_never_come(seed: int) -> None:
    hot = SamplingConfig(temperature=5.0, top_p=1.0)
    ids = reply(random_model(), hot, seed=seed, banned=range(3, 25))
    assert ids and set(ids).isdisjoint(range(1, 25))


def test_a_stop_id_ends_the_reply_and_is_not_part_of_it() -> None:
    model = random_model(3)
    free = reply(model, stop=())
    third = free[2]
    assert free.index(third) == 2
    assert reply(model, stop=(third,)) == free[:2]
    assert reply(model, stop=(free[0],))[0] != free[0]


@pytest.mark.parametrize(("length", "most"), [(1, 99), (20, 99), (31, 99), (4, 1), (4, 7)])
def test_a_reply_ends_with_the_context_or_after_max_new_tokens(length: int, most: int) -> None:
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=most)
    ids = reply(random_model(), sampling, context=[5] * length, stop=())
    assert len(ids) == min(32 - length, most)


@pytest.mark.parametrize("before", [True, False])
def test_cudnns_attention_is_off_while_ids_are_computed_and_then_as_before(before: bool) -> None:
    model, seen = random_model(), list[bool]()
    model.register_forward_pre_hook(lambda *_: seen.append(cuda.cudnn_sdp_enabled()))
    try:
        cuda.enable_cudnn_sdp(before)
        for _ in generate(model, CONTEXT, GREEDY, STOP, BANNED, torch.Generator()):
            assert cuda.cudnn_sdp_enabled() == before  # also where a reply is left unfinished
        assert set(seen) == {False}
        model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reply(model)
        assert cuda.cudnn_sdp_enabled() == before
    finally:
        cuda.enable_cudnn_sdp(True)


def test_a_vocabulary_with_nothing_to_say_gives_an_empty_reply() -> None:
    model = random_model()
    for sampling in (GREEDY, SamplingConfig(temperature=1.0)):
        assert reply(model, sampling, banned=range(3, model.config.vocab_size)) != []  # <unk> is
        assert reply(model, sampling, banned=[0, *range(3, model.config.vocab_size)]) == []


def frequencies(logits: list[float], sampling: SamplingConfig, *said: int) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.tensor(logits, dtype=torch.float64)
    counts = [0] * len(logits)
    for _ in range(4000):
        counts[draw(tensor, said, sampling, generator)] += 1
    return [count / 4000 for count in counts]


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
def test_extreme_temperatures_still_draw(temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature, top_p=1.0)
    seen = frequencies(LOGITS, sampling)
    assert seen[5] == 0  # a banned id stays banned however hot
    if temperature < 1:
        assert seen[1] == 1.0
        sampling = replace(sampling, max_new_tokens=GREEDY.max_new_tokens)
        assert reply(random_model(3), sampling) == reply(random_model(3), GREEDY)
    else:
        assert min(seen[:5]) > 0.1


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("size", [1, 7, FEW - 1, FEW, FEW + 1, 5 * FEW])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.9999])
def test_the_nucleus_is_that_of_all_sorted(spread: float, size: int, top_p: float) -> None:
    torch.manual_seed(size)
    logits = torch.randn(size).double() * spread
    probabilities = torch.softmax(logits, dim=0)
    places = nucleus(logits, probabilities, top_p)
    largest = probabilities.sort(descending=True).values
    count = int((largest.cumsum(0) - largest < top_p).sum())
    assert probabilities[places].tolist() == largest[:count].tolist()
    assert len(set(places.tolist())) == count
