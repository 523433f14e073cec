"""Choice of device and precision."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.nn.attention import varlen

from smallgpt import runtime
from smallgpt.config import Config, Dtype
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_what_there_is_and_what_there_is_not_falls_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cuda: bool,
    mps: bool,
    auto: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert runtime.choose_device("auto").type == auto
    for name, here, maker in (("cuda", cuda, "CUDA"), ("mps", mps, "Apple")):
        assert runtime.choose_device(name).type == (name if here else "cpu")
        said = "" if here else f"device: no {maker} GPU here, using the CPU\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "cpu:x"])
def test_impossible_devices_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="device"):
        runtime.choose_device(name)


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"),
    [(1, 0, torch.bfloat16), (0, 1, torch.bfloat16), (0, 0, torch.float32)],
)
def test_cpu_precision_is_what_the_cpu_does_fast(
    monkeypatch: pytest.MonkeyPatch, bf16: int, amx: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    dtype, reason = runtime.choose_dtype("auto", CPU)
    assert dtype == expected
    assert "native" in reason


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)],
)
def test_gpu_precision_follows_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert runtime.choose_dtype("auto", torch.device("cuda"))[0] == expected


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_float32_is_float32_on_a_gpu_too_and_compiling_it_recommends_no_other(
    monkeypatch: pytest.MonkeyPatch, dtype: Dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with warnings.catch_warnings(record=True) as warned:
        assert runtime.start(replace(Config(device="cuda"), dtype=dtype)).device.type == "cuda"
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        code = Path(torch.__file__).parent / "_inductor" / "compile_fx.py"
        advice = re.search(
            r'def _warn_tf32_disabled.*?"(TensorFloat32 .*?)"', code.read_text(), re.S
        )
        assert advice
        warnings.warn(advice[1], stacklevel=1)
    assert warned == []


@pytest.mark.parametrize(
    ("capability", "quicker"), [((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")]
)
def test_int8_is_refused_where_it_is_slower(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], quicker: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    said = refusal(lambda: runtime.choose_precision("int8", torch.device("cuda", 0), 10**9))
    assert f"{quicker} is faster on this GPU" in said and "dtype at auto" in said
    assert runtime.choose_precision("int8", torch.device("mps"), 10**9).bits == 8


def test_named_precision_is_taken_but_float16_needs_a_gpu() -> None:
    assert runtime.choose_dtype("float32", CPU) == (torch.float32, "as configured")
    with pytest.raises(UserError, match="float16 needs a GPU"):
        runtime.choose_dtype("float16", CPU)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "changes", "missing"),
    [
        ("cuda", torch.bfloat16, (8, 0), {}, ""),
        ("cuda", torch.float16, (12, 0), {}, ""),
        ("cpu", torch.bfloat16, (0, 0), {}, "an NVIDIA GPU of Ampere"),
        ("mps", torch.float32, (0, 0), {}, "an NVIDIA GPU of Ampere"),
        ("cuda", torch.float16, (7, 5), {}, "an NVIDIA GPU of Ampere"),
        ("cuda", torch.float32, (9, 0), {}, "bfloat16 or float16"),
        ("cuda", torch.bfloat16, (9, 0), {"n_head": 64}, "a multiple of 8 up to 256"),
        ("cuda", torch.bfloat16, (9, 0), {"n_head": 2}, "a multiple of 8 up to 256"),
    ],
)
def test_variable_length_attention_is_taken_where_it_can_be_had(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    changes: dict[str, Any],
    missing: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    here = runtime.Runtime(torch.device(device), dtype, "for tests")
    config = Config(**changes)
    assert runtime.with_attention(here, config) == replace(here, varlen=not missing)
    assert not runtime.with_attention(here, replace(config, attention="mask")).varlen
    if missing:
        with pytest.raises(UserError, match=f"attention: varlen needs .*{missing}"):
            runtime.with_attention(here, replace(config, attention="varlen"))


def test_a_torch_whose_variable_length_attention_is_another_one_takes_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: query)
    here = runtime.Runtime(torch.device("cuda"), torch.bfloat16, "for tests")
    assert not runtime.with_attention(here, Config()).varlen
    with pytest.raises(UserError, match="varlen needs a newer torch"):
        runtime.with_attention(here, Config(attention="varlen"))


def test_seeds_of_different_numbers_differ() -> None:
    drawn = set()
    for numbers in [(1, 2), (2, 1), (1, 2, 0), (12,), (1, 3)]:
        runtime.seed_everything(*numbers)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 5


def test_compiling_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not runtime.can_compile(CPU)
    assert "no C++ compiler" in capsys.readouterr().err


def test_copies_to_a_gpu_are_pinned_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, here, gpu = Mock(), torch.zeros(2), torch.device("cuda", 0)
    assert runtime.to_device(here, CPU) is here
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned)
    assert runtime.to_device(here, gpu) is pinned.to.return_value
    pinned.to.assert_called_once_with(gpu, non_blocking=True)
