"""A short run that goes on from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.training import pretrain

MINE = "早上好\n魑魅魍魉！\n嗯\n\n你在吗\n魍，在\n\n今天好吗\n很好\n"
"""With characters that the tiny models do not know."""


def finetune(folder: Path, base: Path | str, **changes: Any) -> Path:
    """Train on `MINE`; the checkpoint is in `folder`."""
    text = folder / "mine.txt"
    text.write_text(MINE, "utf-8")
    values = {
        "data_path": str(text),
        "base_model": str(base),
        "train_percent": 0.7,
        "device": "cpu",
        "dtype": "float32",
        "train_batch": 2,
        "max_steps": 4,
        "warmup_steps": 1,
        "decay_steps": 4,
        "eval_freq": 0,
        "checkpoint_root": str(folder / "finetuned"),
        **changes,
    }
    return pretrain.run(config_from_dict(values, "test", Config))
