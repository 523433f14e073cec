"""Replies that answer: of several that were drawn, the one that the talk explains best.

What is likely whatever was said, such as "I don't know", is likely here too, and says nothing. So
its likelihood without the talk is counted against a reply, after "A Diversity-Promoting Objective
Function for Neural Conversation Models" (Li et al., 2016, arXiv:1510.03055), MMI-antiLM.
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Reply, generate_rows
from smallgpt.model.gpt import GPT, KeyValueCache
from smallgpt.model.repetition import Decode, as_characters
from smallgpt.model.scoring import log_probabilities
from smallgpt.tokenizer.characters import SEP


def generate_best(
    model: GPT,
    context: Sequence[int],
    sampling: SamplingConfig,
    stop: Collection[int],
    banned: Collection[int],
    generator: torch.Generator,
    cache: KeyValueCache | None = None,
    decode: Decode = as_characters,
) -> Iterator[int]:
    """The ids of the best of `best_of` replies, all drawn before the first comes.

    Arguments as of `generate`; of the cache, which reads the context only, the same holds.
    """
    replies = [Reply(_generator_from(generator)) for _ in range(sampling.best_of)]
    for _ in generate_rows(model, context, sampling, stop, banned, replies, cache, decode):
        pass
    yield from best(model, replies, sampling.mmi_weight)


def _generator_from(generator: torch.Generator) -> torch.Generator:
    """A new one, so that what a reply draws does not depend on how many are drawn beside it."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))


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
        (reply.log_probability - mmi_weight * without) / len(reply.ids)
        for reply, without in zip(distinct, without_talk, strict=True)
    ]
    return distinct[scores.index(max(scores))].ids
