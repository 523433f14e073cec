"""Next-token cross-entropy taken from the last layer's output, without keeping all logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target that is not counted in the loss."""
CHUNK = 2048
"""Positions whose logits exist at a time: enough for full-speed matrix products."""
_MULTIPLE = 64
"""The head gets rows up to a multiple of this; a GPU multiplies other sizes at half the speed."""


def next_token_loss(x_NE: Tensor, weight_VE: Tensor, targets_N: Tensor) -> Tensor:
    """Summed cross-entropy in nats of softmax(x weightᵀ) over the targets that count: a scalar in
    float32, though matrix products run in autocast's precision.

    The gradient is computed along with the loss, chunk by chunk, while a chunk's logits are at
    hand ("Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009, has the idea):
    logits and their gradient, the largest tensors of a step, are never kept. Where gradients are
    off, or nothing needs them, only the loss is computed.

    Args:
        x_NE: output of the last norm.
        weight_VE: the head.
        targets_N: ids, `IGNORED` where nothing is to be learnt.
    """
    kind = x_NE.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_NE.dtype
    # Inside the function gradients are always off.
    with_gradient = torch.is_grad_enabled() and (x_NE.requires_grad or weight_VE.requires_grad)
    loss: Tensor = _NextTokenLoss.apply(  # type: ignore[no-untyped-call]
        x_NE, weight_VE, targets_N, dtype, with_gradient
    )
    return loss


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NE: Tensor,
        weight_VE: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> Tensor:
        V, E = weight_VE.shape
        weight = weight_VE.new_zeros(-(-V // _MULTIPLE) * _MULTIPLE, E, dtype=dtype)
        weight[:V] = weight_VE
        loss = torch.zeros((), device=x_NE.device)
        dx_NE = torch.empty_like(x_NE, dtype=dtype) if with_gradient else None
        learns = with_gradient and ctx.needs_input_grad[1]  # a head that is frozen does not
        dweight = torch.zeros_like(weight, dtype=weight_VE.dtype) if learns else None
        for start in range(0, len(x_NE), CHUNK):
            part = slice(start, start + CHUNK)
            x, targets = x_NE[part].to(dtype), targets_N[part, None]
            counted = targets != IGNORED
            targets = targets.where(counted, 0)
            logits = x @ weight.t()
            logits[:, V:] = -torch.inf
            log_p = F.log_softmax(logits, dim=1, dtype=torch.float32)
            of_targets = log_p.gather(1, targets)
            loss -= of_targets.where(counted, 0.0).sum()
            if dx_NE is not None:
                gradient = log_p.exp_().scatter_(1, targets, of_targets.exp() - 1)
                gradient = gradient.mul_(counted).to(dtype)
                dx_NE[part] = gradient @ weight
                if dweight is not None:
                    dweight += gradient.t() @ x
        if with_gradient:
            ctx.save_for_backward(dx_NE, None if dweight is None else dweight[:V])
            ctx.dtype = x_NE.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx_NE, dweight_VE = ctx.saved_tensors
        (scale,) = gradients
        dweight_VE = None if dweight_VE is None else dweight_VE * scale
        return (dx_NE * scale).to(ctx.dtype), dweight_VE, None, None, None
