"""Characters <-> ids, and the same ids from what transformers reads."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallgpt.chat.chatbot import prompt_ids
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, UNK, Tokenizer
from smallgpt.tokenizer.subwords import load_tokenizer
from tests.helpers.commands import refusal

# Chinese, the letters of the control tokens, white space, controls, 4-byte characters.
CHARACTERS = list(
    "好早上呀吗，。？<>unkpadse/ \t\u3000\x85\u2028\xa0\r\x00\x1c\x0b\ufeff\u200b😀𠮷\u0301"
)
TOKENIZER = Tokenizer(CHARACTERS)
KNOWN = st.text(st.sampled_from([*CHARACTERS, "\n"]))
PARTS = st.sampled_from([*CHARACTERS, "\n", "\r\n", "\x1d", "中"]) | st.characters(codec="utf-8")
ANY = st.lists(PARTS).map("".join)


# encoding


@given(KNOWN | st.text(st.characters(exclude_categories=[])))
def test_text_comes_back_with_unknown_characters_as_unk_one_by_one(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text)
    shown = [c if c in CHARACTERS or c == "\n" else "\ufffd" for c in text]
    assert TOKENIZER.decode(ids) == "".join(shown)


def test_emoji_and_lone_surrogates_do_not_crash() -> None:
    assert TOKENIZER.encode("\ud800好\udfff👩\u200d🚀") == [UNK, FIRST_CHARACTER, *[UNK] * 4]


def test_typed_control_tokens_are_five_characters() -> None:
    for typed in ("<sep>", "<pad>", "<unk>"):
        ids = TOKENIZER.encode(typed)
        assert len(ids) == 5 and min(ids) >= FIRST_CHARACTER
        assert TOKENIZER.decode(ids) == typed


def test_ids_of_characters_and_control_tokens() -> None:
    assert len(TOKENIZER) == len(CHARACTERS) + 3
    assert TOKENIZER.encode("".join(CHARACTERS)) == list(range(3, len(TOKENIZER)))
    assert TOKENIZER.encode("好\n") == [FIRST_CHARACTER, SEP]
    assert TOKENIZER.decode([FIRST_CHARACTER, SEP, PAD, PAD]) == "好\n"
    assert TOKENIZER.decode([UNK, len(TOKENIZER), len(TOKENIZER) + 1000]) == "\ufffd" * 3


def test_suppressed_ids_are_unk_and_characters_no_screen_shows() -> None:
    shown = TOKENIZER.decode(TOKENIZER.suppressed_ids())
    assert shown[0] == "\ufffd"
    assert set(shown[1:]) == set("\t\x85\u2028\xa0\r\x00\x1c\x0b\ufeff\u200b")


@pytest.mark.parametrize("characters", [["好", "好"], ["好早"], [""], ["好", "\n"]])
def test_vocabulary_of_anything_but_distinct_characters_is_refused(characters: list[str]) -> None:
    with pytest.raises(ValueError, match="distinct single characters"):
        Tokenizer(characters)


# on disk


@settings(max_examples=50)
@given(characters=st.lists(st.characters(exclude_characters="\n", codec="utf-8"), unique=True))
def test_saved_vocabulary_is_read_back(
    characters: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    Tokenizer(characters).save(folder)
    assert load_tokenizer(folder).characters == characters


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": []}}',
        '{"model": {"vocab": ["<unk>"]}}',
        '{"model": {"vocab": {}}}',
        '{"model": {"vocab": {"<unk>": 0, "\\n": 1, "<pad>": 2, "a": 4}}}',
        '{"model": {"vocab": {"<unk>": 0, "<pad>": 1, "\\n": 2, "a": 3}}}',
        '{"model": {"vocab": {"<unk>": 0, "\\n": 1, "<pad>": 2, "the": 3}}}',
        '{"model": {"vocab": {"<unk>": 0, "\\n": 1, "<pad>": 2, "a": "3"}}}',
        b"\xff\x00" * 10,
    ],
)
def test_foreign_or_broken_vocabulary_is_refused_with_its_file(
    tmp_path: Path, content: str | bytes
) -> None:
    file = tmp_path / "tokenizer.json"
    assert f"{file} is missing" in refusal(lambda: load_tokenizer(tmp_path))
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert f"{file} is not a vocabulary" in refusal(lambda: load_tokenizer(tmp_path))


# as transformers reads it


@settings(max_examples=200)
@given(text=ANY | KNOWN)
@example(text="好<pad><unk>\n<sep>")
@example(text="\r\n \u3000\x85")
def test_transformers_gives_the_same_ids_and_text(text: str, hugging_face: Any) -> None:
    ids = TOKENIZER.encode(text)
    assert hugging_face(text)["input_ids"] == ids
    if UNK not in ids:
        assert hugging_face.decode(ids) == text
        assert hugging_face.decode([*ids, PAD, PAD], skip_special_tokens=True) == text
    assert len(hugging_face) == len(TOKENIZER)
    assert (hugging_face.unk_token_id, hugging_face.pad_token_id) == (UNK, PAD)


@settings(max_examples=200)
@given(messages=st.lists(ANY, min_size=1, max_size=5))
@example(messages=["<pad>", "好<unk>"])
@example(messages=[" 早上\r\n好\n\n呀\u3000", "\r", "\x1c\x85好\x1f\u200b "])
def test_chat_template_equals_our_conversation(messages: list[str], hugging_face: Any) -> None:
    roles = ["user", "assistant"] * 3
    turns = [{"role": r, "content": text} for r, text in zip(roles, messages, strict=False)]
    ids, _, left_out = prompt_ids(messages, TOKENIZER, context_size=10_000, max_new_tokens=1)
    assert left_out == 0
    assert hugging_face.apply_chat_template(turns, tokenize=True)["input_ids"] == ids
    assert hugging_face(hugging_face.apply_chat_template(turns, tokenize=False))["input_ids"] == ids
    prompt = hugging_face.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
    assert prompt["input_ids"] == ids
