"""An NVIDIA GPU that is there and cannot be used: refused or warned of, with what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smallgpt.runtime import choose_device
from smallgpt.utils import nvidia
from tests.helpers.commands import refusal

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (user@host)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar  5 22:42:15 UTC 2024\n"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update"
CUDA_126 = "pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126"
CUDA_130 = "pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
OF_130 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
OF_126 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes this machine one as described, by default with one GPU that can be used."""

    def make(
        cuda: str | None = "13.0",
        available: bool = True,
        files: str = "nvidia0 nvidiactl",
        driver: str = "",
        wsl: bool = False,
        error: str = TOO_OLD,
        architectures: str = OF_130,
        capability: tuple[int, int] = (8, 6),
        **variables: str,
    ) -> None:
        def init() -> None:
            raise RuntimeError(f"{error}\nat CUDAFunctions.cpp:109")

        for name in files.split():
            (tmp_path / name).touch()
        version, in_wsl = tmp_path / "version", tmp_path / "libcuda"
        if driver:
            version.write_text(driver)
        if wsl:
            in_wsl.touch()
        monkeypatch.setattr(nvidia, "DEVICES", tmp_path)
        monkeypatch.setattr(nvidia, "DRIVER_VERSION", version)
        monkeypatch.setattr(nvidia, "WSL_DRIVER", in_wsl)
        monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        for name, replaced in {
            "is_available": lambda: available,
            "device_count": lambda: int(available),
            "init": init,
            "get_arch_list": architectures.split,
            "get_device_capability": lambda device: capability,
            "get_device_name": lambda device: "GeForce",
        }.items():
            monkeypatch.setattr(torch.cuda, name, replaced)
        for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            {"driver": CLOSED.format("535.183.01")},
            ["driver 535.183.01 is too old", "CUDA 13.0 needs 580", "driver 580", CUDA_126],
        ),
        (
            {"driver": OPEN.format("575.57"), "CUDA_VISIBLE_DEVICES": "0"},
            ["driver 575.57 is too old", CUDA_126],
        ),
        (  # one GPU of several, as in a container
            {"driver": OPEN.format("535.0"), "files": "nvidia3", "NVIDIA_VISIBLE_DEVICES": "3"},
            ["driver 535.0 is too old"],
        ),
        ({"driver": CLOSED.format("470.256.02")}, ["CUDA 13.0 needs 580", "!pip install"]),
        (
            {"cuda": "12.6", "driver": CLOSED.format("470.256.02")},
            ["CUDA 12.6 needs 525", "install driver 525", "!pip install"],
        ),
        (
            {"driver": OPEN.format("580.65.06"), "error": "Error 802: system not yet initialized"},
            ["machine: Error 802: system not yet initialized", "!CUDAFunctions", "nvidia-smi"],
        ),
        (  # a number that no GPU has
            {"error": "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES": "9"},
            ["No CUDA GPUs are available (CUDA_VISIBLE_DEVICES=9)"],
        ),
        ({"driver": "garbage"}, [TOO_OLD, "CUDA 13.0 needs driver 580"]),
        ({"files": "", "wsl": True}, [TOO_OLD, "CUDA 13.0 needs driver 580"]),
        ({"files": "", "wsl": True, "cuda": "12.6"}, [TOO_OLD, "CUDA 12.6 needs driver 525"]),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_refused_by_cuda_and_passed_over_aloud_by_auto(
    machine: Machine,
    described: dict[str, str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(available=False, **described)
    refused = refusal(lambda: choose_device("cuda"))
    assert refusal(lambda: choose_device("cuda:1")) == refused
    assert capsys.readouterr().err == ""
    assert choose_device("auto").type == "cpu"
    warned = capsys.readouterr().err
    assert warned == refused.replace("device: ", "device: using the CPU: ", 1) + "\n"
    for text in said:
        assert (text in refused) != text.startswith("!"), refused
    assert refused.endswith("or set device: cpu")
    assert choose_device("cpu").type == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "described",
    [
        {"cuda": None},
        {"cuda": None, "wsl": True, "driver": CLOSED.format("535.183.01")},
        {"files": "nvidiactl nvidia-uvm nvidia-modeset"},
        {"files": "dxg"},
        *({"CUDA_VISIBLE_DEVICES": value} for value in ("", "-1", " ", "NoDevFiles", "none")),
        *({"NVIDIA_VISIBLE_DEVICES": value} for value in ("", "void", "none")),
    ],
)
def test_without_cuda_or_a_gpu_or_where_it_is_hidden_the_cpu_is_taken(
    machine: Machine, described: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(available=False, **described)
    assert choose_device("auto").type == choose_device("cuda").type == "cpu"
    assert capsys.readouterr().err == "device: no CUDA GPU here, using the CPU\n"


@pytest.mark.parametrize(
    ("capability", "architectures", "advice"),
    [
        ((7, 5), OF_130, ""),
        ((8, 0), OF_130, ""),
        ((8, 9), OF_130, ""),  # by the code for 8.6
        ((10, 3), OF_130, ""),
        ((12, 1), OF_130, ""),
        ((13, 0), OF_130, ""),  # by PTX
        ((7, 0), OF_130, CUDA_126),
        ((6, 1), OF_130, CUDA_126),
        ((11, 0), OF_130, "pytorch.org"),  # no machine code, and the PTX is newer
        ((6, 1), OF_126, ""),
        ((7, 2), OF_126, ""),
        ((12, 0), OF_126, CUDA_130),
        ((3, 5), OF_126, "pytorch.org"),
        ((9, 0), "sm_90a", ""),
        ((9, 1), "sm_90a", "pytorch.org"),
        ((12, 0), "compute_90a", "pytorch.org"),
        ((10, 3), "sm_100f", ""),
        ((12, 0), "compute_90", ""),
        ((8, 0), "sm_86", "pytorch.org"),  # minor versions count upwards only
        ((9, 0), "", ""),  # a build that does not say
        ((9, 0), "gfx90a", "pytorch.org"),
    ],
)
def test_a_gpu_that_this_torch_has_no_code_for_is_not_tried(
    machine: Machine,
    capability: tuple[int, int],
    architectures: str,
    advice: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cuda = "12.6" if architectures == OF_126 else "13.0"
    machine(cuda, capability=capability, architectures=architectures)
    assert "cuda:1 does not exist" in refusal(lambda: choose_device("cuda:1"))
    if not advice:
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
        assert capsys.readouterr().err == ""
        return
    refused = refusal(lambda: choose_device("cuda:0"))
    assert "GeForce (sm_{}{})".format(*capability) in refused
    assert architectures in refused and advice in refused
    assert choose_device("auto").type == "cpu"
    assert capsys.readouterr().err == refused.replace(": ", ": using the CPU: ", 1) + "\n"
