"""Replies that answer: of several that were drawn, the one that the talk explains best.

What is likely whatever was said, such as "I don't know", is likely here too, and says nothing. So
its likelihood without the talk is counted against a reply, after "A Diversity-Promoting Objective
Function for Neural Conversation Models" (Li et al., 2016, arXiv:1510.03055), MMI-antiLM.
"""

from collections.abc import Iterator, Sequence

import torch

from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Batch, Reply, Request
from smallgpt.model.gpt import GPT
from smallgpt.model.scoring import log_probabilities
from smallgpt.tokenizer.characters import SEP


def generate_best(
    model: GPT, request: Request, mmi_weight: float, cache: KeyValueCache | None = None
) -> Iterator[int]:
    """The ids of the best reply to a request, all of which are drawn before the first comes.

    Arguments as of `generate` and `best`; the cache will have read the context only.
    """
    side_by_side = KeyValueCache(model.config, model.wte.weight, len(request.generators))
    if cache is not None:
        read = cache.common_prefix(0, request.context)
        side_by_side.copy(0, cache, 0, read)
    batch = Batch(model, side_by_side, chunk=model.config.block_size)
    replies = batch.join(request)
    while batch.replying:
        batch.step()
    if cache is not None:
        cache.copy(0, side_by_side, 0, len(request.context))
    yield from best(model, replies, mmi_weight)


def generators_from(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """New ones, so that what a reply draws does not depend on how many are drawn beside it."""
    seeds = (int(torch.randint(2**63 - 1, (), generator=generator)) for _ in range(count))
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def best(model: GPT, replies: Sequence[Reply], mmi_weight: float) -> list[int]:
    """The reply with the highest log p(reply | talk) - mmi_weight * log p(reply), an id.

    The second term is that behind a lone `<sep>`, where nothing was said. An id: sums favour long
    replies, loops among them. Replies are drawn by the first term, so it needs no more weight than
    the second; less than 1 for this gives the commonest replies (docs/log.md).
    """
    distinct = list({tuple(reply.ids): reply for reply in replies}.values())
    if len(distinct) == 1:
        return distinct[0].ids
    without_talk = log_probabilities(model, [SEP], [reply.ids for reply in distinct]).tolist()
    scores = [
        (sum(reply.log_probabilities) - mmi_weight * without) / len(reply.ids)
        for reply, without in zip(distinct, without_talk, strict=True)
    ]
    return distinct[scores.index(max(scores))].ids
