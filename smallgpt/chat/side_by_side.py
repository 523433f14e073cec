"""Many talks with a model side by side: each as it goes alone, all in a fraction of the time."""

from collections.abc import Generator, Iterable, Iterator, Sequence

import torch

from smallgpt.chat.best_of import best
from smallgpt.chat.chatbot import Chatbot, text_chunks
from smallgpt.config import ModelConfig
from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Batch, Reply, Request

ROWS = 32
"""Replies drawn side by side, at most: more are hardly quicker (docs/log.md)."""
BYTES = 1 << 28
"""Memory for their keys and values, where each has read half a context."""
CHUNK = 256
"""Ids of messages read in a step: nobody waits for the next character."""

Talk = Generator[Sequence[str], str, None]
"""Yields the messages so far, the last of which is replied to, and is sent the reply."""


def rows_for(config: ModelConfig) -> int:
    """How many replies a model of this shape draws side by side."""
    keys_and_values = config.n_layer * config.n_embd * config.block_size  # of half a context
    return max(1, min(ROWS, BYTES // (4 * keys_and_values)))


def converse(bot: Chatbot, talks: Iterable[tuple[Talk, int]]) -> Iterator[int]:
    """Reply in talks until all have ended, by the chatbot's own sampling; yields after each step
    how many replies it brought to their end.

    A talk is begun when there is room for it, and keeps its place, where what was said before need
    not be read again.

    Args:
        talks: each with a seed: every reply in it is drawn with a generator that begins there, and
            so is that of `Chatbot.respond`.
    """
    bot.await_weights()
    model, best_of = bot.model, bot.sampling.best_of
    cache = KeyValueCache(model.config, model.wte.weight, max(rows_for(model.config), best_of))
    batch, talks = Batch(model, cache, CHUNK), iter(talks)
    waiting = dict[Request, tuple[Talk, int, list[Reply]]]()

    def go_on(talk: Talk, seed: int, said: str | None = None) -> None:
        try:
            messages = talk.send(said) if said is not None else next(talk)
        except StopIteration:
            return
        request, _ = bot.request(messages, torch.Generator().manual_seed(seed))
        waiting[request] = talk, seed, batch.join(request)

    while True:
        while (len(waiting) + 1) * best_of <= len(cache.ids) and (begun := next(talks, None)):
            go_on(*begun)
        if not batch.replying:
            return
        ended = 0
        for request in dict.fromkeys(reply.request for reply, _ in batch.step() if reply.ended):
            talk, seed, replies = waiting[request]
            if all(reply.ended for reply in replies):
                del waiting[request]
                ids = best(model, replies, bot.sampling.mmi_weight)
                go_on(talk, seed, "".join(text_chunks(ids, bot.tokenizer)))
                ended += 1
        yield ended
