"""How the next id is drawn from the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig

COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures that float32 can divide by. Those beyond them draw the same."""


def draw(
    logits_V: Tensor, reply: Sequence[int], sampling: SamplingConfig, generator: torch.Generator
) -> int:
    """Draw one id from logits of shape (V,) on the CPU.

    In this order: repetition penalty over the ids of the reply (CTRL, arXiv:1909.05858), frequency
    and presence penalty (as in OpenAI's API), temperature, the `top_k` likeliest, the nucleus of
    probability `top_p` (arXiv:1904.09751).
    """
    logits_V = logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))
    penalty, each, once = (
        sampling.repetition_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if reply and (penalty, each, once) != (1, 0, 0):
        seen, count = torch.tensor(reply).unique(return_counts=True)
        score = logits_V[seen]
        score = torch.where(score > 0, score / penalty, score * penalty)
        logits_V = logits_V.index_copy(0, seen, score - each * count - once)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    ids = None
    if sampling.top_k:
        logits_V, ids = logits_V.topk(min(sampling.top_k, len(logits_V)))
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    temperature = min(max(sampling.temperature, COLDEST), HOTTEST)
    probabilities = torch.softmax((logits_V - logits_V.max()) / temperature, dim=0)
    place = draw_from_nucleus(logits_V, probabilities, sampling.top_p, generator)
    return place if ids is None else int(ids[place])


def draw_from_nucleus(
    logits: Tensor, probabilities: Tensor, top_p: float, generator: torch.Generator
) -> int:
    """Draw a place among the fewest likeliest that reach the probability `top_p` together.

    Sorting takes longer than all the rest. So one of all is drawn, and kept if those likelier than
    it do not reach `top_p`. Otherwise the nucleus is among those, and one of them is drawn.

    Raises:
        ValueError: the probabilities are no numbers, as the weights or logits are not finite.
    """
    while True:
        # By one random number: torch.multinomial takes one for each place, and most of the time.
        reached = probabilities.cumsum(0, dtype=torch.float64)
        if not reached[-1] > 0:
            raise ValueError("nothing can be drawn: the model's logits are not finite")
        drawn = torch.rand((), dtype=torch.float64, generator=generator) * reached[-1]
        place = int(torch.searchsorted(reached, drawn, right=True))
        if top_p == 1:
            return place
        likelier = logits > logits[place]
        likelier[:place] |= logits[:place] == logits[place]  # of equals the first
        theirs = probabilities * likelier
        if theirs.sum().item() < top_p:  # in float32 a tiny top_p would be 0
            return place
        probabilities = theirs
