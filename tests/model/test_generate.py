"""Generation, against plain computations of the same thing."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.backends import cuda

from smallgpt.config import SamplingConfig
from smallgpt.model import cache
from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Batch, Reply, Request, generate
from smallgpt.model.gpt import GPT
from smallgpt.model.repetition import as_characters, draw_unrepeated
from tests.helpers.models import random_model

STOP = (1, 2)
BANNED = (0, 7, 8)
CONTEXT = [5, 9, 4, 1]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)


drawn_from = partial(draw_unrepeated, decode=as_characters)


def reply(
    model: GPT,
    sampling: SamplingConfig = GREEDY,
    context: list[int] = CONTEXT,
    seed: int = 0,
    stop: Collection[int] = STOP,
    banned: Collection[int] = BANNED,
) -> list[int]:
    generators = [torch.Generator().manual_seed(seed)]
    return list(generate(model, Request(context, sampling, generators, stop, banned)))


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
            token = drawn_from(logits, said, sampling, generator)
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


@st.composite
def samplings(drawn: st.DrawFn) -> SamplingConfig:
    return SamplingConfig(
        temperature=drawn(st.sampled_from([0.0, 0.7, 1.5])),
        top_p=drawn(st.sampled_from([0.9, 1.0])),
        top_k=drawn(st.sampled_from([0, 5])),
        repetition_penalty=drawn(st.sampled_from([1.0, 1.3])),
        max_new_tokens=drawn(st.integers(1, 12)),
    )


@dataclass
class Visit:
    """A request: the step before which it joins, where a row is free, and the one before which it
    leaves, if it has not ended; how many replies it wants."""

    joins: int
    stays: int
    wanted: int
    seed: int
    context: list[int]
    sampling: SamplingConfig

    def request(self) -> Request:
        generators = [torch.Generator().manual_seed(self.seed + n) for n in range(self.wanted)]
        return Request(
            self.context, self.sampling, generators, STOP, BANNED, log_probabilities=True
        )


contexts = st.lists(st.integers(0, 24), min_size=1, max_size=28)
visits = st.builds(
    Visit,
    st.integers(0, 8),
    st.one_of(st.just(99), st.integers(0, 9)),
    st.integers(1, 3),
    st.integers(0, 99),
    # Often one begins as another does, so that what a row has read is used again.
    st.builds(lambda cut, rest: (CONTEXT * 3)[:cut] + rest[:16], st.integers(0, 12), contexts),
    samplings(),
)
# Their heads are not tied, so that replies end at different times.
MODELS = [
    random_model(1, tied=False),
    random_model(2, tied=False, ngram_order=4, ngram_rows=97, ngram_embd=8),
]


@given(
    st.sampled_from(MODELS),
    st.lists(visits, min_size=1, max_size=6),
    st.integers(3, 5),
    st.integers(1, 20),
)
@settings(max_examples=40)
def test_a_reply_is_drawn_in_company_as_it_is_alone(
    model: GPT, visits: list[Visit], rows: int, chunk: int
) -> None:
    """To the id, and ended for the reason it should; its log-probability is that of a pass over all
    of it. No step reads more than it should."""
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight, rows), chunk)
    read = list[int]()
    said = dict[Reply, list[int]]()
    present = list[tuple[int, Request]]()
    complete = list[tuple[Visit, int, Reply]]()
    waiting, step = sorted(visits, key=lambda visit: visit.joins), 0
    counting = model.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    with counting, patch.object(cache, "MORE", 3):
        while waiting or batch.replying:
            while waiting and waiting[0].joins <= step and waiting[0].wanted <= batch.free:
                visit = waiting.pop(0)
                present.append((step + visit.stays, visit.request()))
                replies = batch.join(present[-1][1])
                said |= {reply: [] for reply in replies}
                if visit.stays == 99:
                    complete += [(visit, number, reply) for number, reply in enumerate(replies)]
            for leaves, request in present:
                if leaves == step:
                    batch.leave(request)
            for reply, token in batch.step():
                assert (token is None) == (reply.ended == "stop")
                if token is not None:
                    said[reply].append(token)
                    assert said[reply] == reply.ids
            step += 1
    assert batch.free == rows and max(read, default=0) <= rows + chunk
    for visit, number, reply in complete:
        check(model, visit, number, reply)


def check(model: GPT, visit: Visit, number: int, reply: Reply) -> None:
    """From one pass over context and reply: each id is the one drawn behind those before it."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*visit.context, *reply.ids]]))[0, len(visit.context) - 1 :]
    generator = torch.Generator().manual_seed(visit.seed + number)
    log_probability = 0.0
    for at, token in enumerate(reply.ids):
        log_probability += logits_TV[at].log_softmax(-1)[token].item()
        allowed = logits_TV[at].double()
        allowed[[*BANNED, *(STOP if at == 0 else ())]] = -math.inf
        assert drawn_from(allowed, reply.ids[:at], visit.sampling, generator) == token
        assert token not in STOP
    assert sum(reply.log_probabilities) == pytest.approx(log_probability, rel=1e-4, abs=1e-4)
    most = min(visit.sampling.max_new_tokens, model.config.block_size - len(visit.context))
    assert reply.ended == ("length" if len(reply.ids) == most else "stop")
    if reply.ended == "stop":
        allowed = logits_TV[-1].double()
        allowed[list(BANNED)] = -math.inf
        assert drawn_from(allowed, reply.ids, visit.sampling, generator) in (*STOP, None)


def test_what_a_free_row_has_read_is_not_read_again() -> None:
    model, read = random_model(), list[int]()
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight, rows=2))
    model.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    one = SamplingConfig(temperature=0, max_new_tokens=1)
    for context in (CONTEXT, [6, 3], [*CONTEXT, 3], [6, 3, 4, 5], [6, 3]):
        batch.join(Request(context, one, [torch.Generator()]))
        batch.step()
    assert read == [4, 2, 1, 2, 1]


def test_a_short_common_beginning_does_not_cost_a_long_talk_its_row() -> None:
    model, one = random_model(), SamplingConfig(temperature=0, max_new_tokens=1)
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight, rows=3))
    cached = list[int]()
    for context in ([*CONTEXT, 8, 9], [CONTEXT[0], 3], [*CONTEXT, 8, 9, 3, 4], [*CONTEXT, 8, 7]):
        (reply,) = batch.join(Request(context, one, [torch.Generator()]))
        batch.step()
        cached.append(reply.cached)
    assert cached == [0, 1, len(CONTEXT) + 2, len(CONTEXT) + 1]
    # Of a reply that is being drawn as well.
    (other,) = batch.join(Request([6] * 5, GREEDY, [torch.Generator()]))
    batch.step()
    (reply,) = batch.join(Request([*[6] * 5, 7], GREEDY, [torch.Generator()]))
    assert not other.ended and reply.cached == 5


def test_log_probabilities_of_the_likeliest_ids_come_first_to_last() -> None:
    model = random_model()
    request = Request(CONTEXT, GREEDY, [torch.Generator()], log_probabilities=True, alternatives=3)
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight))
    (reply,) = batch.join(request)
    while batch.replying:
        batch.step()
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*CONTEXT, *reply.ids]]))[0, len(CONTEXT) - 1 :]
    for at, likeliest in enumerate(reply.alternatives):
        values, ids = logits_TV[at].log_softmax(-1).topk(3)
        assert list(likeliest) == ids.tolist()
        assert list(likeliest.values()) == pytest.approx(values.tolist(), abs=1e-5)


def test_a_reply_needs_a_free_row() -> None:
    model = random_model()
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight, rows=2))
    request = Request(CONTEXT, GREEDY, [torch.Generator()] * 2)
    batch.join(request)
    with pytest.raises(ValueError, match="free row"):
        batch.join(Request(CONTEXT, GREEDY, [torch.Generator()]))
    batch.leave(request)
    assert batch.free == 2 and not batch.step()


def test_memory_grows_with_what_is_read() -> None:
    model = random_model(block_size=1024)
    held = KeyValueCache(model.config, model.wte.weight, rows=3)
    assert held.memory.numel() == 0
    for _ in generate(model, Request([5] * 70, GREEDY, [torch.Generator()]), held):
        pass
    assert held.memory.shape == (2, 2, 3, 4, 128, 8)


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
        for _ in generate(model, Request(CONTEXT, GREEDY, [torch.Generator()])):
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


@pytest.mark.parametrize("length", [0, 32])
def test_a_context_that_is_empty_or_leaves_no_room_is_refused(length: int) -> None:
    """An empty one would never give a first id."""
    model = random_model(block_size=32)
    batch = Batch(model, KeyValueCache(model.config, model.wte.weight))
    with pytest.raises(ValueError, match="1 to block_size - 1"):
        batch.join(Request([5] * length, GREEDY, [torch.Generator()]))
    assert not batch.replying and batch.free == 1
