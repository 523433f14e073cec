"""Reviews made here, and a short run that learns from them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from smallgpt.config import SentimentConfig
from smallgpt.config_file import config_from_dict

NEUTRAL = "我你叫什么名字今天气走吧晚安做个梦"


def write_reviews(path: Path, count: int = 120, labels: str = "01", seed: int = 0) -> Path:
    """Reviews of any length; the label says which character is mixed in."""
    generator = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "label", "review"])
        for number in range(count):
            kind = number % len(labels)
            text = generator.choice(list(NEUTRAL), generator.integers(3, 70))
            text[generator.integers(0, len(text), 1 + len(text) // 4)] = "好错睡"[kind]
            table.writerow([number, labels[kind], "".join(text)])
    return path


def classifier_config(folder: Path, base: Path, **changes: Any) -> SentimentConfig:
    """A short run on the reviews in `folder`."""
    if not (folder / "reviews.csv").exists():
        write_reviews(folder / "reviews.csv")
    settings = {
        "sentimental_data_path": str(folder / "reviews.csv"),
        "base_model": str(base),
        "checkpoint_root": str(folder / "run"),
        "tensorboard_path": "",
        "device": "cpu",
        "dtype": "float32",
        "max_steps": 40,
        "train_batch": 8,
        "eval_freq": 10,
        "save_freq": 1000,
        "keep_last": 0,
        "lr": 5e-3,
        "warmup_steps": 5,
        "decay_steps": 40,
    }
    return config_from_dict(settings | changes, "test", SentimentConfig)
