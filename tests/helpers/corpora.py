"""Small corpora of ids, for tests of properties."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from smallgpt.data.corpus import Corpus
from smallgpt.tokenizer.bpe import learn
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, Tokenizer
from smallgpt.tokenizer.subwords import SubwordTokenizer


def corpus_of(dialogues: list[list[int]], rare_from: int = 40) -> Corpus:
    """A corpus of the given ids, to which the closing `<pad>` is added."""
    closed = [[*ids, PAD] for ids in dialogues]
    return Corpus(
        folder=Path(),
        ids=np.array([i for ids in closed for i in ids], np.uint16),
        ends=np.cumsum([len(ids) for ids in closed], dtype=np.int64),
        tokenizer=Tokenizer([chr(0x4E00 + i) for i in range(50)]),
        rare_from=rare_from,
        characters=sum(map(len, dialogues)),
        conversations=len(dialogues),
        fingerprint="test",
    )


IDS = st.integers(FIRST_CHARACTER, 52) | st.just(SEP)
CORPORA = st.lists(st.lists(IDS, min_size=1, max_size=60), min_size=1, max_size=15).map(corpus_of)
BLOCK_SIZES = st.integers(8, 24)


def everything(corpus: Corpus) -> npt.NDArray[np.int64]:
    return np.arange(len(corpus))


def subwords(lines: Sequence[str], characters: Sequence[str], size: int) -> SubwordTokenizer:
    """A vocabulary of pieces, learnt from lines; it knows `characters` and those of the lines."""
    return learn(lines, list(dict.fromkeys([*characters, *"".join(lines)])), size)
