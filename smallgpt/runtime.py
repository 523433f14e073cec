"""Where a run computes: device, precision, and the seeds that make it repeatable."""

import ctypes
import inspect
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smallgpt.config import Config
from smallgpt.utils import nvidia
from smallgpt.utils.errors import UserError, note

LARGE = 30_000_000
"""Parameters from which on `auto` chats in 16 bits on a CPU; below, float32 is quick enough."""
BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
"""The values of `dtype` that keep weights as integers."""


@dataclass(frozen=True)
class Runtime:
    """Where tensors live, the precision of matrix products, and the reason for that precision."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    varlen: bool = False
    """Whether packed rows have variable-length attention, or a mask."""

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `dtype`; weights, norms and the loss stay in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        detail = ""
        if self.device.type == "cuda":
            detail = f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            detail = f" ({torch.get_num_threads()} threads)"
        return f"{self.device}{detail}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def start(config: Config, local_rank: int | None = None) -> Runtime:
    """Choose device and precision.

    `local_rank` numbers this process where several of one run share the machine.
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
        # cuDNN's attention makes a plan for every new size, and the batches of reviews have many.
        torch.backends.cuda.enable_cudnn_sdp(False)
        # torch.compile recommends TensorFloat32; but float32 here means float32.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    return Runtime(device, dtype, reason)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; to a GPU it is copied while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_host(value: Any) -> Any:
    """A copy of tensors, and of the dicts, lists and tuples they are in, in the host's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(inner) for inner in value)
    return value


def begin_to_read(figures: Tensor) -> Callable[[], list[float]]:
    """Begin to copy a few figures from the device, (N,); the function waits for them.

    It waits for what was queued before, and not for what the device was given since.
    """
    if figures.device.type != "cuda":
        return figures.tolist
    copy = torch.empty_like(figures, device="cpu", pin_memory=True)
    copy.copy_(figures, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def reuse_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system.

    By default every large tensor is fresh memory that the kernel must clear, page by page, at
    every step: a third of the time of training on a CPU (docs/log.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
    libc.mallopt(-4, 0)  # M_MMAP_MAX


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; `cuda` and `mps` fall back to the CPU, and say so.

    Raises:
        UserError: there is no such device, or `cuda` is there and PyTorch cannot use it, of which
            `auto` only warns.
    """
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")  # refused as all that we do not know
    if device.type not in ("cuda", "mps", "cpu"):
        raise UserError(
            f"device: {name!r} is not a device we know", "use auto, cpu, cuda, cuda:N or mps"
        )
    if device.type == "cpu":
        return device
    unusable = nvidia.unusable_gpu(device) if device.type == "cuda" else None
    available = {
        "cuda": torch.cuda.is_available() and not unusable,
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if unusable and name != "auto":
        raise UserError(f"device: {unusable.problem}", unusable.advice)
    if unusable:
        note(f"device: using the CPU: {unusable}")
    if name == "auto":
        return torch.device(next(kind for kind in available if available[kind]))
    if not available[device.type]:
        vendor = "CUDA" if device.type == "cuda" else "Apple"
        note(f"device: no {vendor} GPU here, using the CPU")
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if device.type == "cuda" and device.index is not None and device.index >= count:
        raise UserError(f"device: {name} does not exist", f"there are {count}, from cuda:0")
    return device


def device_of_process(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of this process, a `UserError` where there is none left; the CPU is shared."""
    if device.type == "cpu":
        return device
    if device.type == "mps" or device.index is not None:
        raise UserError(
            f"device: {device} is one GPU; each process needs its own", "set device: cuda, or cpu"
        )
    count = torch.cuda.device_count()
    if gpus_are_shared():
        return torch.device("cuda", local_rank % count)
    if local_rank >= count:
        raise UserError(
            f"no GPU for process {local_rank} of this machine (from 0): there are {count}",
            f"start torchrun with --nproc_per_node={count}",
        )
    return torch.device("cuda", local_rank)


def gpus_are_shared() -> bool:
    """Whether several processes take one GPU, and so talk over gloo, as NCCL refuses that: for
    tests of several processes on a machine with one GPU."""
    return os.environ.get("SMALLGPT_SHARE_GPU") == "1"


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision to train in, and why: the one named, for `auto` what the hardware does fast."""
    if name in BITS:
        raise UserError(
            f"dtype: {name} is for talking with a trained model, not for training",
            f"train with dtype: auto; chat.py and smallgpt evaluate take {name}",
        )
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype: float16 needs a GPU", "use auto, float32 or bfloat16 on a CPU")
    if name != "auto":
        return getattr(torch, name), "as configured"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, "native on this GPU"
        # Those below sm_75 need PyTorch's build for CUDA 12.6 (docs/install.md).
        if major >= 7:
            return torch.float16, f"fast on this older GPU (sm_{major}{minor}), with loss scaling"
        return torch.float32, f"this GPU (sm_{major}{minor}) has no fast 16-bit arithmetic"
    if device.type == "mps":
        return torch.float32, "the safe choice on an Apple GPU"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "native on this CPU"
    return torch.float32, "this CPU has no native bfloat16"


def with_attention(here: Runtime, config: Config) -> Runtime:
    """The same with the attention that `attention` names, for packed rows of this model.

    Args:
        config: of the model's shape, which may be that of a checkpoint.

    Raises:
        UserError: variable-length attention is asked for, and cannot be had.
    """
    if config.attention == "mask":
        return here
    device, dtype = here.device, here.dtype
    width, missing = config.n_embd // config.n_head, ""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        missing = "an NVIDIA GPU of Ampere (2020) or newer"
    elif not _torch_has_varlen():
        missing = f"a newer torch (here is {torch.__version__})"
    elif dtype == torch.float32:
        missing = "dtype: bfloat16 or float16"
    elif width % 8 or width > 256:
        missing = f"heads whose width is a multiple of 8 up to 256 (n_embd / n_head is {width})"
    if missing and config.attention == "varlen":
        raise UserError(f"attention: varlen needs {missing}", "set attention: auto")
    return replace(here, varlen=not missing)


@dataclass(frozen=True)
class Precision:
    """What a trained model computes in, with the layers' matrices as scaled integers of so many
    bits, or None. All other weights are kept in `dtype`, too."""

    dtype: torch.dtype
    bits: Literal[4, 8] | None = None

    def __str__(self) -> str:
        return f"int{self.bits}" if self.bits else str(self.dtype).removeprefix("torch.")


def choose_precision(
    name: str, device: torch.device, parameters: int, in_c: bool = False
) -> Precision:
    """The precision named; for `auto` what is quick here for a model of so many parameters.

    Args:
        in_c: replies are computed in C (model/native.py), which is quick in bfloat16 on any CPU.

    Raises:
        UserError: the device cannot compute in it, or does so more slowly: torch's int8 kernel for
            CUDA has one thread a row, which reads it byte by byte, and int4 has none.
    """
    on_cpu = device.type == "cpu"
    if (name == "int8" and device.type == "cuda") or (name == "int4" and not on_cpu):
        quicker = Precision(choose_dtype("auto", device)[0])
        raise UserError(
            f"dtype: {name} is for CPUs: {quicker} is faster on this GPU",
            "leave dtype at auto, or set device: cpu",
        )
    if name in BITS:
        return Precision(torch.bfloat16 if on_cpu else choose_dtype("auto", device)[0], BITS[name])
    if name == "auto" and on_cpu:
        if parameters < LARGE:
            return Precision(torch.float32)
        if in_c:
            return Precision(torch.bfloat16)
    return Precision(choose_dtype(name, device)[0])


def seed_everything(*numbers: int) -> None:
    """Seed torch on all devices from several numbers, such as (seed, step)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % (1 << 63)
    torch.manual_seed(mixed)


def _torch_has_varlen() -> bool:
    """Whether this torch has it as we call it; it is still changing."""
    from torch.nn.attention.varlen import varlen_attn  # slow to import

    return "window_size" in inspect.signature(varlen_attn).parameters


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` can work here; says so where it cannot."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        note("compile: no C++ compiler (g++ or clang++) found, running without")
        return False
    if device.type == "mps":
        note("compile: not on an Apple GPU, running without")
        return False
    return True


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let each block be compiled, when it is called first: in place, so that whoever uses the model
    uses what is compiled. All blocks together need one graph.

    Where the compiler fails or would have to leave a part out, the call raises.
    """
    torch._dynamo.config.optimize_ddp = False  # a block is one graph, however DDP sends it
    torch._dynamo.config.recompile_limit = 64  # training, validation; any length of a review
    for block in blocks:
        block.compile(fullgraph=True)


def undo_compile(blocks: Iterable[nn.Module]) -> None:
    """Let each block run as it is written."""
    for block in blocks:
        block._compiled_call_impl = None
