"""Processes that torchrun starts as for a user, and that do what they are told through a socket.

Several groups of them can be alive at the same time and take turns.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measure import receive, serve
from smallgpt.config import Config
from smallgpt.distributed import launch
from smallgpt.distributed.world import World

_OWN_NETWORK = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
NETWORK_COUNTERS = Path("/proc/net/dev")


class Group:
    """Processes that one torchrun has started, with a thread each.

    They are being started when it is made, so that several groups can start at the same time, and
    ready after `meet`.

    Args:
        module: what they run; it must call `answer` with the word behind `--serve`.
        prefix: of the command that starts torchrun.
    """

    def __init__(self, module: str, processes: int, prefix: Sequence[str] = ()) -> None:
        self._processes = processes
        self._connections: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory()
        self._door = socket.socket(socket.AF_UNIX)
        address = f"{self._folder.name}/door"
        self._door.bind(address)
        self._door.listen()
        self._door.settimeout(1)
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        network = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
        self._torchrun = subprocess.Popen(
            [*prefix, *launcher, *network, "-m", module, "--serve", address],
            # Where a network has no name server, c10d warns at every connection.
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            stdout=subprocess.DEVNULL,
        )

    def meet(self, config: Config) -> None:
        """Wait until all have made their objects, from `config`."""
        while len(self._connections) < self._processes:
            try:
                self._connections.append(Connection(self._door.accept()[0].detach()))
            except TimeoutError:
                if self._torchrun.poll() is not None:
                    raise RuntimeError("torchrun ended before its processes began") from None
        for connection in self._connections:
            connection.send(config)
        self.finish()

    def begin(self, method: str, *args: Any) -> None:
        """Let all of them begin with a method."""
        for connection in self._connections:
            connection.send((method, args))

    def finish(self) -> list[Any]:
        """The results of all of them, in no particular order."""
        return [receive(connection) for connection in self._connections]

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method in all of them and wait for the results."""
        self.begin(method, *args)
        return self.finish()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Let the processes end, or after an error make them."""
        self._door.close()
        self._folder.cleanup()
        for connection in self._connections:
            connection.close()  # which ends `serve`
        try:
            self._torchrun.wait(1 if kind else 10)
        except subprocess.TimeoutExpired:
            self._torchrun.terminate()  # and it ends its processes
            self._torchrun.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(address: Path, make: Callable[[Config, World], Any]) -> None:
    """Be one of the processes of the `Group` that waits at `address`.

    Args:
        make: builds the object whose methods the group calls.
    """
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(str(address))
        connection = Connection(door.detach())
    config = connection.recv()
    with launch.join(config, "a benchmark") as world:
        serve(connection, make, (config, world))


def own_network() -> Sequence[str]:
    """What to put before a command for a network of its own; nothing where that is forbidden."""
    try:
        tried = subprocess.run([*_OWN_NETWORK, "true"], capture_output=True, check=False)
    except OSError:
        return ()
    return _OWN_NETWORK if tried.returncode == 0 else ()


def bytes_on_loopback() -> int:
    """Bytes sent on lo since it exists, by /proc/net/dev; 0 where there is no such file."""
    if not NETWORK_COUNTERS.exists():
        return 0
    (line,) = (s for s in NETWORK_COUNTERS.read_text().splitlines() if s.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])
