"""Losses that raise what people prefer: DPO (arXiv:2305.18290) and KTO (arXiv:2402.01306).

Both look at how much likelier a reply has become than for the reference model, the one that
training began with: its reward is beta · (log p − log p of the reference), in nats.

Shapes: N pairs, or replies.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Balance:
    """How much a good and a bad reply count in KTO: so that both kinds count alike, however many
    there are."""

    good: float
    bad: float

    @staticmethod
    def of(good: int, bad: int) -> "Balance":
        """For so many good and bad replies; the more frequent kind counts 1."""
        most = max(good, bad)
        return Balance(most / max(good, 1), most / max(bad, 1))


def dpo(chosen_N: Tensor, rejected_N: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """The loss of each pair, (N,), nats: −log σ(beta · (chosen − rejected)); log 2 at the start.

    Args:
        chosen_N, rejected_N: log p − log p of the reference, of the better and the worse reply.
        smoothing: the share of pairs taken to be the wrong way round.
    """
    margin_N = beta * (chosen_N - rejected_N)
    return -(1 - smoothing) * F.logsigmoid(margin_N) - smoothing * F.logsigmoid(-margin_N)


def kto(ratio_N: Tensor, good_N: Tensor, kl: Tensor, beta: float, balance: Balance) -> Tensor:
    """The loss of each reply, (N,): 1 − σ(beta · (ratio − kl)) of a good one, 1 − σ(beta · (kl −
    ratio)) of a bad one, weighted by `balance`.

    Args:
        ratio_N: log p − log p of the reference.
        good_N: bool.
        kl: an estimate of how far the model is from the reference, a scalar, see `divergence`.
    """
    away_N = beta * (ratio_N - kl)
    weight_N = torch.where(good_N, balance.good, balance.bad)
    return weight_N * (1 - torch.where(good_N, away_N, -away_N).sigmoid())


def divergence(ratio_N: Tensor) -> Tensor:
    """KTO's estimate of KL(model ‖ reference), a scalar in nats a reply: the mean of log p − log p
    of the reference over replies to other messages than these, and at least 0."""
    return ratio_N.detach().mean().clamp(min=0)
