"""What the checks run, and how much of it: shipped configs on a card, tiny ones in the tests."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from benchmarks.measure import SIZES
from smallgpt.config import Config, Dtype, SentimentConfig
from smallgpt.config_file import load_config
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.training.metrics import StepResult
from smallgpt.training.trainer import LaunchedStep, Trainer

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Setting:
    """Configs and counts of all checks; `shipped` makes the real one.

    large, medium, small: dialogues, 300M, 90M and 12M parameters.
    whole, frozen: the same reviews, all weights trained and the last block only.
    """

    large: Config
    medium: Config
    small: Config
    whole: SentimentConfig
    frozen: SentimentConfig
    chat_size: str = "300M"
    device: str = "cuda"
    product: int = 8192
    """Rows and columns of the matrix product, of which `products` are timed."""
    products: int = 50
    warm_up: int = 5
    steps: int = 60
    precisions: tuple[Dtype, ...] = ("bfloat16", "float32", "float16")
    precision_steps: int = 100
    last: int = 20
    """Steps over which losses are averaged before they are compared."""
    resumed_steps: int = 40
    """Of a run; it is resumed in the middle."""
    profiled_steps: int = 5
    validation_batches: int = 200
    characters: int = 100
    """Of a reply."""
    reviews: int = 7200
    large_step: int = 12_000
    """Positions that the largest step over reviews has at least, or the check says nothing."""
    ddp_steps: int = 20
    patience: float = 45.0
    """Seconds that training in two processes may take to end, once it is told to."""
    quality_minutes: float = 3.0
    peak: float = math.nan
    """Floating-point operations a second of the matrix product, once it is measured."""


def shipped(text: Path) -> Setting:
    """The configs in config/, on one card."""
    vocabulary = max(len(open_corpus([text], text_chunks).tokenizer), 7587)  # that of the configs
    changes = [f"data_path={text}", "device=cuda", f"vocab_size={vocabulary}"]
    medium = load_config("config/train90M.yaml", changes)
    small: dict[str, Any] = SIZES["12M"].keys() | {"compile": False, "eval_steps": 4}
    return Setting(
        large=load_config("config/train300M.yaml", changes),
        medium=medium,
        small=replace(medium, **small),
        whole=load_config("config/sentimental.yaml", schema=SentimentConfig),
        frozen=load_config("config/sentimental1.yaml", schema=SentimentConfig),
    )


@contextmanager
def own_root(config: C) -> Iterator[C]:
    """The config with a `checkpoint_root` of its own, which is gone at the end."""
    with TemporaryDirectory() as folder:
        yield replace(config, checkpoint_root=folder, tensorboard_path="")


def give_back_memory() -> None:
    """That of objects that nobody uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


def run_steps(trainer: Trainer, count: int) -> list[StepResult]:
    """Take steps as the training loop does."""
    launched: deque[LaunchedStep] = deque()
    results = []
    for _ in range(count):
        launched.append(trainer.launch())
        if len(launched) > trainer.steps_ahead:
            results.append(trainer.finish(launched.popleft()))
    return results + [trainer.finish(step) for step in launched]
