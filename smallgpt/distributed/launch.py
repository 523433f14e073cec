"""How the processes that torchrun starts meet and part: the way in and out of a distributed run.

torchrun tells each process which one it is through environment variables.
"""

import atexit
import gc
import json
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports this, and its functions keep the group of that time for ever as
# the default of a parameter; imported here, while there is none, they keep none (_end_threads).
import torch.distributed.nn.functional  # isort: skip
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from smallgpt.config import Config
from smallgpt.distributed.world import World
from smallgpt.runtime import gpus_are_shared
from smallgpt.utils import errors
from smallgpt.utils.commands import python_command
from smallgpt.utils.errors import UserError

OWN_KEYS = ("data_path", "checkpoint_root", "tensorboard_path", "local_rank", "world_size")
"""Keys that may differ from machine to machine."""
_SOURCE_LINE = re.compile(r"\[/\S+:\d+\] ")
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_SIOCGIFADDR = 0x8915  # from Linux's sockios.h


@contextmanager
def join(config: Config, command: str) -> Iterator[World]:
    """Take a place among the processes that torchrun started; alone where there is no torchrun.

    Loss of contact with another process, within the block too, becomes a UserError. `command` is
    what the user typed after `python`, for messages.
    """
    world = _place()
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
    except SystemExit:  # all stop here together, the state saved
        dist.destroy_process_group()
        raise
    except (UserError, RuntimeError) as error:
        shown = _as_user_error(world, error)
        _tell_torchrun(shown)
        raise shown from (error.__cause__ if shown is error else None)
    dist.destroy_process_group()


def launcher() -> str:
    """What the user typed before `train.py`: python, or torchrun with its options."""
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" not in variables:
        return python_command()
    processes = f"--nproc_per_node={variables.get('LOCAL_WORLD_SIZE', '1')}"
    if variables.get("GROUP_WORLD_SIZE", "1") == "1":
        return f"torchrun {processes}"
    machines = "--nnodes={GROUP_WORLD_SIZE} --node_rank={GROUP_RANK}".format_map(variables)
    master = "--master_addr={MASTER_ADDR} --master_port={MASTER_PORT}".format_map(variables)
    return f"torchrun {machines} {processes} {master}"


def _place() -> World:
    """From the variables that torchrun sets."""
    if "RANK" not in os.environ:
        return World()
    restarted = os.environ.get(_RESTARTS, "0") != "0"
    rank, local_rank, size = map(_number, ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return World(rank, local_rank, size, restarted)


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise UserError(
            f"the environment variable {variable} is {text!r}, not a number",
            "start the run with torchrun, which sets it, or unset RANK to run alone",
        )
    return int(text)


def _connect(world: World, config: Config) -> World:
    """Meet the others, and check that their devices and configs are the same."""
    address = _own_address()
    _choose_interface(address)
    nccl = torch.cuda.is_available() and not gpus_are_shared()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    timeout = timedelta(seconds=config.ddp_timeout)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun may use one store for all its attempts: without this, addresses of processes that
        # are gone would be found in it. (Of several machines not all count the same attempts.)
        attempt = os.environ[_RESTARTS]
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    atexit.register(_end_threads, [dist.group.WORLD])
    met = replace(
        world,
        # torchrun counts its own machine's failures only; the processes of all are new.
        restarted=world.max(world.restarted) > 0,
        places=tuple(world.gather(f"{socket.gethostname()} ({address})")),
        roll_call=dist.new_group(backend="gloo", timeout=timeout),
    )
    shared = {k: v for k, v in asdict(config).items() if k not in OWN_KEYS}
    met.agree("the config", shared, "give every machine the same YAML file and key=value")
    device = "a GPU" if torch.cuda.is_available() else "the CPU"
    met.agree("the device", device, "set device=cpu everywhere, or use machines with GPUs")
    return met


def _end_threads(groups: list[Any]) -> None:
    """Wait for gloo's threads, before Python ends.

    One that has just sent a tensor lets go of it a moment later. Where Python has ended meanwhile,
    that aborts the process (SIGABRT); where the group goes with DDP's C++ part, which waits for the
    threads without letting them go on, both wait for ever. So the group goes last, from Python.
    """
    gc.collect()
    groups.clear()


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
    if sys.platform == "linux":
        one_machine = os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")
        if interface := "lo" if one_machine else _interface_of(address):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


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


def _as_user_error(world: World, error: UserError | RuntimeError) -> UserError | RuntimeError:
    """What to tell the user about lost contact; else the error itself."""
    lost = isinstance(error, dist.DistError) or "gloo" in str(error)
    if isinstance(error, UserError) or not lost:
        return error
    if world.places:
        return world.lost_contact()
    cause = _SOURCE_LINE.sub("", str(error).splitlines()[0])
    return UserError(
        f"rank {world.rank} cannot reach the other processes: {cause}",
        "is torchrun started on every machine, with the same --master_addr and --master_port,"
        "\n     and can they connect to each other? See docs/distributed.md",
    )


def _tell_torchrun(error: UserError | RuntimeError) -> None:
    """Leave the error where torchrun looks for it, so that its summary names the cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not isinstance(error, UserError):
        get_error_handler().record_exception(error)
    elif file:
        with suppress(OSError):
            text = json.dumps({"message": f"error: {error}", "timestamp": int(time.time())})
            Path(file).write_text(text, "utf-8")
