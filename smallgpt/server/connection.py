"""What happens on a connection: streams of events, and clients that go away or are slow."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from smallgpt.server.errors import ApiError

Result = TypeVar("Result")
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx: at once


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def until_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns; it is cancelled if the client goes away first.

    Raises:
        ClientGoneError: it did.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, and `[DONE]` behind them; an error in mid-stream is an event too.

    Args:
        events: several at a time; none for a sign of life.
        close: called at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[list[dict[str, Any]]], close: Callable[[], object]
    ) -> None:
        self.status_code, self.background = 200, None
        self._events, self._close = events, close
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await until_disconnected(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        status, headers = self.status_code, self.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})
        try:
            async for events in self._events:
                data = b"".join(map(_event, events)) or b": waiting\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
            end = b"data: [DONE]\n\n"
        except ApiError as error:
            end = _event(error.body)
        await send({"type": "http.response.body", "body": end, "more_body": False})


def _event(data: Any) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "replace")
