"""The model that training begins with instead of fresh weights (`base_model`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from smallgpt.checkpoints import checkpoint, legacy_convert, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.huggingface import LM_HEAD
from smallgpt.config import Config, ModelConfig
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.utils.errors import UserError

C = TypeVar("C", bound=Config)


def load(config: Config, classifier: bool | None = False) -> Checkpoint:
    """The checkpoint that `base_model` names.

    Args:
        classifier: whether it must be a classifier, or a language model; None takes both.

    Raises:
        UserError: there is none, or it is of the other kind.
    """
    path = Path(config.base_model or "").expanduser()
    inside = run_folder.checkpoints(path)
    if inside:  # the folder of a run: its newest
        path = inside[-1]
    if legacy_convert.is_published(path) and (path.exists() or path.with_suffix("").is_dir()):
        # A language model is trained on a text of its own, which is not the one of the weights.
        texts = config.data_paths() if classifier is None else None
        path = legacy_convert.beside(path, texts)
    if not path.exists():
        raise UserError(
            f"base_model: {path} not found",
            "train one: make demo, or python train.py config/laptop.yaml data_path=my.txt; "
            "then base_model=checkpoints/laptop",
        )
    return checkpoint.load(path, classifier=classifier)


def with_shape_of(stored: ModelConfig, config: C, vocab_size: int) -> C:
    """`config` with the network that the base has; only the dropout is the config's."""
    shape = {key: getattr(stored, key) for key in checkpoint.SHAPE_KEYS}
    return dataclasses.replace(config, **shape, vocab_size=vocab_size)


def widened(stored: Checkpoint, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The base's weights for `tokenizer`, whose first ids are the base's.

    A new character begins as the mean of all others.
    """
    weights = dict(stored.weights)
    used = len(stored.tokenizer)
    for name in ("wte.weight", LM_HEAD):
        if name in weights:
            old = weights[name][:used]
            new = old.mean(0, keepdim=True).repeat(len(tokenizer) - used, 1)
            weights[name] = torch.cat([old, new])
    return weights
