"""From a service to a process that answers on a port, until it is told to end."""

import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn

from smallgpt.server.app import application
from smallgpt.server.engine import State
from smallgpt.server.service import Service
from smallgpt.utils.errors import UserError, note

BACKLOG = 2048


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
    listening = _listen(address.host, address.port)
    port = listening.getsockname()[1]
    name = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{name}:{port}"

    def changed(state: State) -> None:
        if state == "ok":
            print(f"serving {service.name} on {url}", flush=True)
            if browser and _has_screen():
                webbrowser.open(url)
        else:
            server.should_exit = True

    service.on_state = changed
    app = application(service, {address.host, *address.hosts}, address.origins)
    server = _Server(app, service, grace)
    with listening:
        server.run([listening])
    service.engine.join()
    if service.engine.error:
        raise service.engine.error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{host}, port {port}: {reason}", "choose another with --host and --port"
        ) from None


def _has_screen() -> bool:
    """Whether a browser would come up beside the terminal, not in it."""
    windows = sys.platform in ("win32", "darwin")
    return windows or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Server(uvicorn.Server):
    """Finishes what was begun before it closes its port: until then /health says so."""

    def __init__(self, app: object, service: Service, grace: float) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        super().__init__(config)
        self._service, self._grace, self._told = service, grace, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets replies end, the second does not."""
        engine = self._service.engine
        if self._told:
            engine.stop()
            self.config.timeout_graceful_shutdown = 1
            self.should_exit = True
            return
        self._told = True
        if engine.running + engine.waiting:
            how = "again: at once" if sig == signal.SIGINT else ""
            note(f"finishing {engine.running + engine.waiting} replies {how}".rstrip())
        engine.drain()
        timer = threading.Timer(self._grace, engine.stop)
        timer.daemon = True
        timer.start()
