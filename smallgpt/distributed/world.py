"""Several processes train one model: each takes its share of every batch.

They talk through torch.distributed: gradients over NCCL on GPUs and gloo on CPUs, everything else
over gloo. How they find each other is in launch.py.
"""

import concurrent.futures
import io
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smallgpt.utils import background, errors
from smallgpt.utils.errors import UserError

T = TypeVar("T")

ANSWER_SECONDS = 2 * errors.SECONDS_FOR_FIRST_PROCESS
"""A process that has lost contact asks this long who still answers, before it reports. If another
one of its machine has failed, that one reports meanwhile, and torchrun ends the rest."""


class _WithoutTensors(pickle.Pickler):
    """Writes of tensors only what they look like, and lists them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not Tensor or value.device.type != "cpu":
            return None
        self.tensors.append(value.detach())
        return value.shape, value.dtype


class _WithEmptyTensors(pickle.Unpickler):
    """Reads what `_WithoutTensors` wrote, with tensors to be filled, listed in the same order."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_load(self, look: Any) -> Tensor:
        shape, dtype = look
        self.tensors.append(torch.empty(shape, dtype=dtype))
        return self.tensors[-1]


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; by default the only one, which never waits.

    Where the others do not answer, each method raises after `ddp_timeout` seconds.

    rank: 0 to size - 1 over all machines; 0, the first, prints, writes and encodes.
    local_rank: the same within this machine.
    restarted: torchrun has started all processes again after one of them failed.
    places: host and address of each process, by rank; empty for a single one.
    roll_call: a process group for finding out who still answers.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    restarted: bool = False
    places: tuple[str, ...] = field(default=(), repr=False)
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

    def any_on_device(self, flag: Tensor) -> Tensor:
        """Whether a flag, a bool on the device, is set in any process; the host does not wait."""
        if self.size == 1:
            return flag
        count = flag.int()
        dist.all_reduce(count)
        return count > 0

    def share(self, value: T) -> T:
        """The first process's `value`, on every process: anything that can be pickled.

        Tensors on the CPU, wherever they are in it, are sent one by one from where they lie to
        where they will lie: a pickled copy of an optimizer's state would take several times its
        memory.
        """
        if self.size == 1:
            return value
        written = io.BytesIO()
        writer = _WithoutTensors(written)
        if self.is_first:
            writer.dump(value)
        box: list[Any] = [written.getvalue()]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if self.is_first:
            tensors = writer.tensors
        else:
            reader = _WithEmptyTensors(io.BytesIO(box[0]))
            value, tensors = reader.load(), reader.tensors
        for tensor in tensors:
            # Bytes, as gloo does not know every type.
            dist.broadcast(tensor.contiguous().flatten().view(torch.uint8), src=0)
        return value

    def gather(self, value: T) -> list[T]:
        """The `value` of each process, by rank, on every process."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def first_process_first(self, work: Callable[[], T]) -> T:
        """Do `work` on the first process, then on one of each other machine, then on the rest.

        So each finds what an earlier one wrote to its disk. However long it takes, those that wait
        notice within `ddp_timeout` when one that works is gone.
        """
        if self.size == 1:
            return work()
        mine = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            future = background.begin(work) if turn == mine else None
            while self.max(future is not None and not future.done()):
                if future:
                    concurrent.futures.wait([future], timeout=1)
            if future:
                result = future.result()
        return result

    def only_first(self, work: Callable[[], T]) -> T | None:
        """Do `work` on the first process, however long it takes; the others wait, for None."""
        return self.first_process_first(lambda: work() if self.is_first else None)

    def agree(self, what: str, value: Any, advice: str) -> None:
        """Raise UserError on all processes unless all have the same `value` of `what`.

        It names the keys that differ if the value is a dict.
        """
        first, *others = self.gather(value)
        for rank, other in enumerate(others, start=1):
            if other == first:
                continue
            problem = f"{what} of {self._name([rank])} differs from rank 0's"
            if isinstance(first, dict):
                problem += ": " + "; ".join(
                    f"{key} is {other.get(key)}, not {first.get(key)}"
                    for key in first | other
                    if other.get(key) != first.get(key)
                )
            raise UserError(problem, advice)

    def lost_contact(self) -> UserError:
        """What to tell the user after a connection failed: who is gone, and how to go on."""
        missing = self._missing() or [rank for rank in range(self.size) if rank != self.rank]
        verb = "does" if len(missing) == 1 else "do"
        return UserError(
            f"lost contact: {self._name(missing)} {verb} not answer",
            "see what that process said, and whether the network is up; then start every machine's "
            "torchrun again\n     with resume_from=auto: training goes on from the last checkpoint",
        )

    def _name(self, ranks: list[int]) -> str:
        """Processes and their machines, for messages."""
        numbers = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        places = dict.fromkeys(self.places[rank] for rank in ranks if self.places)
        return f"{numbers} on {', '.join(places)}" if places else numbers

    def _missing(self) -> list[int]:
        """Ranks that do not answer in ANSWER_SECONDS; the others ask as well."""
        ends = time.monotonic() + ANSWER_SECONDS
        others = [rank for rank in range(self.size) if rank != self.rank]

        def answers(rank: int) -> bool:
            try:
                receipt = dist.irecv(torch.zeros(1), rank, self.roll_call)
                return bool(receipt and receipt.wait(timedelta(seconds=ANSWER_SECONDS)))
            except RuntimeError:
                return False

        sent = []  # kept: gloo forgets a message when nobody holds its receipt
        for rank in others:
            with suppress(RuntimeError):
                sent.append(dist.isend(torch.zeros(1), rank, self.roll_call))
        # All at once: where one wait times out, gloo ends the group's others.
        with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
            answered = list(pool.map(answers, others))
        time.sleep(max(0.0, ends - time.monotonic()))
        return [rank for rank, here in zip(others, answered, strict=True) if not here]


ALONE = World()
"""The only process, for which every exchange is free."""


def replicate(model: nn.Module, world: World) -> nn.Module:
    """`model` with the first process's weights and, in backward, gradients averaged over all.

    Gradients are sent in buckets while the rest is still being computed (PyTorch DDP,
    arXiv:2006.15704): of 25 MiB as DDP has it, or a twelfth of a large model's, as every message
    costs time of its own. That is 94 MiB for 300M; torchtitan takes 100, Megatron-LM 153.
    """
    if world.size == 1:
        return model
    twelfth = sum(4 * p.numel() for p in model.parameters() if p.requires_grad) / 12 / 2**20
    bucket = twelfth if twelfth > 25 else None
    return DistributedDataParallel(model, bucket_cap_mb=bucket, gradient_as_bucket_view=True)


def without_averaging(replica: nn.Module) -> AbstractContextManager[None]:
    """Within it gradients are only summed up here: for all but the last part of a step."""
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()
