"""Replies that do not say the same again and again."""

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig
from smallgpt.model.sampling import draw

LONGEST_SPAN = 16
"""Characters of the longest span that `max_repeats` looks for."""

Decode = Callable[[Sequence[int]], str]


def as_characters(ids: Sequence[int]) -> str:
    """A text in which each id is a character of its own, where nobody knows the true one."""
    return "".join(map(chr, ids))


def draw_unrepeated(
    logits_V: Tensor,
    reply: Sequence[int],
    sampling: SamplingConfig,
    generator: torch.Generator,
    decode: Decode,
) -> int | None:
    """`draw`, but never an id with which the reply breaks `no_repeat_ngram` or `max_repeats`.

    Where one was drawn, another is drawn from what is left; None where nothing is. So a reply that
    does not repeat itself is the same with the rules and without.

    Args:
        decode: the text of ids.
    """
    token = draw(logits_V, reply, sampling, generator)
    if not (sampling.no_repeat_ngram or sampling.max_repeats):
        return token
    said = len(whole_characters(decode(reply)))
    while repeats(whole_characters(decode([*reply, token])), said, sampling):
        logits_V = logits_V.index_fill(0, torch.tensor([token]), -inf)
        if logits_V.max() == -inf:
            return None
        token = draw(logits_V, reply, sampling, generator)
    return token


def whole_characters(text: str) -> str:
    """Without the last character where not all of its bytes have come yet."""
    return text.rstrip("\ufffd")


def repeats(text: str, start: int, sampling: SamplingConfig) -> bool:
    """Whether one of the characters from `start` on ends what a reply must not contain."""
    n, most = sampling.no_repeat_ngram, sampling.max_repeats
    for end in range(start + 1, len(text) + 1):
        if n and n < end and text.find(text[end - n : end], 0, end - 1) >= 0:
            return True
        longest = min(LONGEST_SPAN, end // (most + 1)) if most else 0
        for span in range(1, longest + 1):
            if text.endswith(text[end - span : end] * (most + 1), 0, end):
                return True
    return False
