"""Generation, against plain computations of the same thing."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.backends import cuda

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Reply, generate, generate_rows
from smallgpt.model.gpt import GPT, KeyValueCache
from smallgpt.model.repetition import as_characters, draw_unrepeated
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
            said = ids[len(CONTEXT) :]
            token = draw_unrepeated(logits, said, sampling, generator, as_characters)
            if token is None or token in STOP:
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
