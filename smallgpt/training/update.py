"""What every training step does around its loss: rate, scaled gradient, clipping, update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from smallgpt.config import Config
from smallgpt.model.parameters import parameter_groups
from smallgpt.runtime import Runtime
from smallgpt.training.optimizer import (
    apply_settings,
    learning_rate,
    make_optimizers,
)
from smallgpt.utils.errors import UserError


class DivergedError(UserError):
    """The loss is no longer a number; the weights are still those of the step before."""


class Updater:
    """A model, its optimizers, and the steps they have taken.

    Args:
        model: moved to the device; what of it requires gradients is trained, in place.
    """

    model: nn.Module

    def __init__(self, config: Config, runtime: Runtime, model: nn.Module) -> None:
        self.config = config
        self.runtime = runtime
        self.model = model
        self.optimizers = make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype == torch.float16
        )
        self.completed = 0
        """Steps taken."""

    def _set_rate(self) -> float:
        """Give the optimizers the rate of the step to come, and return it."""
        lr = learning_rate(self.completed, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _update(self, loss: float) -> float:
        """Take the step, and return the norm of the gradient before clipping.

        Raises:
            DivergedError: `loss` or the gradient is not finite; nothing was changed.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        largest = self.config.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()
        self._check_finite(loss, grad_norm)
        if math.isfinite(grad_norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.completed += 1
        return grad_norm

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        # With loss scaling an overflowing gradient is normal: that step is skipped.
        finite = math.isfinite(loss) and (self.scaler.is_enabled() or math.isfinite(grad_norm))
        if not finite:
            self.model.zero_grad(set_to_none=True)
            raise DivergedError(
                f"step {self.completed + 1}: the loss is {loss}, the gradient norm {grad_norm}",
                "lower lr, lengthen warmup_steps, or use dtype: float32",
            )

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on exactly; tensors and plain values only."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "completed": self.completed,
        }

    def load_state(self, state: dict[str, Any]) -> bool:
        """Go on from a state; False where the data is another, which begins anew.

        Raises:
            UserError: the state does not fit this model.
        """
        try:
            if "moments" in state:
                self._load_moments(state["moments"])
            else:
                for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            same_data = self._load_place(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"the training state does not fit this model: {error}") from None
        apply_settings(self.optimizers, self.config)
        return same_data

    def _load_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Go on with AdamW's state of another program, given by the parameters' names."""
        if len(self.optimizers) != 1:
            raise UserError("the checkpoint's optimizer is AdamW", "set optimizer: adamw")
        names = [name for group in parameter_groups(self.model) for name, _ in group]
        (optimizer,) = self.optimizers
        state = optimizer.state_dict()
        state["state"] = {number: moments[name] for number, name in enumerate(names) if moments}
        optimizer.load_state_dict(state)

    def _load_place(self, state: dict[str, Any]) -> bool:
        """Set the place in the data; False where the data is another."""
        self.completed = int(state["completed"])
        return True
