"""Text to ids, the vocabulary's order, the cache, and the split."""

import gzip
import json
import lzma
import os
import re
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.data import encode_plainly
from smallgpt.data import corpus as dialogues_module
from smallgpt.data import text as text_module
from smallgpt.data.corpus import (
    CACHE_FOLDER,
    RARE_SHARE,
    Corpus,
    describe,
    learn_subwords,
    match_tokenizer,
    open_corpus,
    split,
    without_characters,
)
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.tokenizer.bpe import learn
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, UNK, Tokenizer
from smallgpt.tokenizer.subwords import SubwordTokenizer
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal
from tests.helpers.corpora import subwords

GOLDEN = Path(__file__).parents[3] / "shared/golden/original_tiny"

BYTE_ORDER_MARK = "\ufeff"
PARTS = [
    *"好早呀吗aé😀𠮷\xad\u200b \t\x85\u2028\u3000\ufeff\n\r",
    "\r\n",
    "\n\n",
    "\n \n",
    "\n\u3000\u2028\n",
]  # newlines, white space of several kinds, characters of 1 to 4 bytes, the byte order mark
LINES = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def texts_of(corpus: Corpus) -> list[str]:
    """The dialogues, decoded; checks that each is closed by one `<pad>`."""
    found = []
    for index in range(len(corpus)):
        ids = corpus.dialogue(index)
        assert ids[-1] == PAD
        assert PAD not in ids[:-1]
        found.append(corpus.tokenizer.decode(ids))
    return found


def problem_of(*paths: Path) -> str:
    return refusal(lambda: open_corpus(list(paths)))


# encoding


@settings(deadline=None, max_examples=100)
@given(
    texts=st.lists(LINES, min_size=1, max_size=2), chunk_bytes=st.sampled_from([None, 1, 2, 3, 20])
)
@example(texts=["好\n呀\r"], chunk_bytes=None)
@example(texts=["好\r\r\n\n"], chunk_bytes=1)
@example(texts=["\ufeff\u3000\n好\n呀 \n \n早", " \n\n好"], chunk_bytes=7)
def test_corpus_equals_a_plain_implementation(
    texts: list[str], chunk_bytes: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = [f"{text}\n\n早\n早" for text in texts]  # at least one dialogue of two utterances
    texts[-1] += texts[0][::-1]
    folder = tmp_path_factory.mktemp("corpus")
    paths = [write(folder / f"{i}.txt", text) for i, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        if chunk_bytes:
            patch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
            patch.setattr(dialogues_module, "_CHUNK", chunk_bytes)
        corpus = open_corpus(paths)
    whole = "".join(f"\n\n{text.removeprefix(BYTE_ORDER_MARK)}" for text in texts)
    characters, dialogues = encode_plainly(write(folder / "whole.txt", whole))
    assert [corpus.dialogue(index) for index in range(len(corpus))] == dialogues
    assert corpus.tokenizer.characters == characters
    assert corpus.ids.dtype == np.uint16
    assert corpus.conversations == sum(SEP in ids for ids in dialogues)
    assert corpus.characters == sum(len(ids) - ids.count(SEP) - 1 for ids in dialogues)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_other_encodings_give_the_same_corpus(tmp_path: Path, encoding: str) -> None:
    text = "在的\r\n好呀\r\n\u3000\r\n几点\r\n一点半\r\n"
    (tmp_path / "other.txt").write_bytes(text.encode(encoding))
    expected = open_corpus([write(tmp_path / "t.txt", text)])
    for _ in range(2):  # the second time from the cache
        corpus = open_corpus([tmp_path / "other.txt"], text_chunks)
        assert texts_of(corpus) == texts_of(expected)
        assert corpus.tokenizer.characters == expected.tokenizer.characters


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode("早".encode("gb18030")), "早\n好\n")
    for _ in range(2):
        assert texts_of(open_corpus([path])) == ["早\n好"]


def test_ids_of_a_small_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_corpus([write(tmp_path / "t.txt", "好好呀\n早呀好\n\n\n早\n\n")])
    assert corpus.tokenizer.characters == ["好", "呀", "早"]
    assert corpus.ids.tolist() == [3, 3, 4, SEP, 5, 4, 3, PAD, 5, PAD]
    assert corpus.ends.tolist() == [8, 10]
    describe(corpus)
    describe(open_corpus([write(tmp_path / "t.txt", "好\n早")]))
    said = capsys.readouterr().err
    assert (
        "text: 2 dialogues (1 of two or more utterances), 7 characters, 3 different ones\n" in said
    )
    assert "text: 1 dialogue, 2 characters" in said


def test_golden_vocabulary(tmp_path: Path) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files in {GOLDEN}")
    expected = json.loads((GOLDEN / "expected.json").read_text("utf-8"))["vocab"]
    corpus = open_corpus([write(tmp_path / "t.txt", (GOLDEN / "train.txt").read_text("utf-8"))])
    assert ["<unk>", "<sep>", "<pad>", *corpus.tokenizer.characters] == expected


def test_rare_characters_are_the_last_percent_of_the_text(tmp_path: Path) -> None:
    frequent, rare = "好" * 500 + "早" * 491, "一二三四五六七八九"
    corpus = open_corpus([write(tmp_path / "t.txt", f"{frequent}\n{rare}")])
    assert len(rare) < RARE_SHARE * 1000
    assert corpus.tokenizer.decode(range(corpus.rare_from, len(corpus.tokenizer))) == rare


@pytest.mark.parametrize(("distinct", "dtype"), [(65_533, np.uint16), (65_534, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(
    tmp_path: Path, distinct: int, dtype: type
) -> None:
    characters = [chr(code) for code in range(0x3400, 0xD7A4)] + [
        chr(code) for code in range(0x20000, 0x2A6D0)
    ]
    characters = [c for c in characters if not c.isspace()][:distinct]
    text = "\n".join("".join(characters[i : i + 100]) for i in range(0, distinct, 100))
    corpus = open_corpus([write(tmp_path / "t.txt", text)])
    assert len(corpus.tokenizer) == distinct + FIRST_CHARACTER
    assert corpus.ids.dtype == dtype
    assert texts_of(corpus) == [text]


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 5])
def test_several_files_of_any_compression_and_name_are_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
    write(tmp_path / "a", "好\n早")
    (tmp_path / "b").write_bytes(gzip.compress("早呀\n好\n\n好".encode()))
    (tmp_path / "c").write_bytes(lzma.compress("吗\n呀".encode()))
    assert texts_of(open_corpus([tmp_path / name for name in "abc"])) == [
        "好\n早",
        "早呀\n好",
        "好",
        "吗\n呀",
    ]


# what is refused


@pytest.mark.parametrize(
    ("text", "problem", "advice"),
    [
        *((blank, "no text in it", "put dialogues in it") for blank in (" \n\u3000\n\r\n\t", "\n")),
        *((blank, "no text in it", "put dialogues in it") for blank in ("\ufeff", "\ufeff\r\r")),
        ("早上好\n\n晚上好\n\n你好", "3 dialogues, but none of two", "one utterance a line"),
        ("早", "1 dialogue, but none of two utterances", "one utterance a line"),
    ],
)
def test_no_text_or_no_dialogue(tmp_path: Path, text: str, problem: str, advice: str) -> None:
    path = write(tmp_path / "text.txt", text)
    message = problem_of(path)
    assert f"{path}: {problem}" in message
    assert advice in message


def test_second_of_two_files_is_checked_too(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "好\n早")
    assert f"{tmp_path / 'missing'} not found" in problem_of(good, tmp_path / "missing")
    assert f"{write(tmp_path / 'empty', '')} is empty" in problem_of(good, tmp_path / "empty")


# the cache


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write(tmp_path / "train.txt", "早上好\n早\n\n吃了吗\n吃了")


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / CACHE_FOLDER).glob("*"))


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(dialogues_module, "_encode", encode)


def test_cache_belongs_to_the_content_not_to_name_or_time(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_corpus([text])
    text = text.rename(text.with_name("renamed.txt"))
    os.utime(text, (1, 1))
    forbid_encoding(monkeypatch)
    second = open_corpus([text])
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.ends, second.ends)
    assert first.tokenizer.characters == second.tokenizer.characters
    for field in ("rare_from", "characters", "conversations", "fingerprint"):
        assert getattr(first, field) == getattr(second, field)


def test_changed_content_of_the_same_size_and_time_is_encoded_anew(text: Path) -> None:
    open_corpus([text])
    before = text.stat()
    write(text, text.read_text("utf-8").replace("吃", "睡"))
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert text.stat().st_size == before.st_size
    assert texts_of(open_corpus([text])) == ["早上好\n早", "睡了吗\n睡了"]
    assert len(cached(text.parent)) == 2


@pytest.mark.parametrize(
    "interruption",
    [KeyboardInterrupt("middle"), MemoryError("middle"), OSError(28, "No space left")],
)
def test_interrupted_build_leaves_nothing_behind(
    text: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def write_ids(*_: Any) -> None:
        raise interruption

    expected = UserError if isinstance(interruption, OSError) else type(interruption)
    with monkeypatch.context() as patch, pytest.raises(expected, match=r"middle|No space left"):
        patch.setattr(dialogues_module, "_write_ids", write_ids)
        open_corpus([text])
    assert cached(text.parent) == []
    assert len(open_corpus([text])) == 2


def test_bad_text_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes("早\n好\n".encode() + b"\xff")
    assert "line 3" in problem_of(path)
    assert cached(tmp_path) == []


def test_two_builders_at_once_both_succeed(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, both = dialogues_module._encode, threading.Barrier(2, timeout=60)

    def encode_together(*args: Any) -> None:
        encode(*args)
        both.wait()  # both found no cache, and both are about to put theirs in place

    monkeypatch.setattr(dialogues_module, "_encode", encode_together)
    with ThreadPoolExecutor(2) as builders:
        for corpus in builders.map(open_corpus, [[text]] * 2):
            assert texts_of(corpus) == ["早上好\n早", "吃了吗\n吃了"]
    assert len(cached(text.parent)) == 1


def test_a_builder_takes_the_cache_of_one_that_was_faster(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: Any) -> None:
        monkeypatch.undo()
        open_corpus([text])
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(dialogues_module, "_encode", overtaken)
    assert texts_of(open_corpus([text])) == ["早上好\n早", "吃了吗\n吃了"]


@pytest.mark.parametrize("has_a_home", [True, False])
def test_read_only_place_uses_a_cache_folder_of_the_user(
    text: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    has_a_home: bool,
) -> None:
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home) if has_a_home else "/dev/null/no")
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    text.parent.chmod(0o555)
    try:
        assert len(open_corpus([text])) == 2
    finally:
        text.parent.chmod(0o755)
    assert not (text.parent / CACHE_FOLDER).exists()
    (folder,) = home.iterdir()
    assert folder.name.startswith("smallgpt" if has_a_home else "smallgpt-")
    assert len(list(folder.iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names must be text there")
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode(b"\xff.txt"), "早\n早上好\n")
    assert texts_of(open_corpus([path])) == texts_of(open_corpus([path])) == ["早\n早上好"]


def test_no_place_for_the_cache_is_told(text: Path) -> None:
    (text.parent / CACHE_FOLDER).touch()  # a file where the folder should be
    assert "cannot write the cache" in problem_of(text)


@pytest.mark.parametrize("name", ["ids.npy", "ends.npy", "vocabulary.json"])
def test_damaged_cache_is_told_with_its_folder(text: Path, name: str) -> None:
    open_corpus([text])
    (folder,) = (text.parent / CACHE_FOLDER).iterdir()
    (folder / name).write_bytes(b"\x00")
    message = problem_of(text)
    assert f"the cache {folder} is damaged" in message
    assert "delete that folder" in message


# the split


@settings(deadline=None)
@given(
    st.integers(2, 300),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(0, 2**63 - 1),
)
def test_split_is_disjoint_complete_and_repeatable(count: int, percent: float, seed: int) -> None:
    train, validation = split(count, percent, seed)
    assert sorted([*train, *validation]) == list(range(count))
    assert len(train) and len(validation)
    assert abs(len(train) - count * percent) <= 1
    assert np.all(np.diff(train) > 0) and np.all(np.diff(validation) > 0)
    assert all(map(np.array_equal, split(count, percent, seed), (train, validation)))


def test_split_depends_on_the_seed_and_needs_two_dialogues() -> None:
    assert not np.array_equal(split(100, 0.5, 1)[0], split(100, 0.5, 2)[0])
    with pytest.raises(UserError, match="only one dialogue"):
        split(1, 0.8, 1)


# subwords


def dialogues_for(folder: Path, common: str, held_back: str, count: int = 60) -> Path:
    """Dialogues of `common` to train on; those for validation (80 %, seed 3) are `held_back`."""
    _, validation = split(count, 0.8, 3)
    said = [held_back if number in validation else common for number in range(count)]
    return write(folder / "text.txt", "\n\n".join(f"{text}\n{text}，好" for text in said))


def test_subwords_are_learnt_from_the_training_part_and_know_all_characters(tmp_path: Path) -> None:
    corpus = open_corpus([dialogues_for(tmp_path, "早上好呀", "魑魅魍魉")])
    tokenizer = learn_subwords(corpus, 0.8, 3, 40)
    longer = [piece for piece in tokenizer.characters if len(piece) > 1]
    assert "早上好" in longer and not any(set("魑魅魍魉") & set(piece) for piece in longer)
    encoded, id_map = match_tokenizer(corpus, tokenizer)
    assert id_map is None and UNK not in encoded.ids
    assert texts_of(encoded) == texts_of(corpus)
    assert (encoded.characters, encoded.fingerprint) == (corpus.characters, corpus.fingerprint)
    assert len(encoded.ids) < len(corpus.ids)


def foreign_words() -> Tokenizer:
    """Words of another program's vocabulary, which lacks most characters."""
    words = ["<unk>", "\n", "<pad>", "hello", "早", "好吗好吗"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return SubwordTokenizer(json.loads(backend.to_str()))


@pytest.mark.parametrize(
    "tokenizer",
    [subwords(["早上好呀", "早上好"] * 3, ["吗"], 20), foreign_words()],
    ids=["own", "foreign"],
)
def test_the_ids_of_subwords_are_those_of_each_dialogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(dialogues_module, "_CHUNK", 50)
    said = "早上好呀\n早上好 hello\n\n" * 20 + f"{'好吗' * 60}\n<pad>新"
    corpus = open_corpus([write(tmp_path / "text.txt", said)])
    encoded, _ = match_tokenizer(corpus, tokenizer)
    expected = [[*tokenizer.encode(dialogue), PAD] for dialogue in texts_of(corpus)]
    assert [encoded.dialogue(number) for number in range(len(encoded))] == expected
    assert encoded.ids.dtype == np.uint16


def test_unwanted_characters_are_unknown_in_any_vocabulary(tmp_path: Path) -> None:
    """Also in one that has a piece for what stands in for unknown ones on the screen."""
    said = ["早上好呀\n早上好吗", "好好早上好\n好", "吗\n早\ufffd"]
    corpus = open_corpus([write(tmp_path / "text.txt", "\n\n".join(said))])
    less = without_characters(corpus, {"好", "吗"})
    assert texts_of(less) == [re.sub("[好吗]", "\ufffd", text) for text in said]
    tokenizer = subwords(["早上好呀", "早上好", "早上\ufffd"] * 3, ["吗"], 20)
    encoded, _ = match_tokenizer(less, tokenizer)
    for number, text in enumerate(said):
        parts = re.split("[好吗]", text)
        expected = [id_ for part in parts for id_ in (UNK, *tokenizer.encode(part))][1:]
        assert encoded.dialogue(number) == [*expected, PAD]
    assert texts_of(match_tokenizer(corpus, tokenizer)[0]) == said


def test_subwords_and_their_ids_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus([dialogues_for(tmp_path, "早上好呀", "你在吗")])
    first = learn_subwords(corpus, 0.8, 3, 30)
    ids = match_tokenizer(corpus, first)[0].ids
    for keys in ((0.8, 3, 20), (0.5, 3, 30), (0.8, 4, 30)):
        learn_subwords(corpus, *keys)
    assert sum("-pieces" in name for name in cached(tmp_path)) == 4
    for name in ("learn", "_encode_anew"):
        monkeypatch.delattr(dialogues_module, name)
    again = learn_subwords(open_corpus([tmp_path / "text.txt"]), 0.8, 3, 30)
    assert again.characters == first.characters
    assert np.array_equal(match_tokenizer(corpus, again)[0].ids, ids)
    with pytest.raises(NameError):
        learn_subwords(corpus, 0.8, 3, 31)


def test_subwords_are_learnt_from_a_bounded_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus([dialogues_for(tmp_path, "早上好呀", "你在吗")])
    read = []

    def noting(lines: Any, *rest: Any) -> Tokenizer:
        read.append(len("\n".join(lines)))
        return learn(lines, *rest)

    monkeypatch.setattr(dialogues_module, "LEARNT_FROM", 200)
    monkeypatch.setattr(dialogues_module, "learn", noting)
    learn_subwords(corpus, 0.8, 3, 30)
    assert 100 < read[0] <= 200
