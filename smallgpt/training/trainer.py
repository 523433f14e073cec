"""THE loop: what happens in one training step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from smallgpt.config import Config
from smallgpt.data.packing import PackedRows, RowOrder
from smallgpt.distributed.world import World, replicate, without_averaging
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime, compiled, seed_everything
from smallgpt.training.update import Updater


@dataclass(frozen=True)
class StepResult:
    """loss: mean nats a target; grad_norm: before clipping; tokens: targets, without padding."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int


class Trainer(Updater):
    """Model, optimizer and place in the data.

    Every random number of a step is a function of the seed and the step, so `state` holds no
    generator and a resumed run is the run that was not interrupted.

    Args:
        model: moved to the device; trained in place.
        world: the processes that share each step. Their number does not change the run: all of
            them make the same batch, and each computes its part of the gradient.
    """

    model: GPT

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        model: GPT,
        rows: PackedRows,
        world: World = World(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(config, runtime, model)
        self.world = world
        self.replica = replicate(model, world)
        self.network = compiled(self.replica, config.compile, runtime.device)
        self.rows = rows
        self.order = RowOrder(len(rows), config.seed)
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
        lr = self._set_rate()
        rows = self.order.take(self.rows_used, config.train_batch)
        batch = self.rows.batch(rows, config.unk_rate, (config.seed, 4, step))
        tokens = max(1, batch.target_count())
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
                self._backward(summed / tokens * world.size)
            summed_loss += summed.item()
        loss = world.sum(summed_loss)[0] / tokens

        grad_norm = self._update(loss)
        self.rows_used += config.train_batch
        return StepResult(loss, grad_norm, lr, tokens)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on exactly; tensors and plain values only."""
        return {**super().state(), "rows_used": self.rows_used, "text": self._text_identity()}

    def _load_place(self, state: dict[str, Any]) -> bool:
        super()._load_place(state)
        same_text: bool = state["text"] == self._text_identity()
        self.rows_used = int(state["rows_used"]) if same_text else 0
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
