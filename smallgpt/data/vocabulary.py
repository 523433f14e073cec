"""A corpus in the vocabulary of a model that was trained on another text."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.data.dialogues import Corpus
from smallgpt.pieces import Pieces
from smallgpt.tokenizer import PAD, Tokenizer


def in_ids_of(corpus: Corpus, tokenizer: Tokenizer) -> tuple[Corpus, npt.NDArray[Any] | None]:
    """The corpus, and for each of its ids that of `tokenizer` (None where all agree).

    Where the model reads pieces of words, the corpus is encoded anew, in memory: such models are
    fine-tuned on texts that fit there.
    """
    if isinstance(tokenizer, Pieces):
        return _encoded(corpus, tokenizer), None
    return corpus, tokenizer.ids_from(corpus.tokenizer)


def _encoded(corpus: Corpus, tokenizer: Pieces) -> Corpus:
    ids, ends, end = [], [], 0
    for number in range(len(corpus)):
        text = corpus.tokenizer.decode(corpus.dialogue(number))
        of_dialogue = np.array([*tokenizer.encode(text), PAD], np.uint32)
        end += len(of_dialogue)
        ids.append(of_dialogue)
        ends.append(end)
    return dataclasses.replace(
        corpus,
        ids=np.concatenate(ids),
        ends=np.array(ends, np.int64),
        tokenizer=tokenizer,
        rare_from=len(tokenizer),  # nothing is shown as <unk>: pieces stand for what is rare
    )
