"""From a service to a process that answers on a port, until it is told to end."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn

from smallgpt.server.app import application
from smallgpt.server.engine import State
from smallgpt.server.service import Service
from smallgpt.utils.errors import UserError, note

BACKLOG = 2048
SECONDS_WITHOUT_REQUEST = 30.0
"""How long a connection may be open on which no request comes, or comes in drips."""


@dataclass(frozen=True)
class Address:
    """host, port: to listen on, port 0 takes a free one; hosts, origins: as of `Guard`."""

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: Collection[str] = ()
    origins: Sequence[str] = ()


def serve(service: Service, address: Address, grace: float = 30.0, browser: bool = False) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what was begun.

    Args:
        grace: seconds for that; what takes longer is broken off.
        browser: open the page, where there is a screen.

    Raises:
        UserError: the address cannot be had, or the weights are damaged.
        BaseException: what the engine failed of.
    """
    listening = listen(address.host, address.port)
    port = listening.getsockname()[1]
    name = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{name}:{port}"

    def changed(state: State) -> None:
        if state == "ok":
            print(f"serving {service.name} on {url}", flush=True)
            if browser and _has_screen():
                # Some browsers let the caller wait: in a thread of its own, not the engine's.
                threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        else:
            server.end()

    service.on_state = changed
    app = application(service, {address.host, *address.hosts}, address.origins)
    server = Server(app, service, grace)
    with listening:
        server.run([listening])
    service.engine.join()
    if service.engine.error:
        raise service.engine.error


def listen(host: str, port: int) -> socket.socket:
    """Take an address.

    Raises:
        UserError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise UserError(
            f"{host}, port {port}: {reason}", "choose another with --host and --port"
        ) from None
    # Each connection inherits it. Without, a small packet waits for the client to confirm the one
    # before it, which clients do after 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _has_screen() -> bool:
    """Whether a browser would come up beside the terminal, not in it."""
    windows = sys.platform in ("win32", "darwin")
    return windows or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Server(uvicorn.Server):
    """Finishes what was begun before it closes its port: until then /health says so."""

    def __init__(self, app: object, service: Service, grace: float) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            # Whatever else is installed: this is what the tests test.
            loop="asyncio",
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="on",
            server_header=False,
        )
        super().__init__(config)
        self._service, self._grace = service, grace
        self._ends_at: float | None = None
        self._idle = dict[Any, tuple[Any, float]]()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets replies end, the second does not."""
        if not self.started:
            raise SystemExit(0)
        engine = self._service.engine
        if self._ends_at is not None:
            engine.stop()
            self._ends_at = time.monotonic()
            self.end()
            return
        self._ends_at = time.monotonic() + self._grace
        if count := engine.running + engine.waiting:
            again = "; Ctrl-C again ends at once" if sig == signal.SIGINT else ""
            note(f"finishing {count} {'reply' if count == 1 else 'replies'}{again}")
        engine.drain()
        timer = threading.Timer(self._grace, engine.stop)
        timer.daemon = True
        timer.start()

    def end(self) -> None:
        """Close the port, let answers reach slow clients in what is left of the grace, and end."""
        left = self._grace if self._ends_at is None else self._ends_at - time.monotonic()
        self.config.timeout_graceful_shutdown = max(1, round(left))
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections; those of clients that took nothing in time, too."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # in which they are

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self._drop_idle()
        return await super().on_tick(counter)

    def _drop_idle(self) -> None:
        """Close the connections on which nothing happens; uvicorn does so only behind an answer."""
        now, before, self._idle = time.monotonic(), self._idle, {}
        connection: Any  # of `http` above
        for connection in list(self.server_state.connections):
            cycle, closing = connection.cycle, connection.transport.is_closing()
            if not closing and cycle and not cycle.response_complete:
                continue
            # Of an answer that is longer than the network takes at once, the rest is on its way.
            state = cycle, connection.transport.get_write_buffer_size()
            last, since = before.get(connection, (state, now))
            if last != state:
                since = now
            if now - since > SECONDS_WITHOUT_REQUEST:
                connection.transport.abort()
            self._idle[connection] = state, since
