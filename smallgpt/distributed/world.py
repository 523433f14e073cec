"""Several processes train one model: each takes its share of every batch.

They talk through torch.distributed: gradients over NCCL on GPUs and gloo on CPUs, everything else
over gloo. How they find each other is in launch.py.
"""

from __future__ import annotations

import concurrent.futures
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smallgpt.utils import background, errors
from smallgpt.utils.errors import UserError

T = TypeVar("T")

SECONDS_FOR_THE_CULPRIT = 2 * errors.SECONDS_FOR_THE_FIRST
"""A process that has only lost contact waits so long before it says so, and asks meanwhile who is
there: where another one of this machine has failed, that one speaks, and torchrun ends the rest."""
_TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Peer:
    """Where a process runs."""

    host: str
    address: str
    device: str
    config: dict[str, Any]


@dataclass(frozen=True)
class World:
    """Which one this process is, of how many; by default the only one, which waits for nobody.

    rank: 0 to size - 1 over all machines; 0, the first, prints, writes and encodes.
    local_rank: the same within this machine.
    timeout: seconds any of the methods waits for the other processes before it raises.
    restarted: torchrun has started all processes again after one of them failed.
    peers: where each process runs, by rank; empty for a single one.
    roll_call: a process group for finding out who is still there.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    timeout: float = 0.0
    restarted: bool = False
    peers: tuple[Peer, ...] = field(default=(), repr=False)
    roll_call: Any = field(default=None, repr=False)

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
        values = self.gather(value)
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

    def gather(self, value: T) -> list[T]:
        """The `value` of each process, by rank, on every process."""
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
            receipt = dist.irecv(torch.zeros(1), rank, self.roll_call)
            assert receipt is not None
            receipt.wait(timedelta(seconds=SECONDS_FOR_THE_CULPRIT))

        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = []  # kept: gloo forgets a message when nobody holds its receipt
        for rank in others:
            with suppress(RuntimeError):
                sent.append(dist.isend(token, rank, self.roll_call))
        # All at once: where one wait times out, gloo ends the group's others.
        answers = {rank: background.begin(partial(hear, rank)) for rank in others}
        gone: list[int] = []
        silent: list[int] = []
        for rank, answer in answers.items():
            if error := answer.exception():
                (silent if _TIMED_OUT.search(str(error)) else gone).append(rank)
        time.sleep(max(0.0, ends - time.monotonic()))
        return gone, silent


ALONE = World()
"""The only process, for which every exchange is free."""


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
