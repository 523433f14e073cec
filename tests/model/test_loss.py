"""The loss against an independent computation: values, gradients, precision, chunks."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from smallgpt.model import loss as loss_module
from smallgpt.model.loss import IGNORED, next_token_loss


def example(rows: int, width: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.3] = IGNORED
    return x.requires_grad_(), weight.requires_grad_(), targets


def test_nothing_counted_is_no_loss_and_no_gradient() -> None:
    x, weight, _ = example(5, 4, 7)
    loss = next_token_loss(x, weight, torch.full((5,), IGNORED))
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_value_and_gradients_are_those_of_cross_entropy(rows: int, chunk: int, seed: int) -> None:
    x, weight, targets = example(rows, 4, 11, seed)
    logits = F.linear(x, weight)
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK", chunk)
        loss = next_token_loss(x, weight, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    # Logits are in float64 here, the softmax in float32.
    ours, theirs = (torch.autograd.grad(0.25 * y, (x, weight)) for y in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_mixed_precision_is_near_the_exact_loss() -> None:
    x, weight, targets = example(300, 32, 50)
    x, weight = (t.detach().float().requires_grad_() for t in (x, 0.1 * weight))
    exact = next_token_loss(x, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = next_token_loss(x, weight, targets)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=2e-3)
    gradients = [torch.autograd.grad(loss, (x, weight)) for loss in (mixed, exact)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, None])
def test_where_gradients_are_off_none_are_computed(off: Any) -> None:
    x, weight, targets = example(6, 4, 64)
    with FlopCounterMode(display=False) as learning:
        expected = next_token_loss(x, weight, targets)
    if off is None:  # nothing needs any
        x, weight, off = x.detach(), weight.detach(), contextlib.nullcontext
    with off(), FlopCounterMode(display=False) as measuring:
        loss = next_token_loss(x, weight, targets)
    assert loss.item() == expected.item()
    assert measuring.get_total_flops() == 2 * 6 * 4 * 64
    assert learning.get_total_flops() == 3 * measuring.get_total_flops()


def test_only_one_chunk_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = example(10, 4, 11)  # the head is filled up to 64 rows
    sizes = []
    real = F.log_softmax

    def watched(logits: Tensor, *args: object, **kwargs: object) -> Tensor:
        sizes.append(tuple(logits.shape))
        return real(logits, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loss_module, "CHUNK", 4)
    monkeypatch.setattr(F, "log_softmax", watched)
    next_token_loss(x, weight, targets).backward()
    assert sizes == [(4, 64), (4, 64), (2, 64)]
