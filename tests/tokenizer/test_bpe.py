"""Pieces <-> ids, learnt from text."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallgpt.chat.chatbot import prompt_ids, text_chunks
from smallgpt.tokenizer.bpe import LONGEST
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, UNK, Tokenizer
from smallgpt.tokenizer.subwords import SubwordTokenizer, load_tokenizer, pieces_of
from tests.helpers.corpora import subwords

CHARACTERS = list("早上好呀吗，。<>unkpad /\t\u3000ＡＢ😀𠮷\u0301ok龘")
LINES = [
    "早上好呀",
    "早上好，睡吗",
    "好吗  好吗",
    "ok ok <pad>",
    "ＡＢ😀😀 ok",
    "早上𠮷呀。",
    "上好上好",
]
TOKENIZER = subwords(LINES, CHARACTERS, 60)
KNOWN = st.text(st.sampled_from([*CHARACTERS, "\n"])) | st.lists(
    st.sampled_from(["早上好", "  ", "ok", "\n", "😀", *LINES])
).map("".join)
ANY = st.lists(
    st.sampled_from([*CHARACTERS, "\n", "早上好", "<pad>", "<unk>", "中"])
    | st.characters(codec="utf-8")
).map("".join)


# learning


def test_pieces_are_short_frequent_and_hold_every_character() -> None:
    pieces = TOKENIZER.characters
    assert sorted(piece for piece in pieces if len(piece) == 1) == sorted({*CHARACTERS, "睡"})
    longer = [piece for piece in pieces if len(piece) > 1]
    assert longer and max(map(len, longer)) <= LONGEST
    assert all(sum(line.count(piece) for line in LINES) >= 2 for piece in longer)
    assert not any("\n" in piece for piece in longer)
    assert len(TOKENIZER.encode("早上好呀早上好")) < 7


def test_ids_fall_in_frequency() -> None:
    used = Counter(i for line in LINES for i in TOKENIZER.encode(line))
    counts = [used[i] for i in range(FIRST_CHARACTER, len(TOKENIZER))]
    assert counts == sorted(counts, reverse=True)


@settings(max_examples=40)
@given(st.lists(st.text("早上好呀<\n", max_size=12), max_size=12), st.integers(0, 30))
def test_a_vocabulary_of_any_text_has_at_most_the_asked_pieces(lines: list[str], size: int) -> None:
    characters = sorted({"早", *"".join(lines)} - {"\n"})
    tokenizer = subwords(lines, characters, size)
    assert len(tokenizer) <= max(size, FIRST_CHARACTER + len(characters))
    assert set(characters) <= set(tokenizer.characters)
    text = "\n".join(lines)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert subwords(lines, characters, size).definition == tokenizer.definition


# cutting


@given(KNOWN)
@example("  早上  好\n\n ok\u3000ＡＢ<pad> ")
def test_text_of_known_characters_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, PAD, PAD]) == text
    assert UNK not in ids and ids.count(SEP) == text.count("\n")


@given(ANY | st.text(st.characters(exclude_categories=[])))
def test_parts_of_a_text_join_to_it(text: str) -> None:
    spans = TOKENIZER.spans(text)
    assert "".join(part for _, part in spans) == text
    assert [token for token, _ in spans] == TOKENIZER.encode(text)
    for token, part in spans:
        known = [c in TOKENIZER.characters or c == "\n" for c in part]
        assert not any(known) if token == UNK else TOKENIZER.decode([token]) == part
    lengths = TOKENIZER.lengths()
    assert all(lengths[token] == len(part) for token, part in spans if token != UNK)


@given(st.lists(st.text("abcd", min_size=1, max_size=9), max_size=9), st.text("abcd", max_size=20))
def test_the_pieces_alone_decide_how_a_text_is_cut(lines: list[str], text: str) -> None:
    """Neighbours are joined whose piece was learnt first, the leftmost of equals: so do it
    SentencePiece's BPE and what reads its models."""
    tokenizer = subwords(lines, "abcd", 16)
    learnt = [a + b for a, b in tokenizer.definition["model"]["merges"]]
    place = {piece: learnt.index(piece) for piece in learnt}
    parts = list(text)
    while pairs := [(a + b, at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in place]:
        _, at = min((place[piece], at) for piece, at in pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert [part for _, part in tokenizer.spans(text)] == parts


@given(st.lists(ANY, max_size=5))
def test_many_texts_at_once(texts: list[str]) -> None:
    assert TOKENIZER.encode_all(texts) == [TOKENIZER.encode(text) for text in texts]


# ids


def test_a_vocabulary_can_be_extended_by_characters() -> None:
    more = TOKENIZER.extended(Tokenizer(list("好新字早")))
    assert more.characters == [*TOKENIZER.characters, "新", "字"]
    assert more.encode("早上好\n") == TOKENIZER.encode("早上好\n")
    assert more.decode(more.encode("新字好")) == "新字好"
    assert TOKENIZER.extended(Tokenizer(["好"])) is TOKENIZER


def test_first_nats_are_those_of_a_choice_among_pieces_with_the_same_beginning() -> None:
    nats = TOKENIZER.first_nats()
    assert nats is not None and len(nats) == len(TOKENIZER)
    total, alike = defaultdict[str, float](float), defaultdict[str, float](float)
    for number, piece in enumerate(TOKENIZER.characters, FIRST_CHARACTER):
        total[piece[0]] += np.exp(-nats[number])
        alike[piece[0]] += 1 / number
    assert list(total.values()) == pytest.approx([1.0] * len(total))
    assert nats[TOKENIZER.encode("龘")] == 0 and not nats[:FIRST_CHARACTER].any()
    first, *_ = TOKENIZER.encode("早上好")
    assert nats[first] == pytest.approx(np.log(alike["早"] * first))
    assert not TOKENIZER.with_marks().first_nats()[-2:].any()  # type: ignore[index]


def test_a_reply_has_neither_unknown_nor_unprintable_pieces() -> None:
    tokenizer = subwords(["\t好"] * 9, [], 6)
    assert tokenizer.characters[0] == "\t好"
    assert tokenizer.suppressed_ids() == [UNK, *tokenizer.encode("\t好"), *tokenizer.encode("\t")]


def test_replies_are_shown_piece_by_piece() -> None:
    ids = TOKENIZER.encode("早上好ok😀")
    chunks = list(text_chunks(ids, TOKENIZER))
    assert chunks == [TOKENIZER.decode([i]) for i in ids] and len(chunks) < 6


def test_what_is_left_out_of_a_prompt_is_counted_in_characters() -> None:
    ids, _, left_out = prompt_ids(["早上好" * 9], TOKENIZER, context_size=8, max_new_tokens=4)
    assert ids == [*TOKENIZER.encode("早上好" * 3), SEP] and left_out == 18


# on disk


@pytest.mark.parametrize("marks", [False, True])
def test_saved_vocabulary_is_read_back(tmp_path: Path, marks: bool) -> None:
    tokenizer = TOKENIZER.with_marks() if marks else TOKENIZER
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, SubwordTokenizer) and again.classifies == marks
    assert again.of_pieces and again.characters == tokenizer.characters
    assert len(again) == len(TOKENIZER) + 2 * marks == len(again.lengths())
    assert again.start == len(TOKENIZER)


@given(text=ANY | KNOWN)
@example(text="好<pad><unk>\n<sep>早上好")
@example(text="中<中中>中\n中")
def test_transformers_gives_the_same_ids_and_text(text: str, hugging_face: Any) -> None:
    ids = TOKENIZER.encode(text)
    assert hugging_face(text)["input_ids"] == ids
    if UNK not in ids:
        assert hugging_face.decode(ids) == text
        assert hugging_face.decode([*ids, PAD], skip_special_tokens=True) == text
    assert len(hugging_face) == len(TOKENIZER)


def test_the_chat_template_is_our_conversation(hugging_face: Any) -> None:
    said = ["早上好", "<pad>好呀ok", " 好\n吗 "]
    turns = [
        {"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, said, strict=False)
    ]
    templated = hugging_face.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert templated == prompt_ids(said, TOKENIZER, 1000, 1)[0]


# elsewhere


def test_what_another_process_gets_is_the_same_tokenizer() -> None:
    for tokenizer in (TOKENIZER, TOKENIZER.with_marks()):
        there = pickle.loads(pickle.dumps(tokenizer))
        assert there.encode("早<pad>上好<unk>") == tokenizer.encode("早<pad>上好<unk>")
        assert (len(there), there.classifies) == (len(tokenizer), tokenizer.classifies)


def test_white_space_is_added_too() -> None:
    more = TOKENIZER.extended(Tokenizer(["\u00a0", "\u2003"]))
    assert more.decode(more.encode("好\u2003好\u00a0")) == "好\u2003好\u00a0"


def test_characters_alone_are_no_pieces() -> None:
    assert not pieces_of(Tokenizer(["好"])) and not pieces_of(subwords(["好"], [], 5))
    assert pieces_of(TOKENIZER) == TOKENIZER.characters
