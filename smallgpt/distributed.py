"""Several processes train one model: each takes its share of every batch.

`torchrun` starts the processes and tells each who it is through environment variables. They talk
through torch.distributed: gradients over NCCL on GPUs and gloo on CPUs, everything else over gloo.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from smallgpt import background, errors
from smallgpt.config import Config
from smallgpt.errors import UserError
from smallgpt.runtime import python_command

T = TypeVar("T")

SECONDS_FOR_THE_CULPRIT = 2 * errors.SECONDS_FOR_THE_FIRST
"""A process that has only lost contact waits so long before it says so, and asks meanwhile who is
there: where another one of this machine has failed, that one speaks, and torchrun ends the rest."""
OWN_KEYS = ("data_path", "checkpoint_root", "tensorboard_path", "local_rank", "world_size")
"""Keys that may differ from machine to machine."""
_TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)
_SOURCE_LINE = re.compile(r"\[/\S+:\d+\] ")
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_SIOCGIFADDR = 0x8915  # from Linux's sockios.h


@dataclass(frozen=True)
class Peer:
    """Where a process runs."""

    host: str
    address: str
    device: str
    restarts: str
    config: dict[str, Any]


@dataclass(frozen=True)
class World:
    """Which one this process is, of how many; by default the only one, which waits for nobody.

    rank: 0 to size - 1 over all machines; 0, the first, prints, writes and encodes.
    local_rank: the same within this machine.
    timeout: seconds any of the methods waits for the other processes before it raises.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    timeout: float = 0.0
    peers: tuple[Peer, ...] = field(default=(), repr=False)
    _roll_call: Any = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, writes and encodes."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number, summed over all processes in float64."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def max(self, number: int) -> int:
        """The largest `number` of all processes; all return when all have called it."""
        largest = torch.tensor(number)
        if self.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def share(self, value: T) -> T:
        """The first process's `value`, on every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` on the first process, then on one of each other machine, then on the rest.

        So what one of them writes to disk the others find there. However long it takes, those that
        wait notice within `timeout` when one that works is gone.
        """
        if self.size == 1:
            return work()
        mine = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            future = background.begin(work) if turn == mine else None
            while self.max(future is not None and not future.done()):
                if future is not None:
                    concurrent.futures.wait([future], timeout=1)
            if future is not None:
                result = future.result()
        return result

    def agree(self, what: str, value: str, advice: str) -> None:
        """Stop where the processes do not have the same `value` of `what`.

        Raises:
            UserError: on all of them.
        """
        values = self._gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f"{what} of {self._name([rank])} differs from rank 0's", advice)

    def agree_on_config(self) -> None:
        """Stop where a process was given another config, and name the keys.

        Raises:
            UserError: on all of them.
        """
        first = self.peers[0].config
        for rank, peer in enumerate(self.peers):
            differences = [
                f"{key} is {peer.config.get(key)}, not {first.get(key)}"
                for key in first | peer.config
                if peer.config.get(key) != first.get(key)
            ]
            if differences:
                raise UserError(
                    f"the config of {self._name([rank])} differs from rank 0's: "
                    + "; ".join(differences),
                    "give every machine the same YAML file and key=value",
                )

    def _gather(self, value: T) -> list[T]:
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def _name(self, ranks: list[int]) -> str:
        """Processes and their machines, for messages."""
        places = dict.fromkeys(
            f"{self.peers[r].host} ({self.peers[r].address})" for r in ranks if self.peers
        )
        numbers = ", ".join(map(str, ranks))
        where = f" on {', '.join(places)}" if places else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {numbers}{where}"

    def lost_contact(self, error: RuntimeError) -> UserError:
        """What to tell the user about a connection that failed: who is gone, and how to go on."""
        gone, silent = self._call_roll()
        if gone and not _TIMED_OUT.search(str(error)):
            problem = f"{self._name(gone)} closed the connection"
        else:  # or another one that is well closed it, for whom the time was up first
            missing = sorted(gone + silent) or [r for r in range(self.size) if r != self.rank]
            problem = f"no answer from {self._name(missing)} for {self.timeout:.0f} s (ddp_timeout)"
        return UserError(
            f"lost contact: {problem}",
            "see what that process said, and whether the network is up; then start every machine's "
            "torchrun again\n     with resume_from=auto: training goes on from the last checkpoint",
        )

    def _call_roll(self) -> tuple[list[int], list[int]]:
        """Ranks that are gone, and those that do not answer; the rest have noticed and call too.

        It lasts SECONDS_FOR_THE_CULPRIT.
        """
        ends = time.monotonic() + SECONDS_FOR_THE_CULPRIT
        token = torch.zeros(1)

        def hear(rank: int) -> None:
            receipt = dist.irecv(torch.zeros(1), rank, self._roll_call)
            assert receipt is not None
            receipt.wait(timedelta(seconds=SECONDS_FOR_THE_CULPRIT))

        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = []  # kept: gloo forgets a message when nobody holds its receipt
        for rank in others:
            with suppress(RuntimeError):
                sent.append(dist.isend(token, rank, self._roll_call))
        # All at once: where one wait times out, gloo ends the group's others.
        answers = {rank: background.begin(partial(hear, rank)) for rank in others}
        gone: list[int] = []
        silent: list[int] = []
        for rank, answer in answers.items():
            if error := answer.exception():
                (silent if _TIMED_OUT.search(str(error)) else gone).append(rank)
        time.sleep(max(0.0, ends - time.monotonic()))
        return gone, silent


@contextmanager
def join(config: Config, command: str) -> Iterator[World]:
    """Take a place among the processes that torchrun started; alone where there is no torchrun.

    Args:
        command: what the user typed behind `python`, for messages.

    Raises:
        UserError: `ddp: True` without torchrun; processes that do not fit together; or, from within
            the block, lost contact with another process.
    """
    world = _place(config)
    if world.size == 1:
        if config.ddp and "RANK" not in os.environ:
            processes = max(2, torch.cuda.device_count())
            raise UserError(
                "ddp: True needs torchrun, which starts the processes",
                f"torchrun --nproc_per_node={processes} {command}\n     (or ddp=False for one)",
            )
        yield world
        return
    if not world.is_first:
        errors.be_quiet()
    try:
        world = _connect(world, config)
        yield world
    except (UserError, RuntimeError) as error:
        shown = _shown(world, error)
        _tell_torchrun(shown)
        raise shown from None if shown is not error else error.__cause__
    dist.destroy_process_group()


def launcher() -> str:
    """What the user typed before `train.py`: python, or torchrun with its parameters."""
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" not in variables:
        return python_command()
    words = ["torchrun", f"--nproc_per_node={variables.get('LOCAL_WORLD_SIZE', '1')}"]
    if variables.get("GROUP_WORLD_SIZE", "1") != "1":
        words.insert(1, f"--nnodes={variables['GROUP_WORLD_SIZE']}")
        words.insert(2, f"--node_rank={variables['GROUP_RANK']}")
        words.append(f"--master_addr={variables['MASTER_ADDR']}")
        words.append(f"--master_port={variables['MASTER_PORT']}")
    return " ".join(words)


def was_restarted() -> bool:
    """Whether torchrun has started the processes again after one of them failed."""
    return os.environ.get(_RESTARTS, "0") != "0"


def replicate(model: nn.Module, world: World) -> nn.Module:
    """`model` with the first process's weights and, in backward, gradients averaged over all.

    Gradients are sent in buckets while the rest is still being computed (PyTorch DDP,
    arXiv:2006.15704).
    """
    if world.size == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def without_averaging(replica: nn.Module) -> AbstractContextManager[None]:
    """Within it gradients are only summed up here: for all but the last part of a step."""
    if isinstance(replica, DistributedDataParallel):
        return replica.no_sync()
    return nullcontext()


def _place(config: Config) -> World:
    """From the variables that torchrun sets."""
    if "RANK" not in os.environ:
        return World()
    return World(
        _number("RANK"), _number("LOCAL_RANK"), _number("WORLD_SIZE"), timeout=config.ddp_timeout
    )


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise UserError(
            f"the environment variable {variable} is {text!r}, not a number",
            "start the run with torchrun, which sets it, or unset RANK to run alone",
        )
    return int(text)


def _connect(world: World, config: Config) -> World:
    """Meet the others, and see that they are of one kind."""
    address = _own_address()
    _choose_interface(address)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=config.ddp_timeout)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun may use one store for all its attempts: without this, addresses of processes that
        # are gone would be found in it. (Of several machines not all count the same attempts.)
        attempt = os.environ[_RESTARTS]
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    shared = {k: v for k, v in asdict(config).items() if k not in OWN_KEYS}
    me = Peer(
        host=socket.gethostname(),
        address=address,
        device="a GPU" if torch.cuda.is_available() else "the CPU",
        restarts=os.environ.get(_RESTARTS, "0"),
        config=shared,
    )
    met = replace(
        world,
        peers=tuple(world._gather(me)),
        _roll_call=dist.new_group(backend="gloo", timeout=timeout),
    )
    # torchrun counts its own machine's failures only; the processes of all may be new.
    os.environ[_RESTARTS] = max((peer.restarts for peer in met.peers), key=int)
    met.agree_on_config()
    met.agree("the device", me.device, "set device=cpu everywhere, or use machines with GPUs")
    return met


def _own_address() -> str:
    """The address of this machine on the network of the master."""
    master = os.environ.get("MASTER_ADDR", "localhost")
    with suppress(OSError):
        family, kind, *_, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: it only chooses the way
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def _choose_interface(address: str) -> None:
    """Let gloo use the network on which the master is reached, unless the user has chosen one.

    By itself it takes the address this machine's name stands for, which often is 127.0.1.1 or of
    another network.
    """
    if sys.platform != "linux" or os.environ.get("WORLD_SIZE") == os.environ.get(
        "LOCAL_WORLD_SIZE"
    ):
        default = "lo" if sys.platform == "linux" else ""
    else:
        default = _interface_of(address)
    if default:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", default)


def _interface_of(address: str) -> str:
    """Name of the network interface with this address; empty where there is none."""
    import fcntl

    if ":" in address:
        number = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
        return next((line.split()[-1] for line in lines if line.startswith(number)), "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def _shown(world: World, error: UserError | RuntimeError) -> UserError | RuntimeError:
    """The error as the user is to see it: lost contact is told in words."""
    about_peers = isinstance(error, dist.DistError) or "gloo" in str(error)
    if isinstance(error, UserError) or not about_peers:
        return error
    if not world.peers:
        cause = _SOURCE_LINE.sub("", str(error).splitlines()[0])
        return UserError(
            f"rank {world.rank} cannot reach the other processes: {cause}",
            "is torchrun started on every machine, with the same --master_addr and --master_port,"
            "\n     and can they connect to each other? See docs/distributed.md",
        )
    return world.lost_contact(error)


def _tell_torchrun(error: UserError | RuntimeError) -> None:
    """Leave the error where torchrun looks for it, so that its summary names the cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not isinstance(error, UserError):
        get_error_handler().record_exception(error)
    elif file:
        details = {"py_callstack": f"error: {error}", "timestamp": str(int(time.time()))}
        text = json.dumps({"message": {"message": str(error), "extraInfo": details}})
        with suppress(OSError):
            Path(file).write_text(text, "utf-8")
