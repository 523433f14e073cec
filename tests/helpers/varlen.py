"""Kernels for the CPU behind torch's variable-length attention, which has some for GPUs only.

What they replace is the arithmetic alone: signature, shapes and the path of the gradients are
torch's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen


def _texts(bounds: Tensor) -> Iterator[slice]:
    for begin, end in itertools.pairwise(bounds.tolist()):
        if end > begin:
            yield slice(begin, end)


def _weights(q_HTD: Tensor, k_HTD: Tensor) -> Tensor:
    """Causal attention weights within one text, (H, T, T)."""
    scores = q_HTD @ k_HTD.transpose(1, 2) * q_HTD.shape[2] ** -0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(2)


def _forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, bounds_k: Tensor, *rest: Any) -> Any:
    longest, _, causal = rest[:3]
    assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(q)
    assert bounds is bounds_k or bounds.equal(bounds_k)
    assert causal and int(bounds.diff().max()) <= longest
    y = torch.zeros(q.shape, dtype=q.dtype)
    for text in _texts(bounds):
        q_HTD, k_HTD, v_HTD = (t[text].transpose(0, 1) for t in (q, k, v))
        y[text] = (_weights(q_HTD, k_HTD) @ v_HTD).transpose(0, 1)
    return y, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def _backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    gradients = [torch.zeros(t.shape, dtype=t.dtype) for t in (q, k, v)]
    for text in _texts(rest[2]):
        dy, q_HTD, k_HTD, v_HTD = (t[text].transpose(0, 1) for t in (gradient, q, k, v))
        weights = _weights(q_HTD, k_HTD)
        of_weights = dy @ v_HTD.transpose(1, 2)
        of_scores = weights * (of_weights - (weights * of_weights).sum(2, keepdim=True))
        of_scores = of_scores * q.shape[2] ** -0.5
        parts = of_scores @ k_HTD, of_scores.transpose(1, 2) @ q_HTD, weights.transpose(1, 2) @ dy
        for whole, part in zip(gradients, parts, strict=True):
            whole[text] = part.transpose(0, 1)
    return tuple(gradients)


def varlen_on_cpu() -> None:
    """Let `varlen_attn` work on the CPU, until the process ends."""
    if not hasattr(varlen, "_varlen_attn"):
        pytest.skip("this torch has another variable-length attention")
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
