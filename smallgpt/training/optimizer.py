"""AdamW or Muon, with two kinds of parameters."""

import torch
from torch import nn

from smallgpt.config import Config
from smallgpt.model.parameters import parameter_groups


def make_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """The optimizers that together train all parameters, at the rate of a `Schedule`.

    adamw: AdamW (arXiv:1711.05101), fused, for everything.
    muon: Muon (kellerjordan.github.io/posts/muon) for the matrices of the layers, its updates
    scaled to the size of AdamW's (arXiv:2502.16982); AdamW for embeddings, biases and norms.

    Matrices and embeddings decay; biases, norms and the tables of n-grams do not: most of their
    rows are seen too seldom to make up for it.
    """
    embeddings, in_layers, vectors = ([p for _, p in group] for group in parameter_groups(model))
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(torch.optim.Muon(in_layers, adjust_lr_fn="match_rms_adamw"))
        matrices = embeddings
    else:
        matrices = embeddings + in_layers
    optimizers.append(torch.optim.AdamW([{"params": matrices}, {"params": vectors}], fused=True))
    apply_settings(optimizers, config)
    return optimizers


def apply_settings(optimizers: list[torch.optim.Optimizer], config: Config) -> None:
    """Set betas and weight decay; after loading a state too, so that the config's word counts."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            vectors = any(p.dim() < 2 for p in group["params"])
            group["weight_decay"] = 0.0 if vectors else config.weight_decay
            if "betas" in group:
                group["betas"] = (config.beta1, config.beta2)
