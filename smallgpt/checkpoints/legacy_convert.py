"""Legacy `.pth` files, and the text they learnt from, to checkpoints and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from smallgpt.checkpoints import checkpoint, huggingface, legacy_pth
from smallgpt.checkpoints.checkpoint import Checkpoint, first_line, read_manifest
from smallgpt.checkpoints.legacy_pth import LegacyModel
from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.data.corpus import open_corpus
from smallgpt.model.parameters import parameter_groups
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

SPARE_IDS = 64
"""A vocabulary may have been rounded up by so many ids that no character has."""
PARALLEL = 0.98
"""Cosine of the gradients of ids that were never used: 0.99 and more in published files, where ids
in use reach 0.95."""


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
    manifest = {"original": stored.rest, "sha256": {}}
    # The file does not know the place in the text.
    state = {"scaler": {}, "completed": stored.step, "rows_used": 0, "text": None}
    state["moments"] = stored.moments or {}
    return Checkpoint(path, stored.step, config, tokenizer, stored.weights, manifest), state


def _vocabulary(path: Path, stored: LegacyModel, texts: list[Path]) -> Tokenizer:
    advice = "set data_path (or --text) to the very text the weights were trained on"
    names, wanted = ", ".join(map(str, texts)), stored.config.vocab_size
    try:
        tokenizer = open_corpus(texts).tokenizer
    except UserError as error:
        raise UserError(
            f"{path} holds no vocabulary, and its text cannot be read: {error.problem}", advice
        ) from None
    spare = wanted - len(tokenizer)
    if spare and not (0 < spare <= SPARE_IDS and _were_never_used(stored, spare)):
        raise UserError(
            f"{path} has a vocabulary of {wanted:,} ids, but {names} gives {len(tokenizer):,}",
            advice,
        )
    if spare:
        note(f"{path}: the last {spare} of {wanted:,} ids were never used in training")
    return tokenizer


def _were_never_used(stored: LegacyModel, spare: int) -> bool:
    """Whether the last ids had no character in training.

    Such rows of the embedding are only ever pushed away from all that is said: together with
    `<unk>`, which legacy training never saw, their gradients have one direction.
    """
    if stored.moments is None:
        return False
    gradients_VE = stored.moments["wte.weight"]["exp_avg"]
    similarity_V = F.cosine_similarity(gradients_VE, gradients_VE[-1:])
    return bool((similarity_V[[UNK, *range(-spare, 0)]] > PARALLEL).all())


def to_checkpoint(path: Path, texts: list[Path], target: Path, with_optimizer: bool = True) -> None:
    """Make a checkpoint directory of a `.pth` file.

    Args:
        texts: what the weights were trained on, for the vocabulary.
        target: the directory; one that is there already is replaced.
        with_optimizer: without, it is for use only, and a third of the size.

    Raises:
        UserError: the file or the text cannot be used, or the directory cannot be written.
    """
    stored, state = load(path, texts)
    names = ", ".join(map(str, texts))
    note(
        f"converting {path} with the vocabulary of {names} into {target}"
        + ("" if with_optimizer else ", once")
    )
    try:
        checkpoint.write(
            target,
            stored.step,
            stored.config,
            stored.tokenizer,
            stored.weights,
            state if with_optimizer and state["moments"] else None,
            {**stored.manifest, "source": _identity(path)},
        )
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(
            f"{target} cannot be written: {first_line(error)}", _convert_to("DIRECTORY", path)
        ) from None


def directory_beside(path: Path, texts: list[Path] | None) -> Path:
    """The checkpoint directory of a `.pth` file: beside it, made the first time, for use only.

    Args:
        texts: what the weights were trained on; None where it is not known.

    Raises:
        UserError: it cannot be made, or something else is in its place.
    """
    target = path.with_suffix("")
    if not path.exists() and (target / MANIFEST_FILE).is_file():
        return target
    if path.exists() and target.exists():
        source = read_manifest(target).get("source") if target.is_dir() else None
        if source == _identity(path):
            return target
        if source is None:
            raise UserError(
                f"{path} would be converted into {target}, but something else is there",
                "move it, or " + _convert_to("DIRECTORY", path),
            )
    if texts is None:
        legacy_pth.read(path)  # or it says what is wrong with this file
        raise UserError(
            f"{path} has no vocabulary of its own",
            _convert_to(str(target), path) + ", with the very text it was trained on",
        )
    to_checkpoint(path, texts, target, with_optimizer=False)
    return target


def _convert_to(target: str, path: Path) -> str:
    return f"make a directory of it: python -m smallgpt convert {path} --text … --output {target}"


def to_pth(stored: Checkpoint, target: Path) -> None:
    """Write a language model as a legacy `.pth` file, atomically.

    Raises:
        UserError: the legacy format has no such network, or the file cannot be written.
    """
    has_state = (stored.path / checkpoint.STATE_FILE).exists()
    moments = _moments(stored) if has_state else None
    rest = stored.manifest.get("original", {})
    contents = legacy_pth.contents(stored.step, stored.config, stored.weights, moments, rest)
    try:
        with atomic.file(target) as work:
            torch.save(contents, work)
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(f"{target} cannot be written: {first_line(error)}") from None


def _moments(stored: Checkpoint) -> legacy_pth.Moments | None:
    """AdamW's state by the name of the parameter; None where another optimizer was at work."""
    state = stored.training_state()
    if "moments" in state:
        return state["moments"] or None
    if len(state.get("optimizers", [])) != 1:
        note("the optimizer is not written: a legacy .pth has AdamW only")
        return None
    hollow = huggingface.hollow_model(stored.config)
    names = [name for group in parameter_groups(hollow) for name, _ in group]
    numbered = state["optimizers"][0]["state"]
    return {name: numbered[number] for number, name in enumerate(names)}


def _identity(path: Path) -> dict[str, Any]:
    """What changes when a file is replaced by another."""
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
