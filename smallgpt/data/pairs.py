"""A sample of what was said in dialogues, and what was replied."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smallgpt.data.corpus import Corpus, IntArray


@dataclass(frozen=True)
class Pair:
    """messages: what was said before, at least one; reply: the utterance that followed."""

    messages: list[str]
    reply: str


def sample_pairs(
    corpus: Corpus, dialogues: IntArray, most: int, seed: int, fits: Callable[[str], bool]
) -> list[Pair]:
    """One pair of each of some dialogues, in an order drawn from `seed`.

    Which utterance of a dialogue is the reply is drawn too; never the first. A smaller sample is
    the beginning of a larger one.

    Args:
        dialogues: numbers of the dialogues to sample from.
        fits: whether a reply is taken; a dialogue whose drawn reply is not, is left out.
    """
    pairs: list[Pair] = []
    random = np.random.default_rng((seed, 6))
    for number in random.permutation(dialogues):
        if len(pairs) == most:
            break
        utterances = corpus.tokenizer.decode(corpus.dialogue(int(number))).split("\n")
        place = random.random()
        if len(utterances) > 1:
            at = 1 + int(place * (len(utterances) - 1))
            if fits(utterances[at]):
                pairs.append(Pair(utterances[:at], utterances[at]))
    return pairs
