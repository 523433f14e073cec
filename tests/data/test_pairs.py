"""Pairs of what was said and what was replied, drawn from dialogues."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.data.corpus import Corpus
from smallgpt.data.pairs import sample_pairs
from tests.helpers.corpora import CORPORA, everything


def dialogues_of(corpus: Corpus) -> list[list[str]]:
    texts = (corpus.tokenizer.decode(corpus.dialogue(n)) for n in range(len(corpus)))
    return [text.split("\n") for text in texts]


@settings(max_examples=30)
@given(CORPORA, st.integers(0, 3), st.integers(0, 20))
def test_a_pair_is_an_utterance_with_all_before_it(corpus: Corpus, seed: int, most: int) -> None:
    pairs = sample_pairs(corpus, everything(corpus), most, seed, lambda reply: len(reply) < 9)
    whole = sample_pairs(corpus, everything(corpus), 99, seed, lambda reply: len(reply) < 9)
    assert pairs == whole[:most]
    dialogues = dialogues_of(corpus)
    for pair in whole:
        said = [*pair.messages, pair.reply]
        assert pair.messages and len(pair.reply) < 9
        assert said in [dialogue[: len(said)] for dialogue in dialogues]


@settings(max_examples=30)
@given(CORPORA, st.integers(0, 3))
def test_every_dialogue_of_two_utterances_has_one(corpus: Corpus, seed: int) -> None:
    pairs = sample_pairs(corpus, everything(corpus), 99, seed, lambda reply: True)
    first = sorted(dialogue[0] for dialogue in dialogues_of(corpus) if len(dialogue) > 1)
    assert sorted(pair.messages[0] for pair in pairs) == first
