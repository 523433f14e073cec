"""Losses that raise what people prefer: DPO (arXiv:2305.18290) and KTO (arXiv:2402.01306).

Both look at how much likelier a reply has become than for the reference model, the one that
training began with: its reward is beta · (log p − log p of the reference), in nats.

Shapes: N pairs, or of kto rated replies    K replies that are scored of each: the better and the
    worse one, or the rated one; then one to other messages
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smallgpt.config import Config
from smallgpt.utils.errors import UserError

STILL = 0.05
"""Nats by which a reply must have become likelier or less likely: else nothing has moved."""
COLLAPSE = 1.0
"""Nats a token by which good replies may have become less likely."""


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


class Scored(NamedTuple):
    """Preferences, as the model and the reference score them.

    log_p, reference: (K, N), nats a reply.
    good: (N,), bool; of pairs all are.
    lengths: (N,), ids of the first reply.
    """

    log_p: Tensor
    reference: Tensor
    good: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class PreferenceFigures:
    """What a validation on preferences measured (see training.trainer.Measured).

    validation_loss: mean nats a pair, or of kto the mean loss of a rated reply.
    reward_margin: by how much the reward of good replies is the larger; NaN of one kind alone.
    reward_accuracy: share of pairs, or rated replies, on the right side.
    chosen_log_p, rejected_log_p: mean nats of a good and a bad reply; NaN without one.
    kl: see `divergence`.
    moved, margin, margin_error, fallen: of what is learnt from, in nats: by how much the first
        replies have changed; the margin without beta and its standard error; and by how much a
        token of the good ones has become less likely.
    """

    validation_loss: float
    reward_margin: float
    reward_accuracy: float
    chosen_log_p: float
    rejected_log_p: float
    kl: float
    moved: float
    margin: float
    margin_error: float
    fallen: float

    @staticmethod
    def of(
        config: Config, balance: Balance, held_back: Scored, learnt: Scored
    ) -> "PreferenceFigures":
        """The figures of scores on what is held back, and on what is learnt from."""
        ratio_KN, beta = held_back.log_p - held_back.reference, config.preference_beta
        kl, good_N = divergence(ratio_KN[-1]), held_back.good
        if config.preference_loss == "dpo":
            loss_N = dpo(ratio_KN[0], ratio_KN[1], beta, config.preference_smoothing)
            loss_N -= config.preference_likelihood * held_back.log_p[0] / held_back.lengths
            right_N = ratio_KN[0] > ratio_KN[1]
            chosen, rejected = held_back.log_p[0], held_back.log_p[1]
        else:
            loss_N = kto(ratio_KN[0], good_N, kl, beta, balance)
            right_N = (ratio_KN[0] > kl) == good_N
            chosen, rejected = held_back.log_p[0][good_N], held_back.log_p[0][~good_N]
        moved = learnt.log_p[0] - learnt.reference[0]
        fallen = -(moved / learnt.lengths)[learnt.good]
        return PreferenceFigures(
            loss_N.mean().item(),
            beta * _margin(held_back)[0],
            right_N.float().mean().item(),
            chosen.mean().item(),
            rejected.mean().item(),
            kl.item(),
            moved.abs().mean().item(),
            *_margin(learnt),
            fallen.mean().item(),
        )

    def as_dict(self) -> dict[str, float]:
        """The figures of what is held back, by name."""
        names = ("validation_loss", "reward_margin", "reward_accuracy", "chosen_log_p")
        figures = {name: getattr(self, name) for name in (*names, "rejected_log_p", "kl")}
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def __str__(self) -> str:
        forms = {
            "validation_loss": "validation loss {:.4f}",
            "reward_margin": "margin {:.3f}",
            "reward_accuracy": "{:.0%} right",
            "chosen_log_p": "log p of better replies {:.1f}",
            "rejected_log_p": "log p of worse ones {:.1f}",
            "kl": "KL {:.2f}",
        }
        return ", ".join(forms[name].format(value) for name, value in self.as_dict().items())


def _margin(scored: Scored) -> tuple[float, float]:
    """By how many nats good replies have gained on bad ones, and the standard error of it; NaN
    where there is only one kind."""
    ratio_KN = scored.log_p - scored.reference
    if len(ratio_KN) == 3:
        gain_N = ratio_KN[0] - ratio_KN[1]
        return gain_N.mean().item(), (gain_N.var(correction=0) / len(gain_N)).sqrt().item()
    kinds = [ratio_KN[0][scored.good], ratio_KN[0][~scored.good]]
    if not all(map(len, kinds)):
        return math.nan, math.nan
    variance = sum(float(kind.var(correction=0)) / len(kind) for kind in kinds)
    return (kinds[0].mean() - kinds[1].mean()).item(), math.sqrt(variance)


def reason_to_stop(config: Config, step: int, figures: PreferenceFigures) -> UserError | None:
    """Why a run cannot come to anything: nothing is learnt, or the good replies are lost."""
    if figures.fallen > COLLAPSE:
        how = "preference_likelihood=1 with dpo, " if config.preference_loss == "dpo" else ""
        return UserError(
            f"step {step}: better replies have become unlikely, by {figures.fallen:.1f} nats a "
            "token since the run began: it forgets how to talk",
            f"in another checkpoint_root, set {how}a lower lr (now {config.lr:g}) or a higher "
            f"preference_beta (now {config.preference_beta:g})",
        )
    patience = config.preference_patience
    still = figures.moved < STILL
    if not patience or step < patience or not (still or figures.margin <= figures.margin_error):
        return None
    problem = (
        f"step {step}: what is learnt from is told apart no better than before the first step "
        f"(by {figures.margin:.2f} ± {figures.margin_error:.2f} nats)"
    )
    if still:
        adapters = "; adapters take ten times the rate of the whole model" * bool(config.lora_rank)
        advice = (
            f"the model has hardly moved, by {figures.moved:.3f} nats a reply: raise lr (now "
            f"{config.lr:g}{adapters}), or lower warmup"
        )
    else:
        advice = (
            f"the model has moved, by {figures.moved:.2f} nats a reply, but not apart: are chosen "
            "and rejected mixed up in a part of the data, or labelled at random? do they differ in "
            "what the model can see (they are cut at block_size, unknown characters are <unk>)?\n"
            f"     if there is nothing wrong with them, lower lr (now {config.lr:g})"
        )
    return UserError(problem, f"{advice}\n     preference_patience=0 goes on all the same")
