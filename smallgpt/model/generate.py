"""Sampling with a key-value cache. Knows ids, not text."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from smallgpt.config import SamplingConfig
from smallgpt.model.gpt import GPT, KeyValueCache
from smallgpt.model.repetition import Decode, as_characters, draw_unrepeated


@dataclass
class Reply:
    """A reply that is being drawn, with the random numbers that only it takes."""

    generator: torch.Generator
    """On the CPU; the same state gives the same ids, whatever is drawn beside them."""
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    """Of these ids, in nats, at temperature 1 and with nothing left out. It stays 0 where a reply
    is drawn alone: there is nothing to compare it with."""


def generate(
    model: GPT,
    context: Sequence[int],
    sampling: SamplingConfig,
    stop: Collection[int],
    banned: Collection[int],
    generator: torch.Generator,
    cache: KeyValueCache | None = None,
    decode: Decode = as_characters,
) -> Iterator[int]:
    """Continue `context`, one id at a time, until an id in `stop`, which is not yielded.

    Arguments and the rest as of `generate_rows`; the cache has then read the reply as well.
    """
    reply = Reply(generator)
    for _ in generate_rows(model, context, sampling, stop, banned, [reply], cache, decode):
        yield reply.ids[-1]


@torch.inference_mode()
def generate_rows(
    model: GPT,
    context: Sequence[int],
    sampling: SamplingConfig,
    stop: Collection[int],
    banned: Collection[int],
    replies: Sequence[Reply],
    cache: KeyValueCache | None = None,
    decode: Decode = as_characters,
) -> Iterator[None]:
    """Draw replies to `context` side by side: one more id of each at a time, until an id in `stop`.

    A reply ends as well after `max_new_tokens` ids, where the model's context is full, or where any
    id would repeat what was said. Its first id is never one of `stop`: there is always something to
    say. Each forward pass is one for all that have not ended; the context is read once.

    Args:
        model: in evaluation mode.
        context: ids, 1 to block_size - 1 of them.
        banned: ids never drawn.
        replies: at least one, with no ids yet; they are filled.
        cache: of this model, with one row; as far as it has read the beginning of `context`, that
            is not read again. It must not be used elsewhere until the iterator has ended.
        decode: the text of ids, in whose characters repetition is counted.
    """
    cache = cache or KeyValueCache(model.config, model.wte.weight)
    never = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    never[list(banned)] = True
    not_first = never.clone()
    not_first[list(stop)] = True
    if not_first.all():
        return  # a vocabulary with nothing to say
    drawn, several = list(replies), len(replies) > 1
    new = [context[cache.keep_prefix(context[:-1]) :]]
    most = min(sampling.max_new_tokens, model.config.block_size - len(context))
    for step in range(most):
        new_BT = torch.tensor(new, device=cache.ids_BS.device)
        with without_cudnn_attention():
            logits_BV = model(new_BT, cache=cache)[:, -1].cpu().double()
        if step == 0 and several:
            cache = cache.repeated(len(drawn), len(context) + most)
            logits_BV = logits_BV.expand(len(drawn), -1)
        allowed_BV = logits_BV.masked_fill(never if step else not_first, float("-inf"))
        ids = [
            draw_unrepeated(logits_V, reply.ids, sampling, reply.generator, decode)
            for logits_V, reply in zip(allowed_BV, drawn, strict=True)
        ]
        going = [row for row, token in enumerate(ids) if token is not None and token not in stop]
        if not going:
            return
        if len(going) < len(drawn):
            cache.keep_rows(going)
            drawn, logits_BV = [drawn[row] for row in going], logits_BV[going]
        new = [[token] for token in ids if token is not None and token not in stop]
        for reply, (token,) in zip(drawn, new, strict=True):
            reply.ids.append(token)
        if several:
            log_p_BV = logits_BV.log_softmax(1)
            for reply, log_p_1 in zip(drawn, log_p_BV.gather(1, torch.tensor(new)), strict=True):
                reply.log_probability += float(log_p_1)
        yield


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
