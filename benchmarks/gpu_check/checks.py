"""All checks, the most important first, and the process that measures one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu_check import models, runs, training, tuning
from benchmarks.gpu_check.report import Figures, Row
from benchmarks.gpu_check.setting import Setting

MOST_MEMORY = 14.5e9
"""Bytes that a check may take: a card of 16 GB has no more left where a screen is attached."""


@dataclass(frozen=True)
class Check:
    """What is measured, and the rows of the table that follow from the figures alone.

    seconds: about what it takes on an H100.
    """

    measure: Callable[[Setting], Figures]
    judge: Callable[[Figures], list[Row]]
    seconds: int


CHECKS = {
    "product": Check(training.measure_product, training.judge_product, 10),
    "train300M": Check(training.measure_large, training.judge_large, 50),
    "train90M": Check(training.measure_medium, training.judge_medium, 35),
    "sentiment": Check(models.measure_sentiment, models.judge_sentiment, 90),
    "resume": Check(runs.measure_resume, runs.judge_resume, 25),
    "profile": Check(training.measure_profile, training.judge_profile, 30),
    "compiled": Check(training.measure_compiled, training.judge_compiled, 35),
    "attention": Check(training.measure_attention, training.judge_attention, 45),
    "precisions": Check(training.measure_precisions, training.judge_precisions, 80),
    "validation": Check(training.measure_validation, training.judge_validation, 25),
    "chat": Check(models.measure_chat, models.judge_chat, 30),
    "torchrun": Check(runs.measure_torchrun, runs.judge_torchrun, 35),
    "driver": Check(runs.measure_driver, runs.judge_driver, 15),
    "tuning": Check(tuning.measure_tuning, tuning.judge_tuning, 30),
    "quality": Check(runs.measure_quality, runs.judge_quality, 240),
}


class Checker:
    """A process of its own for one check, with as much memory as a card of 16 GB has."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        if setting.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, MOST_MEMORY / total))

    def measure(self, name: str) -> Figures:
        """The figures of a check."""
        return CHECKS[name].measure(self.setting)
