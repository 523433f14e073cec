"""Generation with a key-value cache: replies side by side. Knows ids, not text."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from smallgpt.config import SamplingConfig
from smallgpt.model.cache import KeyValueCache, Reading
from smallgpt.model.gpt import GPT
from smallgpt.model.repetition import Decode, as_characters, draw_unrepeated

CHUNK = 64
"""Ids of contexts that are read in a step, beside replies that wait for their next id."""


@dataclass(eq=False)
class Request:
    """What to reply to, and how. A reply ends before an id in `stop`, after `max_new_tokens` ids,
    or where the model's context is full."""

    context: Sequence[int]
    """Ids, 1 to block_size - 1 of them."""
    sampling: SamplingConfig
    generators: Sequence[torch.Generator]
    """One for each reply wanted, on the CPU; the same state gives the same reply, whatever is drawn
    beside it."""
    stop: Collection[int] = ()
    """Never the first id of a reply: there is always something to say."""
    banned: Collection[int] = ()
    """Ids never drawn."""
    decode: Decode = as_characters
    """The text of ids, in whose characters repetition is counted."""
    log_probabilities: bool = False
    """Whether `Reply.log_probabilities` are wanted."""
    alternatives: int = 0
    """For how many of the likeliest ids `Reply.alternatives` are wanted."""


@dataclass(eq=False)
class Reply:
    """A reply that is being drawn, or was."""

    request: Request
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """Of these ids, in nats, at temperature 1 and with nothing left out."""
    alternatives: list[dict[int, float]] = field(default_factory=list)
    """Those of the likeliest ids at the same places, most likely first."""
    cached: int = 0
    """Ids of the context that the cache had read before."""
    ended: Literal["", "stop", "length"] = ""
    """Why it did: an id in `stop` was drawn (or there is nothing that may be said), or there is no
    room for another."""


class Batch:
    """Replies to several requests, which join when rows are free and leave when they want to.

    A reply is the same, to the id, alone and in company. In C that holds in every precision. With
    torch's operators it holds in float32; in 16 and 8 bits products of several rows may round
    otherwise than those of one, and then a reply can take another turn where two ids are about as
    likely. Not for several threads at a time.

    Args:
        model: in evaluation mode.
        cache: of this model. Each reply has one of its rows. What these have read stays when they
            are free, and is not read again by a request whose context begins so. Nobody else may
            use it while there are replies.
        chunk: ids of contexts read in a step, in all.
    """

    def __init__(self, model: GPT, cache: KeyValueCache, chunk: int = CHUNK) -> None:
        self.model, self.cache, self.chunk = model, cache, chunk
        self._replies: dict[int, Reply] = {}  # by row
        self._unread: dict[int, Sequence[int]] = {}  # by row; of several to a request by its first
        self._forbidden: dict[Request, tuple[Tensor, Tensor]] = {}
        self._free = list(range(len(cache.ids)))  # the one that has been free for longest first

    @property
    def free(self) -> int:
        """The number of rows without a reply."""
        return len(self._free)

    @property
    def replying(self) -> bool:
        """Whether there are replies that have not ended."""
        return bool(self._replies)

    def has(self, request: Request) -> bool:
        """Whether there are replies to a request that have not ended."""
        return request in self._forbidden

    def join(self, request: Request) -> list[Reply]:
        """The replies to come, one for each generator; as many rows must be free.

        The context is read once, behind what a free row has read of it.
        """
        if len(request.generators) > self.free:
            raise ValueError("a reply needs a free row")
        if not 0 < len(request.context) < self.model.config.block_size:
            raise ValueError("a context has 1 to block_size - 1 ids")
        context, cache = request.context, self.cache
        first = self._take_row(context)
        # The last id is read in any case: the logits behind it are needed.
        cached = cache.keep_prefix(first, context[:-1])
        replies = [Reply(request, generator, cached=cached) for generator in request.generators]
        rows = [first, *(self._free.pop(0) for _ in replies[1:])]
        cache.reserve(len(context) + self._most(request))
        self._unread[first] = context[cached:]
        self._replies |= zip(rows, replies, strict=True)
        never = torch.zeros(self.model.config.vocab_size, dtype=torch.bool)
        never[list(request.banned)] = True
        not_first = never.clone()
        not_first[list(request.stop)] = True
        self._forbidden[request] = never, not_first
        return replies

    def _take_row(self, context: Sequence[int]) -> int:
        """A row that is free no longer, and has read as much of a context as any row.

        That of a talk which goes on is taken. Where most of what a row has read would be lost,
        only the beginning is copied from it, to the row that has been free for longest.
        """
        cache = self.cache
        common = [cache.common_prefix(row, context) for row in range(len(cache.ids))]
        best = max(range(len(common)), key=lambda row: (common[row], row in self._free))
        if best in self._free and 2 * common[best] > len(cache.ids[best]):
            self._free.remove(best)
            return best
        row = self._free.pop(0)
        if common[best] > common[row]:
            cache.copy(row, cache, best, common[best])
        return row

    def leave(self, request: Request, only: Reply | None = None) -> None:
        """End what has not ended of the replies to a request, or one that has begun, and free the
        rows."""
        for row in self._rows_of(request):
            if only in (None, self._replies[row]):
                self._release(row)

    def step(self) -> list[tuple[Reply, int | None]]:
        """One forward pass for all; the replies that got their next id, or None at a stop.

        `Reply.ended` says why one ended; its row is free then.
        """
        new = self._next()
        if not new:
            return []
        drawn = list[tuple[Reply, int | None]]()
        logits_BV = read(self.model, self.cache, list(new), list(new.values()))
        for (row, ids), logits_V in zip(new.items(), logits_BV, strict=True):
            unread = self._unread.pop(row)[len(ids) :]
            if unread:
                self._unread[row] = unread
                continue
            rows = [row]
            if not self._replies[row].ids:  # all replies to its request begin
                rows = self._rows_of(self._replies[row].request)
            for other in rows:
                if other != row:
                    self.cache.copy(other, self.cache, row, len(self.cache.ids[row]))
            drawn += [(self._replies[other], self._draw(other, logits_V)) for other in rows]
        return drawn

    def _next(self) -> dict[int, Sequence[int]]:
        """What is read in the next step, by row: the last id of each reply; and of contexts
        `chunk` ids in all, those with fewest left first, and no more of any than its share."""
        new = {row: ids for row, ids in self._unread.items() if self._replies[row].ids}
        contexts = sorted(self._unread.keys() - new.keys(), key=lambda row: len(self._unread[row]))
        left = self.chunk
        for number, row in enumerate(contexts):
            share = -(-left // (len(contexts) - number))
            if ids := self._unread[row][:share]:
                new[row] = ids
                left -= len(ids)
        return new

    def _draw(self, row: int, logits_V: Tensor) -> int | None:
        """Draw the row's next id, and see whether its reply ends."""
        reply = self._replies[row]
        request = reply.request
        never, not_first = self._forbidden[request]
        forbidden = never if reply.ids else not_first
        token = None
        if reply.ids or not forbidden.all():
            allowed_V = logits_V.masked_fill(forbidden, float("-inf"))
            token = draw_unrepeated(
                allowed_V, reply.ids, request.sampling, reply.generator, request.decode
            )
        if token is None or token in request.stop:
            reply.ended, token = "stop", None
        else:
            reply.ids.append(token)
            self._unread[row] = [token]
            if request.log_probabilities:
                log_p_V = logits_V.log_softmax(0)
                reply.log_probabilities.append(float(log_p_V[token]))
                likeliest = log_p_V.topk(min(request.alternatives, len(log_p_V)))
                pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
                reply.alternatives.append(dict(pairs))
            if len(reply.ids) == self._most(request):
                reply.ended = "length"
        if reply.ended:
            self._release(row)
        return token

    def _most(self, request: Request) -> int:
        """Ids of a reply."""
        room = self.model.config.block_size - len(request.context)
        return min(request.sampling.max_new_tokens, room)

    def _rows_of(self, request: Request) -> list[int]:
        return [row for row, reply in self._replies.items() if reply.request is request]

    def _release(self, row: int) -> None:
        request = self._replies.pop(row).request
        self._unread.pop(row, None)
        self._free.append(row)
        if not self._rows_of(request):
            del self._forbidden[request]


def generate(model: GPT, request: Request, cache: KeyValueCache | None = None) -> Iterator[int]:
    """The ids of the only reply to a request, as they are drawn.

    Args:
        model: in evaluation mode.
        cache: of this model, with one row, which will have read context and reply. It must not be
            used elsewhere until the iterator has ended.
    """
    cache = cache or KeyValueCache(model.config, model.wte.weight)
    batch = Batch(model, cache, chunk=model.config.block_size)
    batch.join(request)
    while batch.replying:
        for _, token in batch.step():
            if token is not None:
                yield token


@torch.inference_mode()
def read(
    model: GPT, cache: KeyValueCache, rows: Sequence[int], new: Sequence[Sequence[int]]
) -> Tensor:
    """Append to rows of a cache their new ids, at least one each: the logits behind the last id of
    each, (len(rows), V), float32, on the CPU.

    The one place where generation meets the network.
    """
    reading = Reading(cache, rows, new)
    with without_cudnn_attention():
        logits = model(reading.ids_N1, reading=reading, places_P=reading.ends())
    return logits.view(len(rows), -1).float().cpu()


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
