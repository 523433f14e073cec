"""THE loop: what happens in one training step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from smallgpt.config import Config
from smallgpt.data.order import RowOrder
from smallgpt.data.packing import PackedRows
from smallgpt.distributed import World, replicate, without_averaging
from smallgpt.errors import UserError
from smallgpt.model import GPT
from smallgpt.runtime import Runtime, compiled, seed_everything
from smallgpt.training.optimizer import apply_settings, learning_rate, make_optimizers


class DivergedError(UserError):
    """The loss is no longer a number; the weights are still those of the step before."""


@dataclass(frozen=True)
class StepResult:
    """loss: mean nats a target; grad_norm: before clipping; tokens: targets, without padding."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int


class Trainer:
    """Model, optimizer and place in the data.

    Every random number of a step is a function of the seed and the step, so `state` holds no
    generator and a resumed run is the run that was not interrupted.

    Args:
        model: moved to the device; trained in place.
        world: the processes that share each step. Their number does not change the run: all of
            them make the same batch, and each computes its part of the gradient.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        model: GPT,
        rows: PackedRows,
        world: World = World(),  # noqa: B008 - it is frozen
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.world = world
        self.model = model
        self.replica = replicate(model, world)
        self.network = compiled(self.replica, config.compile, runtime.device)
        self.rows = rows
        self.order = RowOrder(len(rows), config.seed)
        self.optimizers = make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype == torch.float16
        )
        self.completed = 0
        """Steps taken."""
        self.rows_used = 0
        """Rows of the order consumed."""
        if world.size > 1:
            self._arrange_buckets()

    def _arrange_buckets(self) -> None:
        """Let DDP put gradients into the order they become ready in, which it learns in one pass.

        Else it would do so in the first step, and the sums of a resumed run would be in another
        order than those of the run that was not interrupted.
        """
        row = self.rows.batch(np.zeros(1, np.int64)).to(self.runtime.device)
        with self.runtime.autocast():
            loss = self.replica(row.ids, row.positions, row.documents, None, row.targets)
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    def step(self) -> StepResult:
        """One optimizer step over `train_batch` rows.

        Raises:
            DivergedError: the loss or the gradient is not finite; nothing was changed.
        """
        config, step, world = self.config, self.completed, self.world
        seed_everything(config.seed, 3, step, world.rank)
        lr = learning_rate(step, config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

        rows = self.order.take(self.rows_used, config.train_batch)
        batch = self.rows.batch(rows, config.unk_rate, (config.seed, 4, step))
        tokens = batch.target_count()
        parts = batch.parts(config.accumulate * world.size)[world.rank :: world.size]
        summed_loss = 0.0
        for number, part in enumerate(parts, start=1):
            part = part.to(self.runtime.device)
            last = number == len(parts)
            with nullcontext() if last else without_averaging(self.replica):
                with self.runtime.autocast():
                    summed = self.network(
                        part.ids, part.positions, part.documents, None, part.targets
                    )
                # The mean over all targets of the step, however it is split: what is averaged over
                # the processes is each one's share of the sum, times their number.
                self.scaler.scale(summed / tokens * world.size).backward()
            summed_loss += summed.item()
        loss = world.sum(summed_loss)[0] / tokens

        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        largest = config.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()
        self._check_finite(loss, grad_norm)
        if math.isfinite(grad_norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.completed += 1
        self.rows_used += config.train_batch
        return StepResult(loss, grad_norm, lr, tokens)

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
            "rows_used": self.rows_used,
            "text": self._text_identity(),
        }

    def load_state(self, state: dict[str, Any]) -> bool:
        """Go on from a state; False where the text is another one, whose rows begin anew.

        Raises:
            UserError: the state does not fit this model.
        """
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            self.completed = int(state["completed"])
            same_text = state["text"] == self._text_identity()
            self.rows_used = int(state["rows_used"]) if same_text else 0
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"the training state does not fit this model: {error}") from None
        apply_settings(self.optimizers, self.config)
        return same_text

    def _text_identity(self) -> list[Any]:
        """What the sequence of rows depends on."""
        config = self.config
        return [
            self.rows.corpus.fingerprint,
            config.train_percent,
            config.block_size,
            config.seed,
        ]
