"""What replies are like: hand-made ones, whose figures are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.chat.chatbot import Chatbot
from smallgpt.data.pairs import Pair
from smallgpt.training.replies import distinct, figures_of, generate_replies, is_copy, loops
from tests.helpers.models import TINY, random_model, vocabulary
from tests.training.test_choice import Recorded


def test_figures() -> None:
    pairs = [Pair(["在吗", message], "") for message in ("你好", "晚安", "好吗？", "早")]
    replies = ["你好。", "好", "好 吗", "好"]
    assert figures_of(pairs, replies) == {
        "distinct_1": 5 / 8,  # 你 好 。 and of the others the space and 吗
        "distinct_2": 4 / 4,  # 你好 好。 好␣ ␣吗
        "commonest_reply_share": 0.5,
        "copies_share": 0.5,  # 你好。 and 好 吗
        "loops_share": 0.0,
        "longer_loops_share": 0.0,
        "mean_length": 2.0,
        "median_length": 2.0,
    }
    assert figures_of([], []) == {}


def test_looping_replies() -> None:
    pairs = [Pair(["你好"], "")] * 4
    found = figures_of(pairs, ["哈哈哈", "我们我们我们", "好的...", "我们我们"])
    assert found["loops_share"] == 0.75
    assert found["longer_loops_share"] == 0.25


@given(st.text("ab", max_size=60), st.integers(1, 2))
def test_a_loop_is_a_span_three_times_running(text: str, shortest: int) -> None:
    expected = any(
        text[at : at + length] * 3 == text[at : at + 3 * length]
        for length in range(shortest, 17)
        for at in range(len(text) - 3 * length + 1)
    )
    assert loops(text, shortest) == expected


@pytest.mark.parametrize("length", [16, 17])
def test_the_longest_span(length: int) -> None:
    span = "".join(chr(0x4E00 + n) for n in range(length))
    assert loops("好" + span * 3) == (length == 16)


@pytest.mark.parametrize(
    ("reply", "message", "copies"),
    [
        ("你好！", " 你 好", True),
        ("OK", "ok。", True),
        ("……", "……", True),
        ("……", "！", False),
        ("你好吗", "你好", False),
        ("😀", "😂", False),
    ],
)
def test_copies(reply: str, message: str, copies: bool) -> None:
    assert is_copy(reply, message) == copies


def test_of_the_empty_there_is_nothing_different() -> None:
    assert distinct([], 1) == distinct(["", "好"], 2) == 0.0


TALKS = [["你好"], ["早上", "好", "晚安"], ["天气不错"], ["好吗？"], ["呀"]]


@pytest.mark.parametrize("best_of", [1, 3])
def test_replies_are_the_chatbots_and_do_not_depend_on_each_other(best_of: int) -> None:
    bot = Chatbot(random_model(tied=False), vocabulary(), replace(TINY, best_of=best_of))
    replies = generate_replies(bot, TALKS, 3)
    assert replies and len(set(replies)) > 1
    for number, talk in enumerate(TALKS):
        chunks, _ = bot.respond(talk, torch.Generator().manual_seed(3 * 1_000_003 + number))
        assert replies[number] == "".join(chunks)
    said: list[object] = []
    for rank in range(2):
        together = generate_replies(bot, TALKS, 3, world=Recorded(rank=rank, size=2, said=said))
    assert together == replies
    assert generate_replies(bot, TALKS, 3, lambda: True) is None
