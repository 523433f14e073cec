"""Sampling with a key-value cache. Knows ids, not text."""

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
    cache: KeyValueCache | None = None,
) -> Iterator[int]:
    """Continue `context`, one id at a time, until an id in `stop`, which is not yielded.

    Ends as well after `max_new_tokens` ids or where the model's context is full. The first id is
    never one of `stop`: there is always something to yield.

    Args:
        model: in evaluation mode.
        context: ids, 1 to block_size - 1 of them.
        banned: ids never drawn.
        generator: on the CPU; the same state gives the same ids.
        cache: of this model; as far as it has read the beginning of `context`, that is not read
            again. It must not be used elsewhere until the iterator has ended.
    """
    cache = cache or KeyValueCache(model.config, model.wte.weight)
    never = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    never[list(banned)] = True
    not_first = never.clone()
    not_first[list(stop)] = True
    if not_first.all():
        return  # a vocabulary with nothing to say
    reply: list[int] = []
    new = list(context[cache.keep_prefix(context[:-1]) :])
    room = model.config.block_size - len(context)
    for _ in range(min(sampling.max_new_tokens, room)):
        new_1T = torch.tensor([new], device=cache.ids_BS.device)
        logits_V = model(new_1T, cache=cache)[0, -1].cpu().double()
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
    penalty = sampling.repetition_penalty
    if penalty != 1.0 and reply:
        seen = torch.tensor(reply)
        score = logits_V[seen]
        score = torch.where(score > 0, score / penalty, score * penalty)
        logits_V = logits_V.index_copy(0, seen, score)
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
