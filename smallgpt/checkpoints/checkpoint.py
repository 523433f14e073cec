"""A checkpoint is a directory that is also a Hugging Face GPT-2 model.

    config.json, generation_config.json, model.safetensors     what transformers reads
    tokenizer.json, tokenizer_config.json
    config.yaml                                                all keys of our run
    training_state.pt                                          optimizer and position in the data
    manifest.json                                              step, scores, checksum of each file

It is written beside its place and renamed, so it is complete or not there. Nothing in it can run
code when it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from torch import Tensor

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.run_folder import (
    MANIFEST_FILE,
    checkpoints,
    first_line,
    other_checkpoint,
    place,
    read_manifest,
    sha256,
    verify,
)
from smallgpt.config import Config, ModelConfig, SentimentConfig, config_from_dict, config_to_yaml
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import TOKENIZER_FILE, Tokenizer
from smallgpt.tokenizer.subwords import load_tokenizer
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

CONFIG_FILE = "config.yaml"
STATE_FILE = "training_state.pt"
SHAPE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("vocab_size", "dropout", "ngram_dropout")
)
"""What makes two networks the same, but for the vocabulary and the dropout."""
WRITE_ERRORS = (OSError, RuntimeError, safetensors.SafetensorError)
_NEEDED = (CONFIG_FILE, huggingface.CONFIG_FILE, TOKENIZER_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. `training_state` is whatever the training loop gave to `save`.

    labels: names of the classes, where the model is a classifier.
    """

    path: Path
    step: int
    config: Config
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    manifest: dict[str, Any]
    labels: list[str] | None = None

    def model(self, config: ModelConfig | None = None) -> GPT:
        """The network with these weights, in evaluation mode; `config` may change the dropout."""
        model = huggingface.hollow_model(config or self.config).eval()
        weights = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        return model

    def verify_weights(self) -> None:
        """Check the weights against the manifest, where `load` was told not to.

        Raises:
            UserError: they are damaged.
        """
        if self.manifest["sha256"]:  # of another program's model nothing is known
            for name in _weights_files(self.manifest):
                verify(self.path, self.manifest, name)

    def training_state(self) -> dict[str, Any]:
        """Optimizer state and position, on the CPU.

        Raises:
            UserError: the file is missing, damaged, or holds anything but tensors and plain values.
        """
        path = self.path / STATE_FILE
        if not path.exists():
            raise UserError(f"{path} is missing: this checkpoint can chat, not resume")
        verify(self.path, self.manifest, STATE_FILE)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a forged file makes torch stumble in many ways
            state = None
        if not isinstance(state, dict):
            raise UserError(
                f"{path} is refused: it is not a file of tensors and plain values only",
                "reading it could run a stranger's code; resume from a checkpoint you made",
            )
        return state


def save(
    root: Path,
    step: int,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    training_state: dict[str, Any],
    scores: Mapping[str, Any],
    labels: list[str] | None = None,
) -> Path:
    """Write `root/cpt{step}` atomically and return it; one that is there already is replaced.

    Args:
        labels: names of the classes, where the model is a classifier.

    Raises:
        UserError: it cannot be written. Earlier checkpoints are untouched.
    """
    target = place(root, step)
    try:
        write(target, step, config, tokenizer, weights, training_state, scores, labels)
    except WRITE_ERRORS as error:
        kept = checkpoints(root)
        raise UserError(
            f"checkpoint {target} cannot be written: {first_line(error)}",
            "make room or choose another checkpoint_root"
            + (f"; {kept[-1]} is intact" if kept else ""),
        ) from None
    return target


def write(
    target: Path,
    step: int,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    training_state: dict[str, Any] | None,
    more: Mapping[str, Any],
    labels: list[str] | None = None,
) -> None:
    """Write a checkpoint directory, complete or not at all.

    Args:
        training_state: None for a checkpoint that can chat, not resume.
        more: scores and other facts for the manifest.
        labels: names of the classes, where the model is a classifier.

    Raises:
        one of WRITE_ERRORS.
    """
    with atomic.directory(target) as work:
        huggingface.write(work, config, tokenizer, weights, labels)
        tokenizer.save(work, **_tokenizer_settings(config))
        (work / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
        if training_state is not None:
            with (work / STATE_FILE).open("wb") as file:
                torch.save(training_state, file)
        files = {p.name: sha256(p) for p in sorted(work.iterdir())}
        manifest = {"format": 1, "step": step, **more, "sha256": files}
        (work / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def is_classifier(path: Path) -> bool:
    """Whether a checkpoint directory of ours holds a classifier; False where it is none."""
    try:
        return not is_foreign(path) and huggingface.read_labels(path) is not None
    except UserError:
        return False


def _other_kind(path: Path, labels: list[str] | None) -> UserError:
    if labels is None:
        return UserError(
            f"{path} is a language model, not a classifier",
            "make one of it: python sentimentalTrain.py config/sentimental_demo.yaml "
            f"base_model={path}",
        )
    return UserError(
        f"{path} is a classifier ({', '.join(labels)}), not a model to talk with",
        f'use it with: python -m smallgpt sentiment predict {path} "…"',
    )


def _tokenizer_settings(config: Config) -> dict[str, Any]:
    """What a classifier's tokenizer must know besides: how long texts may be, what padding does."""
    if not isinstance(config, SentimentConfig):
        return {}
    names = ["input_ids", "attention_mask"] if config.use_mask else ["input_ids"]
    return {"model_max_length": config.block_size, "model_input_names": names}


def load(path: Path, verify_weights: bool = True, classifier: bool | None = False) -> Checkpoint:
    """Read a checkpoint directory; weights are memory-mapped, and checked against the manifest.

    Args:
        verify_weights: False leaves the checksum of the weights, a second for a large model, to
            `Checkpoint.verify_weights`.
        classifier: whether it must be a classifier, or a language model; None takes both.

    Raises:
        UserError: it is missing, incomplete, damaged, of another architecture or the other kind.
    """
    if is_foreign(path):
        return _foreign(path, classifier)
    manifest = read_manifest(path)
    weights_files = _weights_files(manifest)
    later = set() if verify_weights else weights_files
    for name in sorted({*_NEEDED, *manifest["sha256"], *weights_files} - {STATE_FILE} - later):
        verify(path, manifest, name)
    labels = huggingface.read_labels(path)
    if classifier is not None and classifier != (labels is not None):
        raise _other_kind(path, labels)
    config = _read_config(path / CONFIG_FILE, Config if labels is None else SentimentConfig)
    weights = huggingface.read(path, config, labels)
    return Checkpoint(
        path, manifest["step"], config, load_tokenizer(path), weights, manifest, labels
    )


def _weights_files(manifest: dict[str, Any]) -> set[str]:
    """One, or where they are stored in parts, several."""
    parts = {name for name in manifest["sha256"] if name.endswith(".safetensors")}
    return parts or {huggingface.WEIGHTS_FILE}


def is_foreign(path: Path) -> bool:
    """Whether a directory holds a model of another program, in Hugging Face's form."""
    ours = any((path / name).exists() for name in (MANIFEST_FILE, CONFIG_FILE))
    return not ours and (path / huggingface.CONFIG_FILE).is_file()


def _foreign(path: Path, classifier: bool | None) -> Checkpoint:
    """A GPT-2 of another program; of a classifier, what is below its head."""
    from smallgpt.checkpoints import foreign

    if classifier is False and (labels := huggingface.read_labels(path)):
        raise UserError(
            f"{path} is a classifier of another program ({', '.join(labels)})",
            "it can be a base_model: python sentimentalTrain.py config/sentimental_demo.yaml "
            f"base_model={path}",
        )
    if classifier:
        raise _other_kind(path, None)
    model = foreign.read(path)
    return Checkpoint(path, 0, model.config, model.tokenizer, model.weights, {"sha256": {}})


def _read_config(file: Path, schema: type[Config]) -> Config:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no keys", other_checkpoint(file.parent))
    return config_from_dict(values, str(file), schema)


def same_shape(config: Config, stored: Config) -> Config:
    """`config` with the checkpoint's vocabulary size, if their networks agree otherwise.

    Raises:
        UserError: a key of the model differs from the checkpoint's.
    """
    for key in SHAPE_KEYS:
        wanted, has = getattr(config, key), getattr(stored, key)
        if wanted != has:
            raise UserError(
                f"{key} is {wanted}, but the checkpoint's is {has}",
                f"set {key}: {has}, or train anew in another checkpoint_root",
            )
    return dataclasses.replace(config, vocab_size=stored.vocab_size)
