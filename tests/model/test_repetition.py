"""Replies that do not repeat themselves, against rules written out plainly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.model.repetition import Decode, as_characters, draw_unrepeated, repeats
from tests.helpers.models import random_model

PIECES = ["", "\n", "", *"哈我不知道。", "哈哈", "我不", "不知道", "哈哈哈哈", "知道我不", "。。"]
"""Texts of ids; an id behind them is a character of its own."""


def of_pieces(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] if i < len(PIECES) else chr(i + 0x4E00) for i in ids)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plainly_repeats(text: str, sampling: SamplingConfig) -> bool:
    n, most = sampling.no_repeat_ngram, sampling.max_repeats
    grams = [text[at : at + n] for at in range(len(text) - n + 1)] if n else []
    runs = (
        text[at : at + span * (most + 1)] == text[at : at + span] * (most + 1)
        for span in range(1, 17)
        for at in range(len(text) - span * (most + 1) + 1)
    )
    return len(set(grams)) < len(grams) or (most > 0 and any(runs))


@given(st.text("ab", max_size=40), st.integers(0, 5), st.integers(0, 4))
def test_the_end_of_a_text_repeats_what_a_plain_search_finds(text: str, n: int, most: int) -> None:
    sampling = SamplingConfig(no_repeat_ngram=n, max_repeats=most)
    ends = range(len(text) + 1)
    good = max(end for end in ends if not plainly_repeats(text[:end], sampling))
    for end in ends:
        for start in range(min(good, end) + 1):
            assert repeats(text[:end], start, sampling) == (end > good)


@pytest.mark.parametrize("period", [1, 2, 15, 16, 17])
def test_a_span_has_at_most_16_characters(period: int) -> None:
    text = as_characters(range(100, 100 + period)) * 4
    seen = [end for end in range(len(text)) if repeats(text, end, SamplingConfig(max_repeats=3))]
    assert seen == (list(range(4 * period)) if period <= 16 else [])


@pytest.mark.parametrize("decode", [of_pieces, as_characters])
@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize(("n", "most"), [(0, 1), (0, 2), (0, 3), (1, 0), (3, 0), (4, 2)])
def test_no_reply_repeats_itself(decode: Decode, temperature: float, n: int, most: int) -> None:
    """And until it would, it is the one without the rules."""
    free_rules = SamplingConfig(temperature, max_repeats=0)
    sampling = replace(free_rules, no_repeat_ngram=n, max_repeats=most)
    whole = 0
    for seed in range(4):
        model = random_model(seed)
        if seed < 3:
            model.wpe.weight.data.zero_()  # this makes it repeat itself
        free, ruled = (
            list(generate(model, Request([5, 9], rules, [generator(seed)], (1, 2), (0,), decode)))
            for rules in (free_rules, sampling)
        )
        good = 0
        while good < len(free) and not plainly_repeats(decode(free[: good + 1]), sampling):
            good += 1
        assert ruled[:good] == free[:good]
        assert not plainly_repeats(decode(ruled), sampling)
        whole += good == len(free)
    assert whole < 4


def test_another_id_is_drawn_from_what_is_left() -> None:
    logits = torch.tensor([-math.inf, 1.0, 2.0, 0.5, 0.0])
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, max_repeats=2)
    random = generator(0)
    draws = [draw_unrepeated(logits, [2, 2], sampling, random, as_characters) for _ in range(4000)]
    weights = [0, math.e, 0, math.exp(0.5), 1]
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        assert draws.count(token) / 4000 == pytest.approx(expected, abs=5 * math.sqrt(0.25 / 4000))
        assert (token in draws) == (weight > 0)
    assert logits[2] == 2.0  # the caller's logits stay as they are


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_reply_ends_where_everything_would_repeat_it(temperature: float) -> None:
    model, sampling = random_model(), SamplingConfig(temperature=temperature, no_repeat_ngram=1)
    banned = [0, 1, 2, *range(7, model.config.vocab_size)]
    ids = list(generate(model, Request([5], sampling, [generator(0)], (), banned)))
    assert sorted(ids) == [3, 4, 5, 6]


def test_a_character_is_counted_when_its_last_byte_has_come() -> None:
    """Of a vocabulary of bytes, such as GPT-2's."""

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    said = list("哈哈哈哈".encode())
    sampling = SamplingConfig(temperature=0, max_repeats=3)
    for count, byte in enumerate(said):
        logits = torch.zeros(256)
        logits[byte] = 1.0
        drawn = draw_unrepeated(logits, said[:count], sampling, generator(0), decode)
        assert (drawn == byte) == (count < len(said) - 1)
