"""The replies to one request, brought from the engine's thread to the event loop, as text."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from smallgpt.chat.chatbot import Prompt
from smallgpt.model.generate import Reply, Request
from smallgpt.server.engine import (
    Drawn,
    Engine,
    Generation,
    Outbox,
    QueueFullError,
    UnavailableError,
)
from smallgpt.server.errors import ApiError, queue_full
from smallgpt.server.metrics import Metrics
from smallgpt.server.protocol import LeftOut, PromptTokensDetails, Usage
from smallgpt.server.reply_text import ReplyText, Token
from smallgpt.tokenizer.characters import Tokenizer

SILENCE = 15.0
"""Seconds after which a client that waits is told so, or proxies would end its connection."""
FinishReason = Literal["stop", "length"]
_BROKEN_OFF = {
    "time_limit": "The request took longer than this server allows.",
    "shutdown": "The server is shutting down.",
    "failed": "The server failed; its log says why.",
}


@dataclass(frozen=True)
class Piece:
    """What a reply has gained, and why it ended, if it did."""

    index: int
    tokens: list[Token]
    finish_reason: FinishReason | None = None


class Replies:
    """Replies to one or several contexts, numbered through; `close` ends what has not ended."""

    def __init__(self, engine: Engine, metrics: Metrics, tokenizer: Tokenizer, client: str) -> None:
        self._engine, self._metrics, self._tokenizer = engine, metrics, tokenizer
        self._client = client
        self._arrived = asyncio.Queue[tuple[int, Sequence[Drawn]]]()
        self._generations = list[tuple[Generation, Prompt, int]]()
        self._texts = list[ReplyText]()
        self._open = set[int]()
        self._begun, self._first, self._characters = time.monotonic(), 0.0, 0

    def add(
        self,
        request: Request,
        prompt: Prompt,
        stops: Sequence[str],
        choose: Callable[[Sequence[Reply]], Sequence[int]] | None = None,
    ) -> None:
        """Submit a request; `choose` as of `Generation`.

        Raises:
            ApiError: the queue is full, or the server is loading or shutting down.
        """
        begin, number = len(self._texts), len(self._generations)
        receive = partial(self._receive, number)
        generation = Generation(request, receive, self._client, choose)
        try:
            self._engine.submit(generation)
        except QueueFullError as error:
            raise queue_full(error.seconds) from None
        except UnavailableError as error:
            raise unavailable(error.state) from None
        self._generations.append((generation, prompt, begin))
        count = 1 if choose else len(request.generators)
        self._texts += [ReplyText(self._tokenizer, stops) for _ in range(count)]
        self._open.update(range(begin, begin + count))
        self._metrics.prompt_characters.inc(len(self._tokenizer.decode(prompt.ids)))

    def _receive(self, number: int, drawn: Sequence[Drawn]) -> None:
        self._arrived.put_nowait((number, drawn))

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What has come since the last time; an empty list after `SILENCE`.

        Raises:
            ApiError: the replies were broken off.
        """
        while self._open:
            try:
                async with asyncio.timeout(SILENCE):
                    arrived = [await self._arrived.get()]
            except TimeoutError:
                yield []
                continue
            while not self._arrived.empty():
                arrived.append(self._arrived.get_nowait())
            pieces = [
                piece
                for number, several in arrived
                for drawn in several
                if (piece := self._piece(number, drawn))
            ]
            if pieces:
                self._count(pieces)
                yield pieces

    def _piece(self, number: int, drawn: Drawn) -> Piece | None:
        generation, _, begin = self._generations[number]
        if drawn.number is None:
            raise broken_off(drawn.ended)
        index = begin + drawn.number
        if index not in self._open:
            return None  # drawn before the engine heard of the stop string
        text = self._texts[index]
        tokens = list[Token]()
        if drawn.token is not None:
            tokens = text.add(drawn.token, drawn.log_probability, drawn.alternatives)
        finish: FinishReason | None = None
        if text.stopped:
            finish = "stop"
            if not drawn.ended and generation.choose is None:
                self._engine.cancel(generation, drawn.number)
        elif drawn.ended:
            assert drawn.ended in ("stop", "length")
            finish = drawn.ended
            tokens += text.end()
        if finish:
            self._open.remove(index)
        return Piece(index, tokens, finish) if tokens or finish else None  # else held back

    def _count(self, pieces: Sequence[Piece]) -> None:
        characters = sum(len(token.text) for piece in pieces for token in piece.tokens)
        self._metrics.generated_characters.inc(characters)
        now = time.monotonic()
        if characters and not self._first:
            self._first = now
            self._metrics.time_to_first_character.observe(now - self._begun)
            return
        self._characters += characters
        if not self._open and self._characters and now > self._first:  # clocks can be coarse
            self._metrics.characters_per_second.observe(self._characters / (now - self._first))

    def usage(self) -> Usage:
        """By now."""
        read = sum(len(prompt.ids) for _, prompt, _ in self._generations)
        drawn = sum(text.count for text in self._texts)
        cached = sum(generation.cached for generation, *_ in self._generations)
        return Usage(
            prompt_tokens=read,
            completion_tokens=drawn,
            total_tokens=read + drawn,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            left_out=LeftOut(
                messages=sum(prompt.messages_left_out for _, prompt, _ in self._generations),
                characters=sum(prompt.characters_left_out for _, prompt, _ in self._generations),
            ),
        )

    @property
    def count(self) -> int:
        """How many there will be."""
        return len(self._texts)

    def close(self) -> None:
        """Free the slots of what has not ended."""
        for generation, *_ in self._generations:
            self._engine.cancel(generation)


def broken_off(reason: str) -> ApiError:
    """What was begun cannot be finished, as of `Ending`."""
    # Not 503, for which a proxy would ask another replica, and take as long again.
    return ApiError(504 if reason == "time_limit" else 503, _BROKEN_OFF[reason], code=reason)


def unavailable(state: str) -> ApiError:
    """The engine is loading, or will take nothing in any more."""
    message = "The model is being loaded." if state == "loading" else "The server is shutting down."
    return ApiError(503, message, code=state, headers={"Retry-After": "5"})


def deliver_in(loop: asyncio.AbstractEventLoop) -> Callable[[Outbox], None]:
    """What hands out an engine's results in the thread of the event loop."""

    def deliver(outbox: Outbox) -> None:
        for generation, drawn in outbox:
            generation.receive(drawn)

    def hand_out(outbox: Outbox) -> None:
        if outbox:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(deliver, outbox)

    return hand_out
