"""The Python interface: load, reply, stream; and what stays in mind between replies."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_type

import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import smallgpt
from smallgpt.chat.chatbot import Chatbot, prompt_ids
from smallgpt.config import SamplingConfig
from smallgpt.tokenizer.characters import SEP, UNK, as_utterance
from smallgpt.tokenizer.subwords import SubwordTokenizer
from tests.helpers.commands import refusal
from tests.helpers.corpora import subwords
from tests.helpers.models import CHARACTERS, TINY, ScriptedBot, random_model, vocabulary
from tests.helpers.processes import Run


def test_three_lines_are_enough(trained: Path) -> None:
    bot = smallgpt.load(trained)
    assert bot.reply("早上好呀") == "早上好！睡得好吗？"
    assert "".join(smallgpt.load(str(trained)).stream("早上好呀")) == "早上好！睡得好吗？"
    with pytest.raises(smallgpt.UserError, match="not found"):
        smallgpt.load(trained / "nowhere")
    with pytest.raises(TypeError, match="temperature"):
        smallgpt.load(trained, temperature=0.8)  # type: ignore[call-overload]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        smallgpt.lod  # noqa: B018


def check_types() -> None:
    """mypy reads it, nobody runs it: what `smallgpt.load` gives, and takes."""
    assert_type(smallgpt.load("demo"), smallgpt.Chatbot)
    assert_type(smallgpt.load("demo", {"temperature": 1}, kind="chatbot").reply("早"), str)
    assert_type(smallgpt.load("reviews", kind="classifier"), smallgpt.Classifier)
    smallgpt.load("demo").replay("早")  # type: ignore[attr-defined]
    smallgpt.load("demo", temperature=1)  # type: ignore[call-overload]
    smallgpt.load("reviews", kind="classifier", seed=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "gpu"}, "device: 'gpu' is not a device we know"),
        ({"device": None}, "is not a device we know"),
        ({"dtype": "float8"}, "dtype is 'float8'; it must be one of auto, float32"),
        ({"dtype": torch.float32}, "must be one of auto"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"seed": None}, "must be a whole number"),
        ({"sampling": "hot"}, "'hot' does not say how replies are drawn"),
        ({"sampling": []}, "does not say how replies are drawn"),
        ({"sampling": {"temprature": 1}}, "did you mean `temperature`?"),
        ({"sampling": {"lr": 3}}, "unknown key `lr`\n  -> can be set: temperature, top_k, "),
        ({"sampling": {"temperature": -1}}, "temperature is -1; it must be a number of at least"),
        ({"sampling": SamplingConfig(top_p=2)}, "top_p is 2; it must be"),
        ({"kind": "robot"}, "kind: 'robot' is unknown"),
        ({"kind": "classifier"}, "is a language model, not a classifier"),
        ({"path": None}, "None is not a path"),
        ({"path": b"x"}, "is not a path"),
    ],
)
def test_wrong_arguments_are_told(trained: Path, settings: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: smallgpt.load(**{"path": trained, **settings}))


@pytest.mark.parametrize("text", [None, 5, b"a", ["a"], "", " \n"])
def test_what_is_no_message_is_told_and_leaves_no_trace(text: Any) -> None:
    bot = ScriptedBot(["好"])
    for method in (bot.reply, bot.stream):
        assert "message" in refusal(lambda method=method: method(text))  # type: ignore[misc]
    assert "message" in refusal(lambda: bot.respond([], torch.Generator()))
    assert "message" in refusal(lambda: bot.respond([None], torch.Generator()))  # type: ignore[list-item]
    assert bot.history == []


def test_sampling_may_be_changed_by_key(trained: Path) -> None:
    bot = smallgpt.load(trained, {"max_new_tokens": 2})
    assert bot.reply("早上好呀") == "早上"
    assert bot.sampling.temperature == 0  # as the checkpoint says
    chunks, _ = bot.respond(["早上好呀"], torch.Generator(), {"max_new_tokens": 3})
    assert "".join(chunks) == "早上好"
    bot.sampling = {"max_new_tokens": 1}
    assert len(bot.reply("早上好呀")) == 1 and bot.sampling.temperature == 0
    for wrong in ({"top_p": 2}, {"temprature": 1}, 3):
        assert "sampling: " in refusal(lambda wrong=wrong: setattr(bot, "sampling", wrong))  # type: ignore[misc]
    assert bot.sampling.max_new_tokens == 1


def test_a_conversation_can_be_copied_taken_back_and_kept() -> None:
    bot = random_bot()
    bot.reply("你好")
    other = bot.copy()
    assert other.reply("晚安") == bot.reply("晚安")  # the same random numbers come next
    other.reply("我")
    assert len(bot.history) == 4 and len(other.history) == 6
    assert [m["role"] for m in bot.history] == ["user", "assistant"] * 2

    first = bot.history[-1]["content"]
    again = {bot.reply(bot.take_back()) for _ in range(5)}
    assert again != {first} and len(bot.history) == 4

    fresh = bot.conversation()
    assert fresh.history == []
    assert "nothing has been said" in refusal(fresh.take_back)
    bot.history.append({"role": "user", "content": "我"})  # to a copy
    assert len(bot.history) == 4
    fresh.history = bot.history
    assert fresh.messages == bot.messages
    bot.flush()
    assert len(fresh.history) == 4


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "is a list of messages"),
        ({"messages": []}, "is a list of messages"),
        (["你好"], "message 1 is not of the form"),
        ([{"role": "user"}], "message 1 is not of the form"),
        ([{"role": "user", "content": 1}], "message 1 is not of the form"),
        ([{"role": "system", "content": "你是猫"}], "there is no system prompt"),
        ([{"role": "user", "content": "早"}], "the last message has no reply"),
        ([{"role": "user", "content": "早"}] * 2, "message 2 is by 'user', not 'assistant'"),
        ([{"role": "user", "content": " "}], "message 1 is empty"),
    ],
)
def test_a_history_that_is_no_conversation_changes_nothing(messages: Any, said: str) -> None:
    bot = ScriptedBot(["好"])
    bot.reply("早")

    def assign() -> None:
        bot.history = messages

    assert said in refusal(assign)
    assert bot.messages == ["早", "好"]


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


def test_a_reply_that_is_cut_short_still_ends_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `max_new_tokens`, by closing the stream, by Ctrl-C in the model before it has begun."""
    bot = ScriptedBot(["你好吗是的"], max_new_tokens=3)
    assert bot.reply("早") == "你好吗"
    stream = bot.stream("晚")
    assert [next(stream), next(stream)] == ["你", "好"]
    stream.close()

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bot.script, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bot.reply("我")
    bot.reply("是")
    assert bot.messages == ["早", "你好吗", "晚", "你好", "我", "", "是", "你好吗"]
    assert bot.heard()[1:] == ["早\n你好吗\n晚\n", "早\n你好吗\n晚\n你好\n我\n\n是\n"]


def test_long_talk_forgets_the_oldest_turns() -> None:
    bot = ScriptedBot(["好" * 8])
    talk = bot.conversation()
    for _ in range(5):
        talk.reply("你" * 7)
        assert talk.left_out == 0
    turn, answer = "你" * 7 + "\n", "好" * 8 + "\n"
    assert bot.heard() == [turn, *[s + turn for s in ["", answer][1:] * 4]]
    assert talk.messages == ["你" * 7, "好" * 8] * 5


def test_the_end_of_a_prompt_that_is_too_long_is_what_counts() -> None:
    bot = ScriptedBot(["好"])
    talk = bot.conversation()
    talk.reply("早" * 99_990 + "晚安你好" * 5)
    assert bot.heard() == ["早" + "晚安你好" * 5 + "\n"]  # 22 ids; 10 are kept for the reply
    assert talk.left_out == 99_989
    talk.reply("早")
    assert talk.left_out == 0


# the core: many conversations with one chatbot, and what they have read

WARM = replace(TINY, temperature=1.0, top_p=1.0, max_new_tokens=10)
PROMPTS = ["你好", "是的吗", "？", "今早上好呀不错，你是我", "晚安", "天" * 40, "我", "气 a"]
NGRAMS: dict[str, Any] = {"ngram_order": 4, "ngram_rows": 97, "ngram_embd": 8}


def random_bot(**changes: Any) -> Chatbot:
    """Its head is not tied, so that it ends some replies by itself."""
    return Chatbot(random_model(tied=False, block_size=48, **changes), vocabulary(), WARM, seed=3)


def talk_without_cache(bot: Chatbot, prompts: list[str], stop_after: int = 99) -> list[str]:
    """All that is said; of every third reply only the first chunks are taken."""
    messages, generator = list[str](), torch.Generator().manual_seed(bot.seed)
    for number, prompt in enumerate(prompts):
        chunks, _ = bot.respond([*messages, prompt], generator)
        said = "".join(itertools.islice(chunks, stop_after if number % 3 == 1 else None))
        messages += [prompt, said]
    return messages


@pytest.mark.parametrize("stop_after", [1, 4, 99])
@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("changes", [{}, NGRAMS], ids=["plain", "n-grams"])
def test_a_conversation_that_remembers_what_it_read_says_the_same(
    changes: dict[str, Any], best_of: int, stop_after: int
) -> None:
    bot = random_bot(**changes)
    bot.sampling = {"best_of": best_of}
    talk = bot.conversation()
    for number, prompt in enumerate(PROMPTS * 2):
        stream = talk.stream(prompt)
        for _ in itertools.islice(stream, stop_after if number % 3 == 1 else None):
            pass
        stream.close()
    assert talk.messages == talk_without_cache(bot, PROMPTS * 2, stop_after)
    assert len({len(said) for said in talk.messages[1::2]}) > 2


def test_only_what_is_new_is_read() -> None:
    bot = ScriptedBot(["你好", "好的" * 4])
    talk = bot.conversation()
    talk.reply("早上好")
    assert bot.script.read == 4 + 2  # the prompt; then 你 and 好
    talk.reply("晚安")
    # What was drawn last, <sep>, and the new message; then the reply.
    assert bot.script.read - 6 == 1 + 3 + 8 - 1 + 1
    before = bot.script.read
    talk.reply("天" * 12)  # now the first turns drop out: all is read again
    assert bot.script.read - before == len(bot.script.contexts[-1]) + 2


def test_threads_with_conversations_of_their_own_do_not_hear_each_other() -> None:
    bot = random_bot(**NGRAMS)
    talks = [[prompt * (1 + n % 2) for prompt in PROMPTS[n:] + PROMPTS[:n]] for n in range(6)]
    expected = [talk_without_cache(bot, prompts) for prompts in talks]
    begin = threading.Barrier(len(talks))

    def one(prompts: list[str]) -> list[str]:
        talk = bot.conversation()
        begin.wait()
        for prompt in prompts:
            for _ in talk.stream(prompt):
                time.sleep(0)  # let the others go on
        return talk.messages

    with ThreadPoolExecutor(len(talks)) as pool:
        assert list(pool.map(one, talks)) == expected
    # And in one thread, chunk by chunk.
    both = [bot.conversation() for _ in talks]
    for prompts in zip(*talks, strict=True):
        streams = [talk.stream(prompt) for talk, prompt in zip(both, prompts, strict=True)]
        for _ in itertools.zip_longest(*streams):
            pass
    assert [talk.messages for talk in both] == expected


def test_a_second_reply_does_not_disturb_one_that_is_not_over() -> None:
    warm = random_bot()
    bot = Chatbot(warm.model, warm.tokenizer, replace(WARM, temperature=0))
    talk = bot.conversation()
    talk.reply("早")
    expected = "".join(bot.respond([*talk.messages, PROMPTS[3]], torch.Generator())[0])
    first = talk.stream(PROMPTS[3])
    begun = next(first)
    talk.reply("晚安")
    assert begun + "".join(first) == expected and len(expected) > 2


@given(st.text() | st.text("\x00\x07\x1b\u200b\u2028\ud83d😀 \t", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompt_gets_a_printable_reply(untrained: Chatbot, prompt: str) -> None:
    assume(prompt.strip())
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


# which messages the model gets to see

utterances = st.text(st.sampled_from("你我好吗ab \n\r\t<>"), max_size=12)


def test_messages_are_closed_by_sep_and_control_tokens_cannot_be_typed() -> None:
    tokenizer = vocabulary()
    ids, _, left_out = prompt_ids(["你好", " 好\r\n吗 "], tokenizer, 32, 10)
    assert (tokenizer.decode(ids), left_out) == ("你好\n好 吗\n", 0)
    ids, *_ = prompt_ids(["<pad><sep><unk>"], tokenizer, 64, 10)
    # Fifteen characters, of which u, n and k are not in the vocabulary, and the message's own end.
    assert len(ids) == 16
    assert [i for i, token in enumerate(ids) if token < 3] == [11, 12, 13, 15]
    assert (ids[11], ids[15]) == (UNK, SEP)


@given(st.lists(utterances, min_size=1, max_size=10), st.integers(8, 40), st.integers(1, 100))
@example(["你好", "好" * 100_000], 8, 4)
@example(["好" * 100_000], 8, 1000)
def test_the_longest_run_of_whole_last_messages_is_kept(
    said: list[str], size: int, max_new_tokens: int
) -> None:
    tokenizer = vocabulary()
    ids, _, left_out = prompt_ids(said, tokenizer, size, max_new_tokens)
    room = size - min(max_new_tokens, size // 2)
    turns = [tokenizer.encode(as_utterance(text) + "\n") for text in said]
    fitting = [
        candidate
        for start in range(len(turns))
        if len(candidate := [i for turn in turns[start:] for i in turn]) <= room
    ]
    if fitting:
        assert (ids, left_out) == (fitting[0], 0)
    else:
        assert ids == turns[-1][-room:]
        assert left_out == len(turns[-1]) - room


def test_what_is_left_out_is_counted_in_characters_not_in_subwords() -> None:
    words = ["<unk>", "\n", "<pad>", "hello", "world", "!"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = SubwordTokenizer(json.loads(backend.to_str()))
    ids, _, left_out = prompt_ids(["hello " * 5 + "world!"], tokenizer, 8, 4)
    assert (ids, left_out) == ([3, 4, 5, SEP], len("hello " * 4))


@given(st.text())
def test_an_utterance_is_one_line(text: str) -> None:
    line = as_utterance(text)
    assert "\n" not in line and "\r" not in line
    assert line == as_utterance(line) == line.strip()
    assert line.split() == text.split()


@pytest.mark.parametrize("best_of", [1, 2])
def test_repetition_is_counted_in_characters_whatever_an_id_is(best_of: int) -> None:
    tokenizer = subwords(["你好吗你好", "早上好呀早上", "好吗早"] * 9, CHARACTERS, 40)
    assert max(map(len, tokenizer.characters)) > 1
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, no_repeat_ngram=1, best_of=best_of)
    bot = Chatbot(random_model(vocab_size=len(tokenizer)), tokenizer, sampling)
    replies = [bot.conversation().reply(text) for text in CHARACTERS.strip()[:8]]
    assert all(len(set(reply)) == len(reply) for reply in replies)
    assert max(map(len, replies)) > 1
    bot.sampling = {"no_repeat_ngram": 0, "temperature": 0, "max_repeats": 3}
    bot.model.wpe.weight.data.zero_()  # now it says the same for ever
    assert not re.search(r"(.+?)\1{3}", bot.reply("你好"))
    bot.sampling = {"max_repeats": 0}
    assert re.search(r"(.+?)\1{3}", bot.conversation().reply("你好"))
