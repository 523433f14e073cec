"""Models between our checkpoint directories and the earlier implementation's `.pth` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smallgpt import atomic, checkpoint, published
from smallgpt.checkpoint import Checkpoint
from smallgpt.errors import UserError, note
from smallgpt.formats import gpt2, original
from smallgpt.run_folder import MANIFEST_FILE, first_line, read_manifest
from smallgpt.training.optimizer import parameter_groups


def from_original(path: Path, texts: list[Path], target: Path) -> None:
    """Make a checkpoint directory of a `.pth` file, with its optimizer.

    Args:
        texts: what the weights were trained on, for the vocabulary.
        target: the directory; one that is there already is replaced.

    Raises:
        UserError: the file or the text cannot be used, or the directory cannot be written.
    """
    _write(path, *published.load(path, texts), target)


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
    stored, state = published.load(path, texts)
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
    contents = original.contents(stored.step, stored.config, stored.weights, moments, rest)
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
    hollow = gpt2.hollow_model(stored.config)
    names = [name for group in parameter_groups(hollow) for name, _ in group]
    numbered = state["optimizers"][0]["state"]
    return {name: numbered[number] for number, name in enumerate(names)}


def _identity(path: Path) -> dict[str, Any]:
    """What changes when a file is replaced by another."""
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
