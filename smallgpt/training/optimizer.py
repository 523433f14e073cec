"""AdamW or Muon, with two kinds of parameters."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from smallgpt.config import Config
from smallgpt.model.parameters import parameter_groups
from smallgpt.runtime import choose_dtype


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
        optimizers.append(Muon(in_layers, adjust_lr_fn="match_rms_adamw"))
        matrices = embeddings
    else:
        matrices = embeddings + in_layers
    optimizers.append(torch.optim.AdamW([{"params": matrices}, {"params": vectors}], fused=True))
    apply_settings(optimizers, config)
    return optimizers


class Muon(torch.optim.Muon):
    """torch's, whose iteration is in bfloat16; here in float32 on a CPU that has no products in
    bfloat16, where they would take more than ten times as long."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, as torch's does."""
        device = self.param_groups[0]["params"][0].device
        if device.type != "cpu" or choose_dtype("auto", device)[0] == torch.bfloat16:
            return super().step(closure)  # type: ignore[no-untyped-call]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalized(p.grad.lerp(momentum, group["momentum"]), group)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * math.sqrt(max(p.shape)) * group["lr"])
        return None


def orthogonalized(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """The nearest matrix whose singular values are all about 1, by Newton-Schulz iteration
    (kellerjordan.github.io/posts/muon), in float32.

    Args:
        group: Muon's settings: ns_coefficients, ns_steps and eps.
    """
    a, b, c = group["ns_coefficients"]
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def apply_settings(optimizers: list[torch.optim.Optimizer], config: Config) -> None:
    """Set betas and weight decay; after loading a state too, so that the config's word counts."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            vectors = any(p.dim() < 2 for p in group["params"])
            group["weight_decay"] = 0.0 if vectors else config.weight_decay
            if "betas" in group:
                group["betas"] = (config.beta1, config.beta2)
