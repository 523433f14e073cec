"""R10@1, against a plain computation of every score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.chat.chatbot import prompt_ids
from smallgpt.data.pairs import Pair
from smallgpt.distributed.world import World
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.training import choice
from smallgpt.training.choice import can_score, candidates, choose
from tests.helpers.models import random_model, vocabulary

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
LETTERS = [character for character in vocabulary().characters if character >= "\u4e00"]
REPLIES = st.lists(st.text(LETTERS[:4], min_size=1, max_size=3), max_size=30)


def pairs_of(count: int, seed: int = 0) -> list[Pair]:
    random = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(random.choice(LETTERS, random.integers(1, most)))

    return [Pair([text(8) for _ in range(1 + n % 4)], text(12)) for n in range(count)]


@given(REPLIES, st.integers(0, 5))
def test_candidates_are_ten_different_replies_the_own_first(texts: list[str], seed: int) -> None:
    pairs = [Pair(["你"], text) for text in texts]
    replies, chosen = candidates(pairs, seed)
    assert set(replies) == set(texts) and len(replies) == len(set(texts))
    assert len(chosen) == (len(pairs) if len(replies) >= 10 else 0)
    for pair, numbers in zip(pairs, chosen, strict=False):
        assert replies[numbers[0]] == pair.reply
        assert len(set(numbers.tolist())) == 10


def test_each_of_the_others_is_equally_likely() -> None:
    pairs = [Pair(["你"], reply) for reply in "一二三四五六七八九十甲乙"]
    counts = np.zeros(12, int)
    for seed in range(300):
        _, chosen = candidates(pairs, seed)
        counts += np.bincount(chosen[3], minlength=12)
    assert counts[3] == 300
    others = np.delete(counts, 3)  # 9 of 11 each time: 245 on average, deviation 6.7
    assert others.min() > 205 and others.max() < 285


def plain_log_p(model: GPT, context: list[int], text: str) -> float:
    reply = vocabulary().encode(text)
    with torch.no_grad():
        log_p = model(torch.tensor([[*context, *reply]]))[0].log_softmax(-1)
    at = range(len(context) - 1, len(context) + len(reply) - 1)
    return sum(log_p[place, id_].item() for place, id_ in zip(at, reply, strict=True))


def test_against_a_plain_computation() -> None:
    model, pairs = random_model(3), pairs_of(20)
    replies, chosen = candidates(pairs, 5)
    expected = []
    for pair, numbers in zip(pairs, chosen, strict=True):
        texts = [replies[number] for number in numbers]
        context, *_ = prompt_ids(pair.messages, vocabulary(), 32, max(map(len, texts)))
        likelihood = np.array([plain_log_p(model, context, text) / len(text) for text in texts])
        by_itself = np.array([plain_log_p(model, [1], text) / len(text) for text in texts])
        rules = (likelihood - by_itself, likelihood)
        expected.append([scores[0] > scores[1:].max() for scores in rules])
    choices = choose(model, vocabulary(), pairs, 5, CPU)
    assert choices
    found = np.stack([choices.by_information, choices.by_likelihood], 1)
    assert found.tolist() == np.array(expected).tolist()
    assert all(0 < right < 20 for right in found.sum(0))  # sometimes right, sometimes not


def rigged(monkeypatch: pytest.MonkeyPatch, right: float, wrong: float, alone: float) -> Any:
    """R10@1 where a character of a right reply has the first log-probability behind its messages,
    of a wrong one the second; by itself a right reply has the third, others 0."""
    pairs = [Pair([LETTERS[n]], LETTERS[n] * 3) for n in range(12)]

    def log_probabilities(
        model: GPT, context: Sequence[int], replies: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        if list(context) == [1]:
            return torch.tensor([alone * len(reply) for reply in replies])
        scores = [right if reply[0] == context[0] else wrong for reply in replies]
        return torch.tensor(scores) * torch.tensor([len(reply) for reply in replies])

    monkeypatch.setattr(choice, "log_probabilities", log_probabilities)
    choices = choose(random_model(), vocabulary(), pairs, 0, CPU)
    assert choices and len(choices.by_information) == 12
    return choices.as_dict()


def test_a_model_that_knows_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = rigged(monkeypatch, right=-1.0, wrong=-1.1, alone=-3.0)
    assert known == {"r10_at_1": 1.0, "r10_at_1_likelihood": 1.0}


def test_ties_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = rigged(monkeypatch, right=-1.0, wrong=-1.0, alone=-1.0)
    assert tied == {"r10_at_1": 0.0, "r10_at_1_likelihood": 0.0}


def test_a_model_that_diverged_is_never_right(monkeypatch: pytest.MonkeyPatch) -> None:
    diverged = rigged(monkeypatch, right=float("nan"), wrong=float("nan"), alone=-1.0)
    assert diverged == {"r10_at_1": 0.0, "r10_at_1_likelihood": 0.0}


def test_only_replies_that_the_model_can_score() -> None:
    fits = can_score(vocabulary(), 8)
    assert fits("你好吗呀") and fits("a")
    assert not fits("龘") and not fits("你好龘") and not fits("你好吗呀你") and not fits("")


def test_too_few_replies_have_no_figure() -> None:
    choices = choose(random_model(), vocabulary(), pairs_of(9), 0, CPU)
    assert choices and choices.as_dict() == {}


def test_it_changes_neither_the_model_nor_random_numbers() -> None:
    model = random_model(dropout=0.5).train()
    before = torch.get_rng_state()
    first = choose(model, vocabulary(), pairs_of(12), 0, CPU)
    again = choose(model, vocabulary(), pairs_of(12), 0, CPU)
    assert first and again and first.by_information.tolist() == again.by_information.tolist()
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_it_stops_where_it_is_asked_to() -> None:
    assert choose(random_model(), vocabulary(), pairs_of(12), 0, CPU, lambda: True) is None


@dataclasses.dataclass(frozen=True)
class Recorded(World):
    """One of several processes, which are run one after the other."""

    said: list[Any] = dataclasses.field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return list(self.said)


def test_processes_share_the_pairs() -> None:
    model, pairs, said = random_model(), pairs_of(25), list[Any]()
    alone = choose(model, vocabulary(), pairs, 0, CPU)
    for rank in range(3):
        world = Recorded(rank=rank, size=3, said=said)
        together = choose(model, vocabulary(), pairs, 0, CPU, world=world)
    assert [len(part) for part, _ in said] == [9, 8, 8]
    assert alone and together and together.as_dict() == alone.as_dict()
