"""Inference weights: int8, packed, and which is chosen; against computations in float32."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smallgpt
from smallgpt import runtime
from smallgpt.chat.chatbot import Chatbot
from smallgpt.checkpoints import huggingface
from smallgpt.config import SamplingConfig
from smallgpt.model import inference
from smallgpt.model.cache import KeyValueCache, Reading
from smallgpt.model.generate import Request, read
from smallgpt.model.gpt import GPT
from smallgpt.model.inference import PackedLinear, load_inference_weights
from smallgpt.model.quantized import Int8Linear, has_fast
from smallgpt.runtime import Precision, choose_precision
from smallgpt.utils import background
from tests.helpers.commands import refusal
from tests.helpers.models import TINY, random_model, vocabulary

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 4, 1, 7, 3]])
WARM = SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=20)


def filled(model: GPT, dtype: str) -> GPT:
    precision = choose_precision(dtype, CPU, 0)
    hollow = huggingface.hollow_model(model.config).eval()
    return load_inference_weights(hollow, model.state_dict(), precision.dtype, precision.bits, CPU)


@pytest.mark.parametrize("shape", [(5, 7), (64, 96), (33, 1), (1, 40)])
def test_int8_is_off_by_half_a_step_in_every_channel(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]
    weight[0] = 0
    layer = Int8Linear(weight, None)
    error = (layer.weight - weight).abs().amax(1)
    assert (error <= 0.501 * layer.scale.float()).all()
    assert error[0] == 0
    assert layer.integers.abs().max() <= 127


@pytest.mark.parametrize("shape", [(5, 7), (64, 96), (192, 64), (3, 130)])
@pytest.mark.parametrize("rows", [1, 2, 8, 50])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("processor", ["with bfloat16", "without"])
def test_linear_layers_compute_what_they_stand_for(
    shape: tuple[int, int],
    rows: int,
    with_bias: bool,
    processor: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(1, rows, shape[1])
    bias = torch.randn(shape[0]) if with_bias else None
    short = None if bias is None else bias.bfloat16()
    x16, size = x.bfloat16(), x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(PackedLinear(weight, bias)(x), F.linear(x, weight, bias))
    layers: list[Int8Linear | PackedLinear] = [Int8Linear(weight, short)]
    if has_fast(torch.bfloat16):  # on another processor it is never made
        layers.append(PackedLinear(weight.bfloat16(), short))
        assert torch.equal(layers[1].weight, weight.bfloat16())
    if processor == "without":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for layer in layers:
        expected = F.linear(x16.float(), layer.weight.float(), bias)
        assert ((layer(x16).float() - expected).abs() <= 0.03 * size + 0.03).all()
        side_by_side = layer(x16.transpose(0, 1)).transpose(0, 1)
        assert ((side_by_side.float() - expected).abs() <= 0.03 * size + 0.03).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "int8", "not packed"])
def test_logits_are_those_of_the_weights_in_float32(
    how: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind others that were read, kept and read again; the tied head is the embedding."""
    if how == "not packed":  # a processor without oneDNN
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = random_model(bias=bias, ngram_order=4, ngram_rows=97, ngram_embd=8)
    ours = filled(model, "bfloat16" if how == "not packed" else how)
    dtype = torch.float32 if how == "float32" else torch.bfloat16
    if how == "int8" or has_fast(dtype):
        assert not any(isinstance(module, nn.Linear) for module in ours.modules())
    assert {p.device for p in ours.parameters()} == {CPU}
    assert {p.dtype for p in ours.parameters()} == {dtype}
    for name, layer in ours.named_modules():
        if isinstance(layer, Int8Linear):
            model.state_dict()[f"{name}.weight"].copy_(layer.weight)
    cache = KeyValueCache(model.config, ours.wte.weight)

    def read_all(ids: Tensor) -> Tensor:
        reading = Reading(cache, [0], ids.tolist())
        return ours(reading.ids_N1, reading=reading)[:, 0].float()

    with torch.no_grad():
        expected = model(IDS)[0]
        parts = [read_all(part) for part in IDS.split([3, 2, 1], dim=1)]
        assert cache.keep_prefix(0, [*IDS[0, :4].tolist(), 0]) == 4
        parts.append(read_all(IDS[:, 4:]))
    tolerance = 1e-4 if how == "float32" else 0.03 * expected.std().item() + 0.05
    assert (torch.cat(parts) - torch.cat([expected, expected[4:]])).abs().max() < tolerance


@pytest.mark.parametrize("how", ["float32", "bfloat16", "int8"])
def test_rows_side_by_side_have_the_logits_they_have_alone(how: str) -> None:
    model = filled(random_model(), how)
    texts = [IDS[0, :length].tolist() for length in (3, 1, 6, 5)]
    alone, together = (KeyValueCache(model.config, model.wte.weight, rows=6) for _ in range(2))
    for new in (texts, [[9], [4], [7], [3]], [[5, 6], [8], [2], [4] * 9]):
        expected = torch.cat([read(model, alone, [row], [ids]) for row, ids in enumerate(new)])
        found = read(model, together, [5, 1, 2, 0], new)
        assert found.dtype == torch.float32
        tolerance = 1e-4 if how == "float32" else 0.03 * expected.std().item() + 0.05
        assert (found - expected).abs().max() < tolerance


def test_a_gpu_has_read_a_prompt_and_said_something_before_the_first_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then its kernels are loaded. (`meta` stands for the GPU, and computes nothing.)"""
    said = list[tuple[int, int]]()

    def generate(model: GPT, request: Request) -> list[int]:
        assert model.wte.weight.device.type == "meta"
        said.append((len(request.context), request.sampling.max_new_tokens))
        return []

    monkeypatch.setattr(inference, "generate", generate)
    model = random_model()
    for device in (CPU, torch.device("meta")):
        hollow = huggingface.hollow_model(model.config).eval()
        load_inference_weights(hollow, model.state_dict(), torch.bfloat16, None, device)
    assert said == [(16, 2)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_same_seed_and_talk_give_the_same_replies(dtype: str) -> None:
    bots = [Chatbot(filled(random_model(), dtype), vocabulary(), WARM, seed=3) for _ in range(2)]
    first, second = ([bot.reply("你好"), bot.reply("晚安")] for bot in bots)
    assert first == second


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "int8"])
def test_a_trained_model_says_the_same_in_any_precision(trained: Path, dtype: str) -> None:
    assert smallgpt.load(trained, dtype=dtype).reply("早上好呀") == "早上好！睡得好吗？"


@pytest.mark.parametrize(("native", "large"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_16_bits_for_large_models_on_processors_that_have_them(
    native: bool, large: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", CPU, runtime.LARGE) == Precision(large)
    assert choose_precision("auto", CPU, runtime.LARGE - 1) == Precision(torch.float32)
    assert choose_precision("int8", CPU, 0) == Precision(torch.bfloat16, bits=8)


def test_float16_needs_a_gpu_and_int8_is_not_for_training(trained: Path) -> None:
    assert "float16 needs a GPU" in refusal(lambda: smallgpt.load(trained, dtype="float16"))
    said = refusal(lambda: runtime.start(replace(TINY, dtype="int8")))
    assert "int8 is for talking" in said
    assert "dtype: auto" in said


def test_a_chat_may_begin_before_its_weights_are_ready(trained_copy: Path) -> None:
    assert smallgpt.load(trained_copy, wait=False).reply("早上好呀") == "早上好！睡得好吗？"
    file = trained_copy / huggingface.WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    talk = smallgpt.load(trained_copy, wait=False).conversation()
    assert "is damaged" in refusal(lambda: talk.reply("早上好呀"))
    assert talk.messages == []
    assert "is damaged" in refusal(lambda: smallgpt.load(trained_copy))


def test_work_in_the_background_hands_back_its_result_or_its_error() -> None:
    assert background.begin(lambda: threading.current_thread()).result() is not (
        threading.current_thread()
    )
    with pytest.raises(ZeroDivisionError):
        background.begin(lambda: 1 / 0).result()
    background.end_with_the_program()  # the program is not ending
