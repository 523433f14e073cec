"""The forward pass in C, against torch in float32."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallgpt.checkpoints import huggingface
from smallgpt.model import native
from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import read
from smallgpt.model.gpt import GPT
from smallgpt.model.inference import load_inference_weights
from smallgpt.model.quantized import Int4Linear, Int8Linear
from smallgpt.runtime import choose_precision
from smallgpt.utils import c_library
from tests.helpers.models import random_model

CPU = torch.device("cpu")
IDS = torch.randint(0, 30, (24,), generator=torch.Generator().manual_seed(0)).tolist()
ERROR = {"float32": 3e-5, "bfloat16": 0.03, "int8": 0.1, "int4": 0.1}
"""Largest error of a logit, in standard deviations of all of them, beside a model in float32 whose
weights are those that ours stand for. What remains is rounding of the inputs."""
SHAPES: dict[str, dict[str, Any]] = {
    "as trained": {},
    "no bias": {"bias": False},
    "untied": {"tied": False},
    "n-grams": {"ngram_order": 3, "ngram_rows": 97, "ngram_embd": 8},
    "GPT-2's GELU": {"activation": "gelu_new"},
    "wide heads": {"n_embd": 192, "n_head": 2},
    "odd widths": {"n_embd": 60, "n_head": 3, "vocab_size": 37},
    "one head": {"n_embd": 31, "n_head": 1},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_c(model: GPT, dtype: str) -> GPT:
    """The model as chat has it."""
    library = c_library.compiled(native.SOURCE, native.PURPOSE)
    assert library is not None, "a C compiler is needed"
    precision = choose_precision(dtype, CPU, 0)
    hollow = huggingface.hollow_model(model.config).eval()
    # Those of a file are stored the other way round.
    weights = {
        name: w.T.contiguous().T if w.dim() == 2 else w for name, w in model.state_dict().items()
    }
    return load_inference_weights(hollow, weights, precision.dtype, precision.bits, CPU, library)


def model_of(**changes: Any) -> GPT:
    """A random model. Wide ones have smaller weights, or attention would look at one key only."""
    model = random_model(**changes)
    for block in model.h:
        for parameter in block.parameters():
            if parameter.dim() == 2:
                parameter.data *= (32 / model.config.n_embd) ** 0.5
    return model


def in_float32(ours: GPT) -> GPT:
    """A model in torch with the weights that those of `ours` stand for."""
    weights = {name: w.float() for name, w in ours.state_dict().items()}
    config = ours.config
    for name, layer in ours.named_modules():
        if isinstance(layer, Int8Linear | Int4Linear):
            weights[f"{name}.weight"] = layer.weight
            if layer.bias is not None:
                weights[f"{name}.bias"] = layer.bias.float()
            if "lm_head.weight" not in weights:  # the head is rounded, the embedding is not
                weights["lm_head.weight"] = Int8Linear(weights["wte.weight"], None).weight
                config = replace(config, tied=False)
    model = GPT(config).eval()
    model.load_state_dict(weights)
    return model


def rounding_inputs(ours: GPT) -> GPT:
    """The same with each input of a matrix of integers rounded to 8 bits, of which 64 have a
    scale."""
    model = in_float32(ours)

    def rounded(layer: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
        x = inputs[0]
        groups = F.pad(x, (0, -x.shape[-1] % 64)).unflatten(-1, (-1, 64))
        scale = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / scale).nan_to_num().round() * scale).flatten(-2)[..., : x.shape[-1]]

    names = [n for n, layer in ours.named_modules() if isinstance(layer, Int8Linear | Int4Linear)]
    for name in {*names, "lm_head"} if names else ():
        model.get_submodule(name).register_forward_pre_hook(rounded)
    return model


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


def logits_in_turn(model: GPT, parts: list[list[int]]) -> Tensor:
    """Behind each part of a text, read one after the other."""
    cache = KeyValueCache(model.config, model.wte.weight)
    return torch.cat([read(model, cache, [0], [part]) for part in parts])


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_torch_in_float32(shape: str, dtype: str) -> None:
    torch.set_num_threads(2)
    ours = in_c(model_of(**SHAPES[shape]), dtype)
    assert ours.native is not None
    one_by_one = logits_in_turn(ours, [[token] for token in IDS])
    in_parts = logits_in_turn(ours, [IDS[:3], IDS[3:20], IDS[20:]])
    with torch.no_grad():
        exact = in_float32(ours)(torch.tensor([IDS]))[0]
        alike = rounding_inputs(ours)(torch.tensor([IDS]))[0]
    assert largest_error(one_by_one, exact) < ERROR[dtype]
    if (
        "int" in dtype and shape != "n-grams"
    ):  # an input that is nearly between two integers may go the other way
        assert (one_by_one - alike).square().mean().sqrt() < 0.01 * alike.std()
    if shape == "n-grams":  # their embeddings are torch's
        torch.testing.assert_close(in_parts, one_by_one[[2, 19, 23]])
    else:
        assert torch.equal(in_parts, one_by_one[[2, 19, 23]])


@pytest.mark.parametrize("ids", [[37], [-1], [2**40], [1] * 33])
def test_what_the_model_does_not_have_is_refused(ids: list[int]) -> None:
    ours = in_c(random_model(vocab_size=37, block_size=32), "float32")
    with pytest.raises(IndexError):
        logits_in_turn(ours, [ids])


@settings(max_examples=25)
@given(st.data())
def test_an_id_has_the_same_logits_alone_and_in_company(data: st.DataObject) -> None:
    """To the bit, in every precision and on any number of threads."""
    dtype = data.draw(st.sampled_from(list(ERROR)))
    lengths = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=12))
    torch.set_num_threads(data.draw(st.integers(1, 3)))
    ours = in_c(random_model(block_size=64), dtype)
    texts = [[(7 * n + 3 * at) % 30 for at in range(a + b)] for n, (a, b) in enumerate(lengths)]
    together = KeyValueCache(ours.config, ours.wte.weight, len(texts))
    for row, (before, _) in enumerate(lengths):
        read(ours, together, [row], [texts[row][:before]])
    rows = data.draw(st.permutations(range(len(texts))))
    if not rows:
        return
    new = [texts[row][lengths[row][0] :] for row in rows]
    logits = read(ours, together, rows, new)
    for row, behind in zip(rows, logits, strict=True):
        torch.set_num_threads(1)
        assert torch.equal(logits_in_turn(ours, [texts[row]])[0], behind)
        assert together.ids[row] == texts[row]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are options for x86-64")
@pytest.mark.parametrize("option", ["-march=x86-64", "-march=haswell"])
def test_older_processors_compute_the_same(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "haswell" in option and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(c_library, "FOR_THIS_CPU", (option,))
    monkeypatch.setattr(c_library, "compiled", c_library.compiled.__wrapped__)
    for dtype in ERROR:
        ours = in_c(model_of(n_embd=96, n_head=4), dtype)
        with torch.no_grad():
            expected = in_float32(ours)(torch.tensor([IDS]))[0]
        found = logits_in_turn(ours, [[token] for token in IDS])
        assert largest_error(found, expected) < ERROR[dtype]


def test_threads_with_models_of_their_own_do_not_disturb_each_other() -> None:
    models = [in_c(random_model(seed), "float32") for seed in range(3)]
    expected = [logits_in_turn(model, [IDS]) for model in models]
    wrong = list[int]()

    def ask(number: int, threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(40):
            if not torch.equal(logits_in_turn(models[number], [IDS]), expected[number]):
                wrong.append(number)

    asking = [threading.Thread(target=ask, args=(n, 1 + n % 2)) for n in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_while_threads_sleep_wakes_its_own() -> None:
    torch.set_num_threads(2)
    model = in_c(random_model(), "float32")
    expected = logits_in_turn(model, [IDS])
    time.sleep(0.1)  # long enough to fall asleep
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        for _ in range(4):
            if not torch.equal(logits_in_turn(model, [IDS]), expected):
                os._exit(1)
            time.sleep(0.1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    model = in_c(random_model(), "float32")
    expected = logits_in_turn(model, [IDS])
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(logits_in_turn(model, [IDS]), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(logits_in_turn(model, [IDS]), expected)
