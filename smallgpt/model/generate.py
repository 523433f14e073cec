"""Sampling with a key-value cache. Knows ids, not text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig
from smallgpt.model.gpt import GPT, KeyValueCache


@torch.inference_mode()
def generate(
    model: GPT,
    context: Sequence[int],
    sampling: SamplingConfig,
    stop: Collection[int],
    banned: Collection[int],
    generator: torch.Generator,
) -> Iterator[int]:
    """Continue `context`, one id at a time, until an id in `stop`, which is not yielded.

    Ends as well after `max_new_tokens` ids or where the model's context is full. The first id is
    never one of `stop`: there is always something to yield.

    Args:
        model: in evaluation mode.
        context: ids, 1 to block_size - 1 of them.
        banned: ids never drawn.
        generator: on the CPU; the same state gives the same ids.
    """
    device = model.wte.weight.device
    # A CPU is quicker at attention in float32, in which it need not copy keys and values.
    dtype = torch.float32 if device.type == "cpu" else model.wte.weight.dtype
    cache = KeyValueCache(model.config, 1, device, dtype)
    never = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    never[list(banned)] = True
    not_first = never.clone()
    not_first[list(stop)] = True
    if not_first.all():
        return  # a vocabulary with nothing to say
    reply: list[int] = []
    positions_BT = torch.arange(model.config.block_size, device=device)[None]
    new = list(context)
    room = model.config.block_size - len(context)
    for _ in range(min(sampling.max_new_tokens, room)):
        here_BT = positions_BT[:, cache.length : cache.length + len(new)]
        logits_1TV = model(torch.tensor([new], device=device), here_BT, cache=cache)
        logits_V = logits_1TV[0, -1].cpu().double()
        logits_V = logits_V.masked_fill(never if reply else not_first, float("-inf"))
        token = draw(logits_V, reply, sampling, generator)
        if token in stop:
            return
        yield token
        reply.append(token)
        new = [token]


def draw(
    logits_V: Tensor, reply: Sequence[int], sampling: SamplingConfig, generator: torch.Generator
) -> int:
    """Draw one id from logits of shape (V,), float64 so that no temperature is too small.

    In this order: repetition penalty over the ids of the reply (CTRL, arXiv:1909.05858),
    temperature, the `top_k` likeliest, the nucleus of probability `top_p` (arXiv:1904.09751).
    """
    if sampling.repetition_penalty != 1.0 and reply:
        seen = torch.tensor(sorted(set(reply)))
        score = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V = logits_V.index_copy(
            0, seen, torch.where(score > 0, score / penalty, score * penalty)
        )
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    sorted_logits, ids = logits_V.sort(descending=True, stable=True)
    if sampling.top_k:
        sorted_logits, ids = sorted_logits[: sampling.top_k], ids[: sampling.top_k]
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    probabilities = torch.softmax((sorted_logits - sorted_logits[0]) / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
