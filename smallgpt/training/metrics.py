"""What a run reports: progress bar, metrics.jsonl and TensorBoard. Nothing here changes the run."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smallgpt.config import Config
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

METRICS_FILE = "metrics.jsonl"
_SMOOTHING = 0.1
_TAGS = {
    "loss": "loss/train",
    "validation_loss": "loss/validation",
    "perplexity": "validation/perplexity",
    "bits_per_character": "validation/bits_per_character",
    "r10_at_1": "validation/r10_at_1",
    **{
        name: f"validation/{name}"
        for name in ("reward_margin", "reward_accuracy", "chosen_log_p", "rejected_log_p", "kl")
    },
    "loops_share": "validation/loops_share",
    "validation_accuracy": "validation/accuracy",
    "lr": "optimizer/learning_rate",
    "grad_norm": "optimizer/gradient_norm",
    "tokens_per_second": "speed/tokens_per_second",
    "seconds": "speed/seconds",
}
"""Where TensorBoard shows a figure: what belongs together has one prefix."""


@dataclass(frozen=True)
class StepResult:
    """loss: mean of the step; grad_norm: before clipping; tokens: without padding."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int


class Metrics:
    """Writes down every step and validation: a JSON object a line in `checkpoint_root`.

    Args:
        completed: steps taken before; what an earlier run wrote behind that step is dropped.
        last_step: where training will end.
        writes: whether this process is the one that reports; the others stay silent.
    """

    def __init__(self, config: Config, completed: int, last_step: int, writes: bool) -> None:
        path = Path(config.checkpoint_root) / METRICS_FILE
        self.seconds = 0.0
        """Seconds of training up to step `completed`."""
        self._file: Any = None
        self._board: Any = None
        self._smoothed: dict[str, float] = {}
        self._warned = False
        if writes:
            try:
                if folder := config.tensorboard_folder():
                    from torch.utils.tensorboard import SummaryWriter  # slow to import

                    self._board = SummaryWriter(folder, purge_step=completed + 1)
                self.seconds = _keep_until(path, completed, config.save_freq)
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise UserError(
                    f"the metrics cannot be written: {error}",
                    "choose another checkpoint_root or tensorboard_path",
                ) from None
        self._bar = tqdm(
            desc="training",
            total=last_step,
            initial=completed,
            unit="step",
            dynamic_ncols=True,
            disable=not writes,
        )

    def step(self, step: int, result: StepResult, seconds: float, total_seconds: float) -> None:
        """Record one step that took `seconds`, and all steps together."""
        speed = result.tokens / seconds
        for name, value in (("loss", result.loss), ("speed", speed)):
            old = self._smoothed.get(name, value)
            self._smoothed[name] = old + _SMOOTHING * (value - old)
        shown = "loss {loss:.3f}, {speed:,.0f} tokens/s".format(**self._smoothed)
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
        figures = {
            "loss": result.loss,
            "lr": result.lr,
            "tokens_per_second": round(speed, 1),
            "grad_norm": result.grad_norm,
            "seconds": round(total_seconds, 3),
        }
        self.record(step, figures)

    def validation(
        self, step: int, line: str, figures: dict[str, float], replies: list[tuple[str, str]]
    ) -> None:
        """Record a validation, with the line that tells it and sample replies to prompts."""
        self.say(f"step {step}: {line}")
        for prompt, reply in replies:
            self.say(f"    {prompt}  ->  {reply}")
        self.record(step, figures, **({"replies": replies} if replies else {}))
        if self._board is not None and replies:
            text = "\n\n".join(f"{prompt} -> {reply}" for prompt, reply in replies)
            with self._run_goes_on():
                self._board.add_text("replies", text, step)

    def record(self, step: int, figures: dict[str, float], **more: Any) -> None:
        """Write a line: figures, which TensorBoard draws too, and whatever else there is to say."""
        if self._file is None:
            return
        finite = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        with self._run_goes_on():
            line = json.dumps({"step": step, **finite, **more}, ensure_ascii=False)
            self._file.write(line + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in figures.items():
                    self._board.add_scalar(_TAGS[name], value, step)

    @contextmanager
    def _run_goes_on(self) -> Iterator[None]:
        """Say once what cannot be written, as on a full disk: the next checkpoint will fail too."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self.say(f"the metrics cannot be written: {error.strerror}")
            self._warned = True

    def set_last_step(self, step: int) -> None:
        """Where training will end, once that is chosen."""
        self._bar.total = step
        self._bar.refresh()

    def close(self) -> None:
        """Finish the bar and the files."""
        self._bar.close()
        for file in filter(None, (self._file, self._board)):
            # A full disk was told when it was met; the error that ends the run must not be hidden.
            with suppress(OSError):
                file.close()

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        if self._file is not None:
            self._bar.write(message, file=sys.stderr)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, but for one that is no record, as where a run was killed while
    it wrote; none where there is no such file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record
    except OSError:
        return


def _keep_until(path: Path, completed: int, save_freq: int) -> float:
    """Drop lines behind step `completed` and a half-written last one; return the seconds.

    A run that begins anew puts aside the lines of one whose checkpoints were deleted. Lines of a
    run that was killed before its first checkpoint are dropped.
    """
    if not path.exists():
        return 0.0
    kept, seconds, had_checkpoint = [], 0.0, False
    for line in path.read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            entry = json.loads(line)
            had_checkpoint |= "checkpoint" in entry or entry["step"] > save_freq
            if entry["step"] <= completed:
                kept.append(line + "\n")
                seconds = float(entry.get("seconds", seconds))
    if had_checkpoint and not completed:
        path.replace(path.with_name(f"{METRICS_FILE}.old"))
        return 0.0
    with atomic.file(path) as new:
        new.write_text("".join(kept), "utf-8")
    return seconds
