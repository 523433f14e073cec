"""Low-rank adapters for the matrices of the layers (LoRA, arXiv:2106.09685).

A frozen matrix W gets two small ones that learn: y = x Wᵀ + scale · x Aᵀ Bᵀ. B begins with zeros,
so that training begins with the model as it is. `merged` adds scale · B A to W, and the network is
a plain GPT again.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smallgpt.model.classifier import Classifier
from smallgpt.model.gpt import GPT, Linear

A, B = ".lora_A", ".lora_B"
EMBEDDINGS = ("wte", "lm_head")
"""Modules that have a row for each id; not all models have the second."""
_OF_A_LAYER = re.compile(r"(^|\.)h\.\d+\..*\.weight$")
_FROZEN, ROWS = ".parametrizations.weight.original", ".parametrizations.weight.0.rows"
"""How names end: of a matrix with rows that learn, and of these rows."""


class AdaptedLinear(Linear):
    """A linear layer that is frozen, in whatever precision it is, and its adapter."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = linear.weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT does
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, x: Tensor, outputs: slice = slice(None)) -> Tensor:
        """(…, in) to (…, out), or to as many as `outputs` selects."""
        weight, bias = self.weight[outputs], None if self.bias is None else self.bias[outputs]
        if weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
            y = F.linear(x, weight, bias)
        else:
            y = _InItsPrecision.apply(x, weight)  # type: ignore[no-untyped-call]
            y = y if bias is None else y + bias
        return y + self.scale * F.linear(
            F.linear(self.dropout(x), self.lora_A), self.lora_B[outputs]
        )


class _InItsPrecision(torch.autograd.Function):
    """x Wᵀ in the precision of x. Only W as it is stays in memory for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ weight.to(gradient.dtype), None


class _WithRows(nn.Module):
    """Gives a matrix other last rows, which learn while the rest is frozen."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, frozen: Tensor) -> Tensor:
        """(V, E) to (V, E)."""
        return torch.cat([frozen[: len(frozen) - len(self.rows)], self.rows])


def add_adapters(
    model: nn.Module,
    targets: Iterable[str],
    rank: int,
    scale: float,
    dropout: float = 0.0,
    added_rows: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze a GPT, or the one in a classifier, and give it adapters that learn.

    Args:
        targets: matrices of a layer, such as attn.c_attn.
        added_rows: so many of the last rows of the embeddings learn too: of new characters.
        dtype: what the matrices are kept in while they are frozen.
    """
    gpt = model.transformer if isinstance(model, Classifier) else model
    assert isinstance(gpt, GPT)
    gpt.requires_grad_(False)
    for block in gpt.h:
        for name in targets:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.data = linear.weight.data.to(dtype)
            block.set_submodule(name, AdaptedLinear(linear, rank, scale, dropout))
    for name in EMBEDDINGS:
        module = getattr(gpt, name, None)
        if added_rows and module is not None:
            rows = module.weight.detach()[-added_rows:].clone()
            parametrize.register_parametrization(module, "weight", _WithRows(rows), unsafe=True)


def own_precision(weights: Mapping[str, Tensor]) -> torch.dtype:
    """bfloat16 or float16, if the matrices of the layers lose nothing in it, such as those of a
    file in that precision; else float32."""
    matrices = [w for name, w in weights.items() if _OF_A_LAYER.search(name) and w.dim() == 2]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(w.to(dtype).to(w.dtype), w) for w in matrices):
            return dtype
    return torch.float32


def learnt(model: nn.Module) -> dict[str, Tensor]:
    """What learns: adapters, rows of new characters, the head of a classifier."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def adapted(frozen: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model with adapters; `frozen` is that of the model without them."""
    result = dict(frozen) | dict(adapters)
    for name in adapters:
        if name.endswith(ROWS):
            module = name.removesuffix(ROWS)
            result[module + _FROZEN] = result.pop(module + ".weight")
    return result


def merged(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict without adapters, in float32, of one with them, which are scaled by `alpha` /
    rank."""
    result = dict(weights)
    for name in weights:
        if name.endswith(A):
            module = name.removesuffix(A)
            low, high = result.pop(module + A).float(), result.pop(module + B).float()
            more = alpha / len(low) * (high @ low)
            result[module + ".weight"] = result[module + ".weight"].float() + more
        elif name.endswith(ROWS):
            module, rows = name.removesuffix(ROWS), result.pop(name)
            frozen = result.pop(module + _FROZEN)
            result[module + ".weight"] = torch.cat([frozen[: len(frozen) - len(rows)], rows])
    return {name: weight.float() for name, weight in result.items()}
