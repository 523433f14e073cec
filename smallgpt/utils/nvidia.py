"""Why PyTorch cannot use an NVIDIA GPU that is there, and what to install so that it can."""

import os
import re
import warnings
from pathlib import Path

import torch

from smallgpt.utils.commands import python_command
from smallgpt.utils.errors import UserError

DEVICES = Path("/dev")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
WSL_DRIVER = Path("/usr/lib/wsl/lib/libcuda.so.1")
"""Windows puts it into WSL where it has an NVIDIA driver; the GPU has no file of its own there."""
OLDEST_DRIVER = {12: 525, 13: 580}
"""By CUDA's major version (docs.nvidia.com/deploy/cuda-compatibility)."""
FIRST_OF_CUDA_13 = (7, 5)
"""The lowest compute capability that CUDA 13 knows."""


def unusable_gpu(device: torch.device) -> UserError | None:
    """Why `device`, an NVIDIA GPU that is there, cannot be used; None if it can, or there is none.

    A GPU that PyTorch does not see is noticed on Linux and in WSL only, and not where an
    environment variable hides it, or PyTorch is built without CUDA.
    """
    cuda = torch.version.cuda
    if cuda is None:  # built for CPUs, or for AMD's GPUs
        return None
    with warnings.catch_warnings():  # torch warns of the same
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            there = any(DEVICES.glob("nvidia[0-9]*")) or WSL_DRIVER.exists()
            return _unusable_driver(cuda) if there and not _hidden() else None
        if (device.index or 0) >= torch.cuda.device_count():
            return None
        capability = torch.cuda.get_device_capability(device)
        architectures = torch.cuda.get_arch_list()
        if not architectures or any(_runs_on(capability, code) for code in architectures):
            return None
        return _unsupported(torch.cuda.get_device_name(device), capability, architectures, cuda)


def _hidden() -> bool:
    """Whether the user, or what started the container, keeps CUDA programs from all GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    in_container = os.environ.get("NVIDIA_VISIBLE_DEVICES", "all")
    return not re.match(r"\s*(\d|GPU-|MIG-)", visible) or in_container in ("", "none", "void")


def _unusable_driver(cuda: str) -> UserError:
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0]), max(OLDEST_DRIVER.values()))
    text = DRIVER_VERSION.read_text("utf-8") if DRIVER_VERSION.exists() else ""
    found = re.search(r" (\d+)(\.\d+)+", text)
    if found and int(found[1]) < needed:
        other = f", or {_build('12.6')}" if int(found[1]) >= OLDEST_DRIVER[12] else ""
        return UserError(
            f"NVIDIA driver{found[0]} is too old for this PyTorch: CUDA {cuda} needs {needed}",
            f"install driver {needed} or newer{other}\n     or set device: cpu",
        )
    reason = "the reason is not known"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        reason += f" (CUDA_VISIBLE_DEVICES={visible})"
    return UserError(
        f"PyTorch cannot use the NVIDIA GPU of this machine: {reason}",
        f"see what nvidia-smi says; CUDA {cuda} needs driver {needed} or newer. A new driver "
        "works\n     after a restart, and a container must be given the GPU; or set device: cpu",
    )


def _runs_on(capability: tuple[int, int], code: str) -> bool:
    """Whether a GPU runs code of an architecture such as sm_86 (machine code) or compute_120 (PTX,
    which the driver translates for any later one)."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if not match:
        return False
    kind, major, minor, special = match.groups()
    built = int(major), int(minor)
    if special == "a":  # for this one only
        return capability == built
    return capability >= built and (capability[0] == built[0] or (kind, special) == ("compute", ""))


def _unsupported(
    name: str, capability: tuple[int, int], architectures: list[str], cuda: str
) -> UserError:
    fitting = "12.6" if capability < FIRST_OF_CUDA_13 else "13.0"
    other = cuda.partition(".")[0] != fitting.partition(".")[0]
    return UserError(
        f"{name} (sm_{capability[0]}{capability[1]}) is not among the GPUs that this PyTorch "
        f"{torch.__version__} is built for: {' '.join(architectures)}",
        f"install {_build(fitting) if other else 'a PyTorch that is built for it (pytorch.org)'}\n"
        "     or set device: cpu",
    )


def _build(cuda: str) -> str:
    """How to replace this PyTorch by the same one for another CUDA."""
    version, tag = torch.__version__.split("+")[0], f"cu{cuda.replace('.', '')}"
    return (
        f"PyTorch's build for CUDA {cuda} (docs/install.md):\n"
        f"     {python_command()} -m pip install torch=={version}+{tag} --index-url https://download.pytorch.org/whl/{tag}"
    )
