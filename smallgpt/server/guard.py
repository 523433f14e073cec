"""What every request passes before it reaches the application."""

import asyncio
import hmac
import ipaddress
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallgpt.server.connection import ClientGoneError
from smallgpt.server.errors import ApiError
from smallgpt.server.service import Service

LARGEST_BODY = 1 << 20
"""Bytes."""
SECONDS_FOR_BODY = 30.0
SECONDS_TO_TAKE = 60.0
"""How long a client may leave what it was sent untouched."""
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_API = "/v1/"


class Guard:
    """Checks host, origin and key; limits what a client may send, and how slowly.

    Args:
        hosts: names by which the server may be called, besides localhost and IP addresses. A page
            elsewhere whose name is made to lead here (DNS rebinding) calls it by that name.
        origins: of pages elsewhere that may use the server.
    """

    def __init__(
        self, app: ASGIApp, service: Service, hosts: Collection[str], origins: Sequence[str]
    ) -> None:
        self._app, self._service = app, service
        self._hosts, self._origins = {host.lower() for host in hosts} | {"localhost"}, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._pass_on(scope, receive, answer)
        except ApiError as error:
            await error.response()(scope, receive, answer)
        except (ClientGoneError, asyncio.CancelledError):
            answer.status = 499  # nobody is there to be told, or takes it before the grace is over
        finally:
            if scope["path"].startswith(_API):
                path = getattr(scope.get("route"), "path", "other")
                self._service.metrics.requests.labels(path, answer.status or 499).inc()

    async def _pass_on(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        self._check(scope)
        body = await _read(receive)
        await self._app(scope, _replayed(body, receive), answer)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_allowed(host):
            message = f"The host {host[:100]!r} is not allowed here; start with --allowed-host."
            raise ApiError(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign and origin not in self._origins:
            message = f"Pages of {(origin or '')[:100]} may not use this; start with --cors-origin."
            raise ApiError(403, message, code="origin_not_allowed")
        key = self._service.key
        if key and scope["path"].startswith(_API):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.encode("latin-1"), key.encode())
            if not right or scheme.lower() != "bearer":
                message = 'The API key is missing or wrong: send "Authorization: Bearer KEY".'
                raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may believe the one, and take the end of the body for another's request.
            message = "Content-Length and Transfer-Encoding contradict each other; send one."
            raise ApiError(400, message, headers={"Connection": "close"})
        if int(headers.get("content-length", "0")) > LARGEST_BODY:
            raise _too_large()

    def _is_allowed(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") < 2:
            name = name.partition(":")[0]
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body += message.get("body", b"")
                if len(body) > LARGEST_BODY:
                    raise _too_large()
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        late = f"The body did not arrive within {SECONDS_FOR_BODY:.0f} seconds."
        raise ApiError(408, late) from None


def _too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {LARGEST_BODY:,} bytes.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body again, and then what comes behind it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


class _Answer:
    """Sends an answer, with the headers that keep a page safe, to a client that takes it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send, self._of_page = send, not scope["path"].startswith(_API)
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._of_page:
                headers.update(_PAGE_HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
        try:
            async with asyncio.timeout(SECONDS_TO_TAKE):
                await self._send(message)
        except TimeoutError:
            raise ClientGoneError from None
