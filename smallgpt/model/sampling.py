"""How the next id is drawn from the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig

FEW = 512
"""Ids among which the nucleus is looked for first."""


def draw(
    logits_V: Tensor, reply: Sequence[int], sampling: SamplingConfig, generator: torch.Generator
) -> int:
    """Draw one id from logits of shape (V,), float64 so that no temperature is too small.

    In this order: repetition penalty over the ids of the reply (CTRL, arXiv:1909.05858),
    temperature, the `top_k` likeliest, the nucleus of probability `top_p` (arXiv:1904.09751).
    """
    penalty = sampling.repetition_penalty
    if penalty != 1.0 and reply:
        seen = torch.tensor(reply)
        score = logits_V[seen]
        score = torch.where(score > 0, score / penalty, score * penalty)
        logits_V = logits_V.index_copy(0, seen, score)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    ids = torch.arange(len(logits_V))
    if sampling.top_k:
        logits_V, ids = logits_V.topk(min(sampling.top_k, len(ids)))
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    probabilities = torch.softmax((logits_V - logits_V.max()) / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        kept = nucleus(logits_V, probabilities, sampling.top_p)
        probabilities, ids = probabilities[kept], ids[kept]
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def nucleus(logits: Tensor, probabilities: Tensor, top_p: float) -> Tensor:
    """Places of the fewest likeliest that reach the probability `top_p` together, likeliest first.

    Sorting all takes longer than the rest of `draw`, and most often a few are enough.
    """
    for count in (min(FEW, len(logits)), len(logits)):
        places = logits.topk(count).indices
        likeliest = probabilities[places]
        inside = int((likeliest.cumsum(0) - likeliest < top_p).sum())
        if inside < count:
            break
    return places[:inside]
