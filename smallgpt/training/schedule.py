"""How many steps a run takes, and the learning rate of each."""

import math
import time
from dataclasses import dataclass

from smallgpt.config import Config

_STEPS_BEFORE_MEASURING = 3
"""The first steps compile, fill caches and reserve memory."""
_FEWEST_STEPS, _MEASURED_SECONDS, _MOST_STEPS = 5, 10.0, 100
"""Then as many are measured as take so long, within these numbers."""
_SHARE_FOR_STEPS = 0.97
"""The rest of the time is for validating and saving."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `lr`, then a cosine to `min_lr` (arXiv:1608.03983), for `last_step` steps.

    `warmup` and `decay` are shares of the run; where they are empty, `warmup_steps` and
    `decay_steps` say it.
    """

    config: Config
    last_step: int

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return self._steps(self.config.warmup, self.config.warmup_steps)

    @property
    def decay_steps(self) -> int:
        """The step at which it reaches `min_lr`."""
        return max(self._steps(self.config.decay, self.config.decay_steps), self.warmup_steps)

    def _steps(self, share: float | None, steps: int) -> int:
        return steps if share is None else round(share * self.last_step)

    def learning_rate(self, step: int) -> float:
        """The rate of step `step`, from 0."""
        config, warmup, decay = self.config, self.warmup_steps, self.decay_steps
        if step < warmup:
            return config.lr * (step + 1) / warmup
        if step >= decay:
            return config.min_lr
        progress = (step - warmup) / (decay - warmup)
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@dataclass
class StepTimer:
    """Measures the first steps, to choose how many fit into `max_minutes`."""

    steps: int = -_STEPS_BEFORE_MEASURING
    seconds: float = 0.0
    """Of the steps from 1 on."""

    def add(self, seconds: float) -> None:
        """Take note of a step."""
        self.steps += 1
        if self.steps > 0:
            self.seconds += seconds

    @property
    def is_done(self) -> bool:
        """Whether enough steps are measured."""
        long_enough = self.seconds >= _MEASURED_SECONDS and self.steps >= _FEWEST_STEPS
        return long_enough or self.steps >= _MOST_STEPS

    def steps_in(self, seconds: float) -> int:
        """How many steps fit into so many seconds, at least 0."""
        return max(0, int(_SHARE_FOR_STEPS * seconds / (self.seconds / self.steps)))


class Stopwatch:
    """Measures wall-clock seconds from one moment to the next."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def restart(self) -> float:
        """Seconds since it was made or restarted."""
        now = time.perf_counter()
        began, self._began = self._began, now
        return now - began
