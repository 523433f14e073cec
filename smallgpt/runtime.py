"""Where a run computes: device, precision, and the seeds that make it repeatable."""

from __future__ import annotations

import ctypes
import platform
import shlex
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from smallgpt.config import Config
from smallgpt.utils.errors import UserError, note

LARGE = 30_000_000
"""Parameters from which on `auto` takes 16 bits; below, float32 is exact and takes some 5 ms a
character at most."""


@dataclass(frozen=True)
class Runtime:
    """device: where tensors live; dtype: the precision of matrix products; reason: why that one."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `dtype`; weights, norms and the loss stay in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        where = f"{self.device} ({name})" if name else str(self.device)
        if self.device.type == "cpu":
            where += f" ({torch.get_num_threads()} threads)"
        return f"{where}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def start(config: Config, local_rank: int | None = None) -> Runtime:
    """Choose device and precision.

    Args:
        local_rank: number of this process where several of one run share the machine.

    Raises:
        UserError: an unknown device, or a precision that the device cannot compute in.
    """
    device = choose_device(config.device)
    if local_rank is not None:
        device = device_of_process(device, local_rank)
    dtype, reason = choose_dtype(config.dtype, device)
    if device.type == "cpu":
        reuse_freed_memory()
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    return Runtime(device, dtype, reason)


def reuse_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of returning it to the system.

    By default every large tensor is fresh memory that the kernel must clear, page by page, at
    every step: a third of the time of training on a CPU (docs/log.md). Does nothing where the C
    library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, -1)  # never
    libc.mallopt(mmap_max, 0)


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; `cuda` and `mps` fall back to the CPU, and say so."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device: {name!r} is no device", "use auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            note("device: no CUDA GPU here, using the CPU")
            return torch.device("cpu")
        if device.index is not None and device.index >= count:
            raise UserError(f"device: {name} does not exist", f"there are {count}, from cuda:0")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        note("device: no Apple GPU here, using the CPU")
        return torch.device("cpu")
    elif device.type not in ("cpu", "mps"):
        raise UserError(f"device: {name} is not supported", "use auto, cpu, cuda, cuda:N or mps")
    return device


def device_of_process(device: torch.device, local_rank: int) -> torch.device:
    """Each process its own GPU; the CPU is shared.

    Raises:
        UserError: there is none left for this process, or the device cannot be shared.
    """
    if device.type == "mps":
        raise UserError("device: several processes cannot share an Apple GPU", "set device=cpu")
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(
            f"device: {device} is one GPU, and several processes need one each",
            "set device: cuda",
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"no GPU for process {local_rank} of this machine (from 0): there are {count}",
            f"start torchrun with --nproc_per_node={count}",
        )
    return torch.device("cuda", local_rank)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision to train in: the one named, or for `auto` what the hardware does fast; and why.

    Raises:
        UserError: the device cannot compute in it, or nothing can be trained in it.
    """
    if name == "int8":
        raise UserError(
            "dtype: int8 is for talking with a trained model, not for training",
            "train with dtype: auto; chat.py and smallgpt evaluate take int8",
        )
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype: float16 needs a GPU", "use auto, float32 or bfloat16 on a CPU")
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype, "as configured"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, "native on this GPU"
        if major >= 7:
            return torch.float16, f"fast on this older GPU (sm_{major}{minor}), with loss scaling"
        return torch.float32, f"this GPU (sm_{major}{minor}) has no fast 16-bit arithmetic"
    if device.type == "mps":
        return torch.float32, "the safe choice on an Apple GPU"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "native on this CPU"
    return torch.float32, "this CPU has no native bfloat16"


@dataclass(frozen=True)
class Precision:
    """dtype: what is computed in, and what weights are kept in that are not int8.

    int8: matrices of the layers are kept as 8-bit integers with a scale for each output channel.
    """

    dtype: torch.dtype
    int8: bool = False


def choose_precision(name: str, device: torch.device, parameters: int) -> Precision:
    """The precision named, one of `config.DTYPES`; for `auto` what is quick here.

    Args:
        parameters: how many the model has.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    on_cpu = device.type == "cpu"
    if name == "int8":
        return Precision(torch.bfloat16 if on_cpu else choose_dtype("auto", device)[0], True)
    if name == "auto" and on_cpu and parameters < LARGE:
        return Precision(torch.float32)
    return Precision(choose_dtype(name, device)[0])


def python_command() -> str:
    """What a user types to run this Python: `python` where that is it, else its path."""
    here = Path(sys.executable)
    found = shutil.which("python")
    if found and Path(found).samefile(here) and Path(found).parent == here.parent:
        return "python"
    return shlex.quote(
        str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
    )


def seed_everything(*numbers: int) -> None:
    """Seed torch on all devices from several numbers, such as (seed, step)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % (1 << 63)
    torch.manual_seed(mixed)


def compiled(model: nn.Module, wanted: bool, device: torch.device) -> nn.Module:
    """`torch.compile`d where wanted and possible; says so where it is not possible."""
    if not wanted:
        return model
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        note("compile: no C++ compiler (g++ or clang++) found, running without")
        return model
    if device.type == "mps":
        note("compile: not on an Apple GPU, running without")
        return model
    note("compile: before the first step, it takes a minute or so")
    return torch.compile(model)  # type: ignore[return-value]
