"""Sampling with a key-value cache. Knows ids, not text."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig
from smallgpt.model.gpt import GPT, KeyValueCache

FEW = 512
"""Ids among which the nucleus is looked for first."""


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
        with without_cudnn_attention():
            logits_V = model(new_1T, cache=cache)[0, -1].cpu().double()
        logits_V = logits_V.masked_fill(never if reply else not_first, float("-inf"))
        token = draw(logits_V, reply, sampling, generator)
        if token in stop:
            return
        yield token
        reply.append(token)
        new = [token]


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep torch from cuDNN's attention, its first choice on an H100 or B200: cuDNN makes a plan
    for every number of keys, which takes longer than a character."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


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
