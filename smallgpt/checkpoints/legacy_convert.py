"""The earlier implementation's models as checkpoints: a `.pth` file and the text it learnt from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from smallgpt.checkpoints import checkpoint, huggingface, legacy_pth
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.run_folder import MANIFEST_FILE, first_line, read_manifest
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.model.parameters import parameter_groups
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

SPARE_IDS = 64
"""A vocabulary may have been rounded up by so many ids that no character has."""
PARALLEL = 0.98
"""Cosine of the gradients of ids that were never used: 0.99 and more in the reference files, where
ids in use reach 0.95."""


def is_published(path: Path) -> bool:
    """Whether a path is meant to be such a file."""
    return path.suffix in legacy_pth.SUFFIXES and not path.is_dir()


def load(path: Path, texts: list[Path]) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, its weights mapped from the file, and the training state.

    Args:
        texts: what the weights were trained on: their vocabulary is the text's.

    Raises:
        UserError: the file or the text cannot be used, or they do not belong together.
    """
    stored = legacy_pth.read(path)
    tokenizer = _vocabulary(path, stored, texts)
    config = dataclasses.replace(stored.config, data_path=[str(text) for text in texts])
    manifest = {"original": stored.rest}
    checkpoint = Checkpoint(path, stored.step, config, tokenizer, stored.weights, manifest)
    return checkpoint, training_state(stored)


def training_state(stored: legacy_pth.Original) -> dict[str, Any]:
    """What `Updater.load_state` takes; the file does not know the place in the text."""
    return {
        "moments": stored.moments or {},
        "scaler": {},
        "completed": stored.step,
        "rows_used": 0,
        "text": None,
    }


def _vocabulary(path: Path, stored: legacy_pth.Original, texts: list[Path]) -> Tokenizer:
    names, wanted = ", ".join(map(str, texts)), stored.config.vocab_size
    try:
        tokenizer = open_corpus(texts, text_chunks).tokenizer
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


def _were_never_used(stored: legacy_pth.Original, spare: int) -> bool:
    """Whether the last ids had no character in training.

    Such rows of the embedding are only ever pushed away from all that is said: together with
    `<unk>`, which the earlier implementation never trained, their gradients have one direction.
    """
    if stored.moments is None:
        return False
    gradients_VE = stored.moments["wte.weight"]["exp_avg"]
    similarity_V = F.cosine_similarity(gradients_VE, gradients_VE[-1:])
    return bool((similarity_V[[UNK, *range(-spare, 0)]] > PARALLEL).all())


def from_original(path: Path, texts: list[Path], target: Path) -> None:
    """Make a checkpoint directory of a `.pth` file, with its optimizer.

    Args:
        texts: what the weights were trained on, for the vocabulary.
        target: the directory; one that is there already is replaced.

    Raises:
        UserError: the file or the text cannot be used, or the directory cannot be written.
    """
    _write(path, *load(path, texts), target)


def _write(
    path: Path, stored: Checkpoint, state: dict[str, Any], target: Path, resumable: bool = True
) -> None:
    try:
        checkpoint.write(
            target,
            stored.step,
            stored.config,
            stored.tokenizer,
            stored.weights,
            state if resumable and state["moments"] else None,
            {**stored.manifest, "source": _identity(path)},
        )
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(
            f"{target} cannot be written: {first_line(error)}",
            f"choose a place: python -m smallgpt convert {path} --text … --output DIRECTORY",
        ) from None


def beside(path: Path, texts: list[Path] | None) -> Path:
    """The checkpoint directory of a `.pth` file: beside it, made the first time.

    It is for use only, without the optimizer, which is twice as large as the weights.

    Args:
        texts: what the weights were trained on; None where it is not known.

    Raises:
        UserError: it cannot be made, or something else is in its place.
    """
    target = path.with_suffix("")
    if not path.exists():
        if (target / MANIFEST_FILE).is_file():
            return target
        raise UserError(
            f"{path} not found",
            "put it there; or chat with what you trained: resume_from=latest, after "
            "python train.py config/demo.yaml (or config/train90M.yaml with your text)",
        )
    if target.exists():
        source = read_manifest(target).get("source") if target.is_dir() else None
        if source == _identity(path):
            return target
        if source is None:
            raise UserError(
                f"{path} would be converted into {target}, but something else is there",
                f"move it, or: python -m smallgpt convert {path} --text … --output DIRECTORY",
            )
    if texts is None:
        raise UserError(
            f"{path} has no vocabulary of its own",
            f"make a directory of it first: python -m smallgpt convert {path} --text … --output "
            f"{target}, with the very text it was trained on",
        )
    stored, state = load(path, texts)
    names = ", ".join(map(str, texts))
    note(f"converting {path} with the vocabulary of {names} into {target}, once")
    _write(path, stored, state, target, resumable=False)
    return target


def to_original(path: Path, target: Path) -> None:
    """Write a checkpoint directory as a `.pth` file, atomically.

    Raises:
        UserError: there is no such language model, or the file cannot be written.
    """
    stored = checkpoint.load(path)
    rest = stored.manifest.get("original", {})
    moments = _moments(stored) if (path / checkpoint.STATE_FILE).exists() else None
    contents = legacy_pth.contents(stored.step, stored.config, stored.weights, moments, rest)
    try:
        with atomic.file(target) as work:
            torch.save(contents, work)
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(f"{target} cannot be written: {first_line(error)}") from None


def _moments(stored: Checkpoint) -> dict[str, dict[str, torch.Tensor]] | None:
    """AdamW's state by the name of the parameter; None where another optimizer was at work."""
    state: dict[str, Any] = stored.training_state()
    if "moments" in state:
        return state["moments"] or None
    if len(state.get("optimizers", [])) != 1:
        note("the optimizer is not written: the earlier implementation has AdamW only")
        return None
    hollow = huggingface.hollow_model(stored.config)
    names = [name for group in parameter_groups(hollow) for name, _ in group]
    numbered = state["optimizers"][0]["state"]
    return {name: numbered[number] for number, name in enumerate(names)}


def _identity(path: Path) -> dict[str, Any]:
    """What changes when a file is replaced by another."""
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
