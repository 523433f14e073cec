"""The earlier implementation's models as checkpoints: a `.pth` file and the text it learnt from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from smallgpt.checkpoint import Checkpoint
from smallgpt.data.dialogues import open_corpus
from smallgpt.errors import UserError, note
from smallgpt.formats import original
from smallgpt.tokenizer import UNK, Tokenizer

SPARE_IDS = 64
"""A vocabulary may have been rounded up by so many ids that no character has."""
PARALLEL = 0.98
"""Cosine of the gradients of ids that were never used: 0.99 and more in the reference files, where
ids in use reach 0.95."""


def is_published(path: Path) -> bool:
    """Whether a path is meant to be such a file."""
    return path.suffix in original.SUFFIXES and not path.is_dir()


def load(path: Path, texts: list[Path]) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, its weights mapped from the file, and the training state.

    Args:
        texts: what the weights were trained on: their vocabulary is the text's.

    Raises:
        UserError: the file or the text cannot be used, or they do not belong together.
    """
    stored = original.read(path)
    tokenizer = _vocabulary(path, stored, texts)
    config = dataclasses.replace(stored.config, data_path=[str(text) for text in texts])
    manifest = {"original": stored.rest}
    checkpoint = Checkpoint(path, stored.step, config, tokenizer, stored.weights, manifest)
    return checkpoint, training_state(stored)


def training_state(stored: original.Original) -> dict[str, Any]:
    """What `Updater.load_state` takes; the file does not know the place in the text."""
    return {
        "moments": stored.moments or {},
        "scaler": {},
        "completed": stored.step,
        "rows_used": 0,
        "text": None,
    }


def _vocabulary(path: Path, stored: original.Original, texts: list[Path]) -> Tokenizer:
    names, wanted = ", ".join(map(str, texts)), stored.config.vocab_size
    try:
        tokenizer = open_corpus(texts).tokenizer
    except UserError as error:
        raise UserError(
            f"{path} holds no vocabulary, and its text cannot be read: {error.problem}",
            "set data_path (or --text) to the very text the weights were trained on",
        ) from None
    spare = wanted - len(tokenizer)
    if spare and not (0 < spare <= SPARE_IDS and _were_never_used(stored, spare)):
        raise UserError(
            f"{path} has a vocabulary of {wanted:,} ids, but {names} gives {len(tokenizer):,}",
            "the vocabulary must come from the very text the weights were trained on: "
            "set data_path (or --text) to it",
        )
    if spare:
        note(f"{path}: the last {spare} of {wanted:,} ids were never used in training")
    return tokenizer


def _were_never_used(stored: original.Original, spare: int) -> bool:
    """Whether the last ids had no character in training.

    Such rows of the embedding are only ever pushed away from all that is said: together with
    `<unk>`, which the earlier implementation never trained, their gradients have one direction.
    """
    if stored.moments is None:
        return False
    gradients_VE = stored.moments["wte.weight"]["exp_avg"]
    similarity_V = F.cosine_similarity(gradients_VE, gradients_VE[-1:])
    return bool((similarity_V[[UNK, *range(-spare, 0)]] > PARALLEL).all())
