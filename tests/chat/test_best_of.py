"""The best of several replies, against one drawn and judged after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.chat.best_of import generate_best
from smallgpt.chat.chatbot import Chatbot, prompt_ids
from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import PAD, SEP
from tests.helpers.models import random_model, vocabulary

SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=6, best_of=7)
NGRAMS: dict[str, Any] = {"ngram_order": 4, "ngram_rows": 97, "ngram_embd": 8}
TALK = ["你好", "是的吗", "天" * 40, "晚安"]


def random_bot(**changes: Any) -> Chatbot:
    """Its head is not tied, so that its replies end at different places."""
    return Chatbot(random_model(tied=False, **changes), vocabulary(), SAMPLING, seed=3)


def log_probability(model: GPT, context: list[int], reply: list[int]) -> float:
    """An id after the other, without a cache."""
    ids, total = list(context), 0.0
    for token in reply:
        with torch.no_grad():
            total += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


@pytest.mark.parametrize("mmi_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("changes", [{}, NGRAMS], ids=["plain", "n-grams"])
def test_the_reply_is_the_best_of_those_drawn(changes: dict[str, Any], mmi_weight: float) -> None:
    bot = random_bot(**changes)
    bot.sampling = {"mmi_weight": mmi_weight}
    generator = torch.Generator().manual_seed(3)
    banned = vocabulary().suppressed_ids()
    for text in TALK:
        context, *_ = prompt_ids([*bot.messages, text], vocabulary(), 32, 6)
        scores = dict[str, float]()
        for _ in range(7):
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            own = torch.Generator().manual_seed(seed)
            request = Request(context, SAMPLING, [own], {SEP, PAD}, banned)
            ids = list(generate(bot.model, request))
            without_talk = log_probability(bot.model, [SEP], ids)
            score = log_probability(bot.model, context, ids) - mmi_weight * without_talk
            scores[vocabulary().decode(ids)] = score / len(ids)
        assert bot.reply(text) == max(scores, key=lambda reply: scores[reply])
        assert len(scores) > 3


def test_a_seed_gives_the_same_talk_and_another_gives_another() -> None:
    def talk(seed: int) -> list[str]:
        bot = Chatbot(random_model(tied=False), vocabulary(), SAMPLING, seed)
        return [bot.reply(text) for text in TALK]

    assert talk(1) == talk(1) != talk(2)


def test_at_temperature_0_there_is_nothing_to_choose_from() -> None:
    bot = random_bot()
    bot.sampling = {"temperature": 0}
    read = list[tuple[int, ...]]()
    bot.model.register_forward_pre_hook(lambda _, given: read.append(given[0].shape))
    best = bot.reply("你好")
    bot.sampling = {"best_of": 1}
    assert bot.reply(bot.take_back()) == best
    assert {rows for rows, _ in read[1:]} == {1}  # behind the prompt


def test_ctrl_c_while_replies_are_drawn_leaves_a_conversation_that_goes_on() -> None:
    bot = random_bot()

    def interrupt(_: object, given: tuple[Tensor]) -> None:
        if given[0].shape[0] == 7:
            raise KeyboardInterrupt

    with bot.model.register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        bot.reply("你好")
    assert bot.messages == ["你好", ""]
    fresh = bot.copy()  # which has read nothing
    assert bot.reply("晚安") == fresh.reply("晚安")


def test_a_vocabulary_with_nothing_to_say_gives_an_empty_reply() -> None:
    model = random_model()
    everything = range(model.config.vocab_size)
    generators = [torch.Generator() for _ in range(7)]
    request = Request([5, SEP], SAMPLING, generators, banned=everything)
    assert not list(generate_best(model, request, mmi_weight=1.0))
