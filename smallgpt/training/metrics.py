"""What a run tells: progress bar, metrics.jsonl and TensorBoard. Nothing here changes the run."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smallgpt.training.trainer import StepResult
from smallgpt.training.validation import Validation
from smallgpt.utils.errors import UserError

METRICS_FILE = "metrics.jsonl"
_SMOOTHING = 0.1


class Report:
    """Writes down every step and evaluation.

    Args:
        root: folder of the run; metrics.jsonl in it gets one JSON object a line.
        tensorboard_path: folder for TensorBoard, or None.
        completed: steps taken before; what an earlier run wrote behind that step is dropped.
        last_step: where training will end.
    """

    def __init__(
        self, root: Path, tensorboard_path: str | None, completed: int, last_step: int
    ) -> None:
        self._writer = None
        if tensorboard_path:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            try:
                self._writer = SummaryWriter(tensorboard_path, purge_step=completed + 1)
            except OSError as error:
                raise UserError(f"tensorboard_path: {tensorboard_path}: {error}") from None
        try:
            self.seconds = _keep_until(root / METRICS_FILE, completed)
            """Seconds of training, of resumed runs together; without validating and saving."""
            self._metrics = (root / METRICS_FILE).open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{root / METRICS_FILE}: {error.strerror}") from None
        self._warned = False
        self._loss: float | None = None
        self._speed: float | None = None
        self._bar = tqdm(
            total=last_step,
            initial=completed,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def step(self, step: int, result: StepResult, seconds: float) -> None:
        """Record one step that took `seconds`."""
        self.seconds += seconds
        speed = result.tokens / seconds
        self._loss = _smooth(self._loss, result.loss)
        self._speed = _smooth(self._speed, speed)
        self._bar.set_postfix_str(f"loss {self._loss:.3f}, {self._speed:,.0f} tokens/s", False)
        self._bar.update()
        self._write(
            step,
            {
                "loss": result.loss,
                "lr": result.lr,
                "tokens_per_second": round(speed, 1),
                "grad_norm": result.grad_norm,
                "seconds": round(self.seconds, 3),
            },
        )

    def evaluation(self, step: int, validation: Validation, replies: list[tuple[str, str]]) -> None:
        """Record a validation, with sample prompts and replies."""
        self.say(f"step {step}: {validation}")
        for prompt, reply in replies:
            self.say(f"    {prompt}  ->  {reply}")
        self._write(step, validation.as_dict(), {"replies": replies})
        if self._writer is not None:
            text = "\n\n".join(f"{prompt} -> {reply}" for prompt, reply in replies)
            self._writer.add_text("replies", text, step)

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        """Finish the bar and the files."""
        self._bar.close()
        for file in (self._metrics, self._writer):
            # A full disk was told when it was met; the error that ends the run must not be hidden.
            with suppress(OSError):
                if file is not None:
                    file.close()

    def _write(
        self, step: int, figures: dict[str, float], more: dict[str, Any] | None = None
    ) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        line = {"step": step, **finite, **(more or {})}
        try:
            self._metrics.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._metrics.flush()
            if self._writer is not None:
                for name, value in figures.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # a full disk: the next checkpoint will say so, the run goes on
            if not self._warned:
                self.say(f"the metrics cannot be written: {error.strerror}")
            self._warned = True


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)


def _keep_until(path: Path, completed: int) -> float:
    """Drop lines behind step `completed` and a half-written last one; return the seconds."""
    if not path.exists():
        return 0.0
    if not completed:  # of a run whose checkpoints were deleted
        path.replace(path.with_name(f"{METRICS_FILE}.old"))
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= completed:
                kept.append(line)
                seconds = float(entry.get("seconds", seconds))
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
    temporary.replace(path)
    return seconds
