"""Attention of queries to keys and values, and its masks. Shapes are named as in `gpt.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + mask) v, shape (B, H, T, D); without a mask, causal.

    This is `scaled_dot_product_attention`, written out where that is several times as fast: for
    packed rows in 16 bits and for a single position, both on a CPU (docs/log.md).
    """
    on_cpu, several = q_BHTD.device.type == "cpu", q_BHTD.shape[2] > 1
    added = mask is None or mask.dtype != torch.bool
    if on_cpu and added and not several and not dropout:
        q_ND1 = (q_BHTD * q_BHTD.shape[-1] ** -0.5).flatten(0, 1).transpose(1, 2)
        scores_NS1 = torch.bmm(k_BHSD.flatten(0, 1), q_ND1)
        if mask is not None:
            scores_NS1 = (scores_NS1.unflatten(0, (len(mask), -1)) + mask.mT).flatten(0, 1)
        weights_N1S = F.softmax(scores_NS1.transpose(1, 2), dim=-1)
        return torch.bmm(weights_N1S, v_BHSD.flatten(0, 1)).view(q_BHTD.shape)
    if on_cpu and mask is not None and several and q_BHTD.dtype != torch.float32:
        scores_BHTS = (q_BHTD * q_BHTD.shape[-1] ** -0.5) @ k_BHSD.transpose(-1, -2)
        weights_BHTS = F.softmax(scores_BHTS.add_(mask), dim=-1)
        return F.dropout(weights_BHTS, dropout) @ v_BHSD
    # A branch, as a compiler that takes the length as unknown must know this for certain.
    causal = True if mask is None and several else False  # noqa: SIM210
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, mask, dropout, causal)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of 0 and -inf in the precision that attention is computed in."""
    if torch.is_autocast_enabled(allowed.device.type):
        dtype = torch.get_autocast_dtype(allowed.device.type)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf"))
