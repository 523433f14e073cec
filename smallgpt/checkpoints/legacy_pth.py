"""The legacy `.pth`, the format of the published models: one dict with the shape, the step,
`state_dict` and the state of AdamW. There is no vocabulary in it.

Its linear layers have our layout, (out, in), but queries, keys and values are three matrices.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints.checkpoint import Checkpoint, first_line, load_pickle, read_manifest
from smallgpt.checkpoints.huggingface import (
    check_finite,
    check_size,
    from_tensors,
    hollow_model,
    their_name,
)
from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.config import Config, config_from_dict
from smallgpt.model.parameters import parameter_groups
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

SUFFIXES = (".pth", ".pt")
SPARE_IDS = 64
"""A vocabulary may have been rounded up by so many ids that no character has."""
PARALLEL = 0.98
"""Cosine of the gradients of ids that were never used: 0.99 and more in published files, where ids
in use reach 0.95."""
COMPILED = "_orig_mod."
"""Before every name in a file that torch.compile's module wrote, as the published ones."""
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_MASK = ".attention.attention.mask"
_SHAPE_KEYS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
_LEGACY_NAMES = (
    (re.compile(r"\.ln_([12])\."), r".ln\1."),
    (re.compile(r"\.attn\.c_proj\."), ".attention.out_net."),
    (re.compile(r"\.mlp\.c_fc\."), ".ffn.dense1."),
    (re.compile(r"\.mlp\.c_proj\."), ".ffn.out_net."),
)

Moments = Mapping[str, Mapping[str, Tensor]]
"""By parameter AdamW's `step`, `exp_avg` and `exp_avg_sq`, as in a saved optimizer."""


@dataclass(frozen=True)
class LegacyModel:
    """What a file holds, under our names.

    config: the default keys with the file's shape.
    weights: state dict of a GPT, float32; views of the file where they can be.
    moments: None where the file has none.
    rest: what our checkpoints do not have: `global_epoch`, `dataset`, `param_groups`, `compiled`.
    """

    step: int
    config: Config
    weights: dict[str, Tensor]
    moments: Moments | None
    rest: dict[str, Any]


def is_legacy(path: Path) -> bool:
    """Whether a path is meant to be a legacy file."""
    return path.suffix in SUFFIXES and not path.is_dir()


def read(path: Path) -> LegacyModel:
    """Read a file without running code from it; it is memory-mapped.

    Raises:
        UserError: it is missing, damaged, hostile, or not a legacy file.
    """
    if not path.exists():
        raise UserError(
            f"{path} not found",
            "put it there, or train a model of your own (make demo, or python train.py "
            "config/train90M.yaml) and chat with it: resume_from=latest",
        )
    stored = load_pickle(path, "get the file again", mmap=True)
    state = stored.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _refused(path, "state_dict is not a dict of tensors")
    config = _config(path, stored)
    tensors = {str(name).removeprefix(COMPILED): tensor for name, tensor in state.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_MASK)}
    check_size(path, tensors)
    weights = from_tensors(path, _joined(path, tensors, config), config, transposed=False)
    check_finite(path, weights)
    moments, groups = None, []
    if optimizer := stored.get("optimizer"):
        try:
            moments = _read_moments(optimizer["state"], config, weights)
            groups = [
                {k: v for k, v in g.items() if k != "params"} for g in optimizer["param_groups"]
            ]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _refused(path, f"its optimizer is damaged: {error}") from None
    rest = {
        "global_epoch": stored.get("global_epoch", 0),
        "dataset": str(stored.get("dataset", "")),
        "param_groups": groups,
        "compiled": any(str(name).startswith(COMPILED) for name in state),
    }
    return LegacyModel(stored["global_step"], config, weights, moments, rest)


def _refused(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a model of the legacy format: {reason}",
        "give a legacy cpt….pth file, or a checkpoint directory",
    )


def _config(path: Path, stored: dict[str, Any]) -> Config:
    for key, least in {**dict.fromkeys(_SHAPE_KEYS, 1), "global_step": 0}.items():
        if type(stored.get(key)) is not int or stored[key] < least:
            raise _refused(path, f"{key} is {stored.get(key)!r}, not a number from {least}")
    if not isinstance(stored.get("bias", True), bool):
        raise _refused(path, f"bias is {stored['bias']!r}")
    if stored["n_layer"] > len(stored["state_dict"]):
        raise _refused(path, f"it has fewer tensors than its n_layer, {stored['n_layer']}, says")
    shape = {key: stored[key] for key in _SHAPE_KEYS}
    return config_from_dict(shape | {"bias": stored.get("bias", True)}, str(path), Config)


def _read_moments(state: Any, config: Config, weights: Mapping[str, Tensor]) -> Moments | None:
    """AdamW's state by our names; None where it has taken no step."""
    if not state:
        return None
    matrices, vectors = _optimizer_groups(config)
    by_name = {name: state[number] for number, name in enumerate(matrices + vectors)}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        parts = [by_name[part] for part in _parts(name)]
        moments[name] = {"step": torch.as_tensor(parts[0]["step"], dtype=torch.float32)}
        for key in ("exp_avg", "exp_avg_sq"):
            if any(part[key].shape != weight.chunk(len(parts))[0].shape for part in parts):
                raise ValueError(f"{key} of {name} has another shape")
            moments[name][key] = _join([part[key] for part in parts])
    return moments


# As a checkpoint.


def load_with_state(path: Path, texts: list[Path]) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, its weights mapped from the file, and the training state.

    Args:
        texts: what the weights were trained on: their vocabulary is the text's.

    Raises:
        UserError: the file or the text cannot be used, or they do not belong together.
    """
    stored = read(path)
    tokenizer = _vocabulary(path, stored, texts)
    config = dataclasses.replace(stored.config, data_path=[str(text) for text in texts])
    manifest = {"original": stored.rest, "sha256": {}}
    # The file does not know the place in the text.
    state = {"scaler": {}, "completed": stored.step, "rows_used": 0, "text": None}
    state["moments"] = stored.moments or {}
    return Checkpoint(path, stored.step, config, tokenizer, stored.weights, manifest), state


def _vocabulary(path: Path, stored: LegacyModel, texts: list[Path]) -> Tokenizer:
    from smallgpt.data.corpus import open_corpus  # only here: other models need not wait for it
    from smallgpt.data.dialogue_formats import text_chunks

    advice = "set data_path (or --text) to the very text the weights were trained on"
    names, wanted = ", ".join(map(str, texts)), stored.config.vocab_size
    try:
        tokenizer = open_corpus(texts, text_chunks).tokenizer
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
    """Make a checkpoint directory of a `.pth` file; one that is there already is replaced.

    Args:
        texts: what the weights were trained on, for the vocabulary.
        with_optimizer: without, it is for use only, and a third of the size.

    Raises:
        UserError: the file or the text cannot be used, or the directory cannot be written.
    """
    stored, state = load_with_state(path, texts)
    names = ", ".join(map(str, texts))
    note(
        f"converting {path} with the vocabulary of {names} into {target}"
        + ("" if with_optimizer else ", once")
    )
    state_to_keep = state if with_optimizer and state["moments"] else None
    facts = {**stored.manifest, "source": _identity(path)}
    checkpoint.save(
        target.parent,
        stored.step,
        stored.config,
        stored.tokenizer,
        stored.weights,
        state_to_keep,
        facts,
        name=target.name,
    )


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
        read(path)  # or it says what is wrong with this file
        raise UserError(
            f"{path} has no vocabulary of its own",
            _convert_to(str(target), path) + ", with the very text it was trained on",
        )
    to_checkpoint(path, texts, target, with_optimizer=False)
    return target


def _convert_to(target: str, path: Path) -> str:
    return f"make a directory of it: python -m smallgpt convert {path} --text … --output {target}"


def _identity(path: Path) -> dict[str, Any]:
    """What changes when a file is replaced by another."""
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}


# Written back.


def write(stored: Checkpoint, target: Path) -> None:
    """Write a language model as a legacy `.pth` file, atomically.

    Raises:
        UserError: the legacy format has no such network, or the file cannot be written.
    """
    has_state = (stored.path / checkpoint.STATE_FILE).exists()
    moments = _moments(stored) if has_state else None
    rest = stored.manifest.get("original", {})
    saved = contents(stored.step, stored.config, stored.weights, moments, rest)
    try:
        with atomic.file(target) as work, work.open("wb") as file:
            torch.save(saved, file)  # of a name, torch wants a suffix
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(f"{target} cannot be written: {first_line(error)}") from None


def _moments(stored: Checkpoint) -> Moments | None:
    """AdamW's state by the name of the parameter; None where another optimizer was at work."""
    state = stored.training_state()
    if "moments" in state:
        return state["moments"] or None
    if len(state.get("optimizers", [])) != 1:
        note("the optimizer is not written: a legacy .pth has AdamW only")
        return None
    hollow = hollow_model(stored.config)
    names = [name for group in parameter_groups(hollow) for name, _ in group]
    numbered = state["optimizers"][0]["state"]
    return {name: numbered[number] for number, name in enumerate(names)}


def contents(
    step: int,
    config: Config,
    weights: Mapping[str, Tensor],
    moments: Moments | None,
    rest: Mapping[str, Any],
) -> dict[str, Any]:
    """What `read` reads: the dict that `torch.save` is to write, on the CPU.

    Args:
        rest: as in `LegacyModel`; what is missing takes a default.

    Raises:
        UserError: the network is one that the legacy format does not have.
    """
    for key in ("activation", "layer_norm_epsilon", "tied", "ngram_order"):
        if getattr(config, key) != getattr(Config(), key):
            raise UserError(f"{key} is {getattr(config, key)}: no legacy .pth has such a network")
    tensors = _split(weights)
    mask = torch.ones(config.block_size, config.block_size).tril()[None]
    state = {name: tensors.get(name, mask) for name in _names(config)}
    state[_HEAD] = state[_EMBEDDING]
    prefix = COMPILED if rest.get("compiled") else ""
    result: dict[str, Any] = {
        "global_step": step,
        "global_epoch": rest.get("global_epoch", 0),
        **{key: getattr(config, key) for key in _SHAPE_KEYS},
        "bias": config.bias,
        "dataset": rest.get("dataset", ""),
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
    }
    if moments is not None:
        result["optimizer"] = _optimizer(config, moments, rest.get("param_groups"))
    return result


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By legacy name. Copies: of a view, torch.save would write all that it is a view of."""
    return {
        part: chunk.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        for part, chunk in zip(_parts(name), tensor.chunk(len(_parts(name))), strict=True)
    }


def _optimizer(config: Config, moments: Moments, stored_groups: Any) -> dict[str, Any]:
    """AdamW's state dict, with the settings of its groups where a legacy file had them."""
    first = _split({name: values["exp_avg"] for name, values in moments.items()})
    second = _split({name: values["exp_avg_sq"] for name, values in moments.items()})
    steps = {part: values["step"] for name, values in moments.items() for part in _parts(name)}
    names = _optimizer_groups(config)
    numbers = {name: number for number, name in enumerate(names[0] + names[1])}
    defaults = torch.optim.AdamW(
        [torch.zeros(1)], lr=config.lr, betas=(config.beta1, config.beta2)
    ).state_dict()["param_groups"][0]
    groups = stored_groups or [
        {**defaults, "weight_decay": decay} for decay in (config.weight_decay, 0.0)
    ]
    return {
        "state": {
            number: {
                "step": steps[name].clone(),
                "exp_avg": first[name],
                "exp_avg_sq": second[name],
            }
            for name, number in numbers.items()
        },
        "param_groups": [
            {**group, "betas": tuple(group["betas"]), "params": [numbers[name] for name in part]}
            for group, part in zip(groups, names, strict=True)
        ],
    }


# Names and order of the tensors.


def _parts(name: str) -> list[str]:
    """The legacy names for one of our parameters: one, or three of equal size."""
    name = f"transformer.{name}"
    if ".attn.c_attn." in name:
        return [name.replace(".attn.c_attn.", f".attention.W_{x}.") for x in "qkv"]
    for pattern, replacement in _LEGACY_NAMES:
        name = pattern.sub(replacement, name)
    return [name]


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _joined(path: Path, tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Under the names of GPT2LMHeadModel."""
    rest, joined = dict(tensors), {}
    for name in hollow_model(config).state_dict():
        lacking = [part for part in _parts(name) if part not in rest]
        if lacking:
            raise _refused(path, f"it lacks {lacking[0]}")
        parts = [rest.pop(part) for part in _parts(name)]
        if any((part.shape, part.dtype) != (parts[0].shape, parts[0].dtype) for part in parts):
            kinds = ", ".join(f"{tuple(part.shape)} of {part.dtype}" for part in parts)
            raise _refused(path, f"the parts of {name} differ: one has shape {kinds}")
        joined[their_name(name)] = _join(parts)
    return joined | rest


def _names(config: Config) -> list[str]:
    """The legacy names in the order of a state dict, but for the head."""
    layer = ["ln1", "ln2", _MASK.removeprefix(".")]
    layer += [f"attention.{name}" for name in ("W_q", "W_k", "W_v", "out_net")]
    layer += ["ffn.dense1", "ffn.out_net"]
    modules = [f"h.{number}.{name}" for number in range(config.n_layer) for name in layer]
    names = [_EMBEDDING, "transformer.wpe.weight"]
    for module in [*modules, "ln_f"]:
        kinds = ("",) if module.endswith(_MASK) else (".weight", ".bias")[: 1 + config.bias]
        names += [f"transformer.{module}{kind}" for kind in kinds]
    return names


def _optimizer_groups(config: Config) -> tuple[list[str], list[str]]:
    """The names in AdamW's two groups, which it numbers one after the other: with and without
    weight decay."""
    vector = re.compile(r"\.bias$|\.ln(1|2|_f)\.")
    learnt = [name for name in _names(config) if not name.endswith(_MASK)]
    return (
        [name for name in learnt if not vector.search(name)],
        [name for name in learnt if vector.search(name)],
    )
