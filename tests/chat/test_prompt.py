"""Which turns the model gets to see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.chat.conversation import Conversation
from smallgpt.tokenizer.characters import SEP, UNK, as_utterance
from tests.helpers.models import vocabulary

utterances = st.text(st.sampled_from("你我好吗ab \n\r\t<>"), max_size=12)


def test_turns_are_closed_by_sep() -> None:
    tokenizer = vocabulary()
    conversation = Conversation(tokenizer, 32)
    conversation.add("你好")
    conversation.add(" 好\r\n吗 ")
    assert len(conversation) == 2
    ids, left_out = conversation.context(10)
    assert tokenizer.decode(ids) == "你好\n好 吗\n"
    assert left_out == 0
    conversation.flush()
    assert len(conversation) == 0
    conversation.add("早")
    assert tokenizer.decode(conversation.context(10)[0]) == "早\n"


def test_control_tokens_cannot_be_typed() -> None:
    conversation = Conversation(vocabulary(), 64)
    conversation.add("<pad><sep><unk>")
    ids, _ = conversation.context(10)
    # Fifteen characters, of which u, n and k are not in the vocabulary, and the turn's own end.
    assert len(ids) == 16
    assert [i for i, token in enumerate(ids) if token < 3] == [11, 12, 13, 15]
    assert (ids[11], ids[15]) == (UNK, SEP)


@given(st.lists(utterances, min_size=1, max_size=10), st.integers(8, 40), st.integers(1, 100))
def test_the_longest_run_of_whole_last_turns_is_kept(
    said: list[str], size: int, max_new_tokens: int
) -> None:
    tokenizer = vocabulary()
    conversation = Conversation(tokenizer, size)
    for text in said:
        conversation.add(text)
    ids, left_out = conversation.context(max_new_tokens)

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
    assert conversation.context(max_new_tokens)[0] == ids  # asking changes nothing


@pytest.mark.parametrize("max_new_tokens", [1, 4, 1000])
def test_there_is_always_room_for_a_reply(max_new_tokens: int) -> None:
    conversation = Conversation(vocabulary(), 8)
    conversation.add("好" * 100_000)
    ids, left_out = conversation.context(max_new_tokens)
    assert len(ids) == 8 - min(max_new_tokens, 4)
    assert ids[-1] == SEP
    assert left_out == 100_001 - len(ids)


def test_what_was_forgotten_does_not_come_back() -> None:
    tokenizer = vocabulary()
    conversation = Conversation(tokenizer, 8)
    for text in ("你好", "早上好", "晚"):
        conversation.add(text)
    assert tokenizer.decode(conversation.context(4)[0]) == "晚\n"
    assert tokenizer.decode(conversation.context(1)[0]) == "晚\n"
    assert len(conversation) == 1


@given(st.text())
def test_an_utterance_is_one_line(text: str) -> None:
    line = as_utterance(text)
    assert "\n" not in line and "\r" not in line
    assert line == as_utterance(line) == line.strip()
    assert line.split() == text.split()
