"""AdamW with two parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from smallgpt.config import Config


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101), fused; matrices and embeddings decay, biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors}], fused=True)
    apply_settings(optimizer, config)
    return optimizer


def apply_settings(optimizer: torch.optim.Optimizer, config: Config) -> None:
    """Set betas and weight decay; after loading a state too, so that the config's word counts."""
    for group, decay in zip(optimizer.param_groups, (config.weight_decay, 0.0), strict=True):
        group |= {"betas": (config.beta1, config.beta2), "weight_decay": decay}


def learning_rate(step: int, config: Config) -> float:
    """The rate of step `step` (from 0): linear warm-up, cosine to `min_lr` at `decay_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if step >= config.decay_steps:
        return config.min_lr
    progress = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2
