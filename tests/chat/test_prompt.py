"""Which messages the model gets to see."""

from __future__ import annotations

import json

import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from smallgpt.chat.chatbot import prompt_ids
from smallgpt.tokenizer.characters import SEP, UNK, as_utterance
from smallgpt.tokenizer.subwords import SubwordTokenizer
from tests.helpers.models import vocabulary

utterances = st.text(st.sampled_from("你我好吗ab \n\r\t<>"), max_size=12)


def test_messages_are_closed_by_sep_and_control_tokens_cannot_be_typed() -> None:
    tokenizer = vocabulary()
    ids, left_out = prompt_ids(["你好", " 好\r\n吗 "], tokenizer, 32, 10)
    assert (tokenizer.decode(ids), left_out) == ("你好\n好 吗\n", 0)
    ids, _ = prompt_ids(["<pad><sep><unk>"], tokenizer, 64, 10)
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
    ids, left_out = prompt_ids(said, tokenizer, size, max_new_tokens)
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
    ids, left_out = prompt_ids(["hello " * 5 + "world!"], tokenizer, 8, 4)
    assert (ids, left_out) == ([3, 4, 5, SEP], len("hello " * 4))


@given(st.text())
def test_an_utterance_is_one_line(text: str) -> None:
    line = as_utterance(text)
    assert "\n" not in line and "\r" not in line
    assert line == as_utterance(line) == line.strip()
    assert line.split() == text.split()
