"""Talks side by side, against one after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import torch

from smallgpt.chat import side_by_side
from smallgpt.chat.chatbot import Chatbot
from smallgpt.chat.side_by_side import converse
from smallgpt.config import ModelConfig, SamplingConfig
from tests.helpers.models import random_model, vocabulary

SAYS = ["你好", "早上好呀", "天" * 20, "晚安", "是的吗", "好不好"]
"""What is said in a talk: the first few of these, from another one on in each."""


@pytest.mark.parametrize("best_of", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_talks_go_as_they_do_alone(
    best_of: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one has nothing to say, and where more replies are chosen from than rows."""
    monkeypatch.setattr(side_by_side, "ROWS", rows)
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=7, best_of=best_of)
    bot = Chatbot(random_model(tied=False), vocabulary(), sampling)
    heard: list[list[str]] = [[] for _ in range(7)]

    def talk(number: int) -> Generator[Sequence[str], str, None]:
        messages = list[str]()
        for text in (SAYS[number:] + SAYS)[: number % 4]:
            messages.append(text)
            reply = yield messages
            messages.append(reply)
            heard[number].append(reply)

    replies = sum(converse(bot, ((talk(n), n) for n in range(7))))
    assert replies == sum(map(len, heard)) == 0 + 1 + 2 + 3 + 0 + 1 + 2
    assert len({reply for each in heard for reply in each}) > 5
    for number, each in enumerate(heard):
        messages = list[str]()
        for text, reply in zip(SAYS[number:] + SAYS, each, strict=False):
            chunks, _ = bot.respond([*messages, text], torch.Generator().manual_seed(number))
            assert reply == "".join(chunks)
            messages += [text, reply]


def test_large_models_have_fewer_rows() -> None:
    """Their cache may take a quarter of a GB, and a reply can always be drawn."""
    rows = [
        side_by_side.rows_for(ModelConfig(n_layer=layers, n_embd=width, block_size=context))
        for layers, width, context in ((6, 384, 256), (26, 960, 256), (26, 960, 10**6))
    ]
    assert rows == [32, 10, 1]
