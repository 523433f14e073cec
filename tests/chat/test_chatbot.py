"""The Python interface: load, reply, stream; and what stays in mind between replies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smallgpt
from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import SamplingConfig
from tests.helpers.models import TINY, ScriptedBot, random_model, vocabulary
from tests.helpers.processes import Run


def test_three_lines_are_enough(trained: Path) -> None:
    bot = smallgpt.load(trained)
    assert bot.reply("早上好呀") == "早上好！睡得好吗？"
    assert "".join(smallgpt.load(str(trained)).stream("早上好呀")) == "早上好！睡得好吗？"
    with pytest.raises(smallgpt.UserError, match="not found"):
        smallgpt.load(trained / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        smallgpt.lod  # noqa: B018


def test_importing_is_quick_and_chatting_does_not_load_the_compiler(
    trained: Path, run: Run
) -> None:
    done = run(
        "-c",
        "import sys, smallgpt\n"
        "smallgpt.UserError\n"
        "assert 'torch' not in sys.modules\n"
        "print(smallgpt.load(sys.argv[1]).reply('晚安'))\n"
        "assert not {'sympy', 'torch._dynamo', 'transformers'} & set(sys.modules)\n",
        trained,
        env={"PYTHONIOENCODING": "utf-8"},
    )
    assert (done.stdout.decode(), done.stderr.decode()) == ("晚安，做个好梦\n", "")


def test_settings_given_to_load_replace_the_stored_ones(trained: Path) -> None:
    short = smallgpt.load(trained, SamplingConfig(temperature=0, max_new_tokens=2))
    assert short.reply("早上好呀") == "早上"
    hot = SamplingConfig(temperature=3.0, top_p=1.0, max_new_tokens=8)
    replies = [smallgpt.load(trained, hot, seed=seed).reply("早上好呀") for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_the_model_sees_what_was_said() -> None:
    bot = ScriptedBot(["你好呀", "好"])
    assert bot.reply("早") == "你好呀"
    assert bot.reply("是吗") == "好"
    bot.flush()
    assert list(bot.stream("晚安")) == ["你", "好", "呀"]
    assert bot.heard() == ["早\n", "早\n你好呀\n是吗\n", "晚安\n"]


def test_a_reply_that_is_cut_off_still_ends_its_turn() -> None:
    bot = ScriptedBot(["你好吗是的"], max_new_tokens=3)
    assert bot.reply("早") == "你好吗"
    bot.reply("晚")
    assert bot.heard()[1] == "早\n你好吗\n晚\n"


def test_closing_a_stream_keeps_what_was_said() -> None:
    bot = ScriptedBot(["你好吗是的"])
    stream = bot.stream("早")
    assert [next(stream), next(stream)] == ["你", "好"]
    stream.close()
    bot.reply("晚")
    assert bot.heard()[1] == "早\n你好\n晚\n"


def test_control_c_in_the_model_keeps_the_speakers_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bot = ScriptedBot(["你好"])

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bot.script, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bot.reply("早")
    bot.reply("晚")
    assert bot.heard() == ["早\n\n晚\n"]  # the bot's turn is empty, but it is there


def test_long_talk_forgets_the_oldest_turns() -> None:
    bot = ScriptedBot(["好" * 8])
    for _ in range(5):
        bot.reply("你" * 7)
        assert bot.left_out == 0
    turn, answer = "你" * 7 + "\n", "好" * 8 + "\n"
    assert bot.heard() == [turn, *[s + turn for s in ["", answer][1:] * 4]]


def test_the_end_of_a_prompt_that_is_too_long_is_what_counts() -> None:
    bot = ScriptedBot(["好"])
    bot.reply("早" * 99_990 + "晚安你好" * 5)
    assert bot.heard() == ["早" + "晚安你好" * 5 + "\n"]  # 22 ids; 10 are kept for the reply
    assert bot.left_out == 99_989
    bot.reply("早")
    assert bot.left_out == 0


@given(st.text() | st.text("\x00\x07\x1b\u200b\u2028\ud83d😀 \t", max_size=40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompt_gets_a_printable_reply(untrained: Chatbot, prompt: str) -> None:
    reply = untrained.reply(prompt)
    assert reply
    assert reply.isprintable()


@pytest.fixture(scope="module")
def untrained() -> Chatbot:
    """A model that would like to say anything: control tokens, controls, unused ids."""
    tokenizer = type(vocabulary())([*vocabulary().characters, "\t", "\x1b", "\r", "\u2028"])
    size = len(tokenizer) + 9
    sampling = replace(TINY, temperature=5.0, top_p=1.0)
    return Chatbot(random_model(vocab_size=size), tokenizer, sampling, seed=1)


def test_a_model_may_be_on_any_floating_type() -> None:
    model = random_model().to(torch.bfloat16)
    reply = Chatbot(model, vocabulary(), replace(TINY, temperature=1.0)).reply("你好")
    assert reply.isprintable()
