"""The legacy `.pth`, the format of the published models: one dict with the shape, the step,
`state_dict` and the state of AdamW. There is no vocabulary in it.

Its linear layers have our layout, (out, in), but queries, keys and values are three matrices.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.checkpoints.huggingface import check_finite, hollow_model
from smallgpt.config import Config
from smallgpt.utils.errors import UserError

SUFFIXES = (".pth", ".pt")
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
_CALLED = re.compile(r"GLOBAL ([\w.]+)")

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
    """Whether a path is meant to be such a file."""
    return path.suffix in SUFFIXES and not path.is_dir()


def read(path: Path) -> LegacyModel:
    """Read a file without running code from it; it is memory-mapped.

    Raises:
        UserError: it is missing, damaged, hostile, or not a legacy file.
    """
    stored = _load(path)
    state = stored["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _refused(path, "state_dict is not a dict of tensors")
    config = _config(path, stored)
    tensors = {str(name).removeprefix(COMPILED): tensor for name, tensor in state.items()}
    shapes = {name: tuple(t.shape) for name, t in hollow_model(config).state_dict().items()}
    _check_tensors(path, tensors, shapes)
    weights = {name: _join([tensors[part] for part in _parts(name)]).float() for name in shapes}
    check_finite(path, weights)
    moments, groups = None, []
    if optimizer := stored.get("optimizer"):
        try:
            moments = _read_moments(optimizer["state"], config, tensors, shapes)
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


def _optimizer_groups(config: Config, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """The names in AdamW's two groups, which it numbers one after the other: with and without
    weight decay."""
    learnt = [name for name in _names(config) if not name.endswith(_MASK)]
    return (
        [name for name in learnt if tensors[name].dim() >= 2],
        [name for name in learnt if tensors[name].dim() < 2],
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores entries as they are; what is packed could unpack to any size.
            if any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist()):
                raise UserError(f"{path} is refused: torch does not compress what it saves")
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(
            f"{path} not found",
            "put it there; or chat with what you trained: resume_from=latest, after "
            "python train.py config/demo.yaml (or config/train90M.yaml with your text)",
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder", "give the file in it") from None
    except UserError:
        raise
    except zipfile.BadZipFile:
        raise _refused(path, "it is cut off, or was not written by torch.save") from None
    except Exception as error:  # a forged file makes torch stumble in many ways
        called = _CALLED.search(str(error))
        reason = f"it would run {called[1]}" if called else "it is damaged"
        raise UserError(
            f"{path} is refused: {reason}, and is not tensors and plain values only",
            "reading it could run a stranger's code; get the file again",
        ) from None
    if not isinstance(stored, dict) or "state_dict" not in stored:
        raise _refused(path, "it has no state_dict")
    return stored


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
    config = dataclasses.replace(Config(), **shape, bias=stored.get("bias", True))
    config.check(lambda key: str(path))
    return config


def _check_tensors(
    path: Path, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]
) -> None:
    known, size = {_HEAD}, 0
    for name, shape in shapes.items():
        parts = _parts(name)
        part_shape = (shape[0] // len(parts), *shape[1:])
        for part in parts:
            tensor = tensors.get(part)
            if tensor is None:
                raise _refused(path, f"it lacks {part}")
            if tuple(tensor.shape) != part_shape:
                raise _refused(path, f"{part} has shape {tuple(tensor.shape)}, not {part_shape}")
            if not tensor.is_floating_point():
                raise _refused(path, f"{part} holds {tensor.dtype}")
            size += tensor.numel() * tensor.element_size()
            known.add(part)
    if size > path.stat().st_size:  # views of a small storage can look like terabytes
        raise _refused(path, "its tensors are larger than the file")
    unknown = [name for name in tensors if name not in known and not name.endswith(_MASK)]
    if unknown:
        raise _refused(path, f"it has unknown tensors ({unknown[0]} …)")
    if not torch.equal(tensors.get(_HEAD, tensors[_EMBEDDING]), tensors[_EMBEDDING]):
        raise _refused(path, "its output head is not its embedding")


def _read_moments(
    state: Any, config: Config, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]
) -> Moments | None:
    """AdamW's state by our names; None where it has taken no step."""
    if not state:
        return None
    matrices, vectors = _optimizer_groups(config, tensors)
    by_name = {name: state[number] for number, name in enumerate(matrices + vectors)}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, shape in shapes.items():
        parts = [by_name[part] for part in _parts(name)]
        moments[name] = {"step": torch.as_tensor(parts[0]["step"], dtype=torch.float32)}
        for key in ("exp_avg", "exp_avg_sq"):
            moments[name][key] = _join([part[key] for part in parts])
            if tuple(moments[name][key].shape) != shape:
                raise ValueError(f"{key} of {name} has another shape")
    return moments


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
        result["optimizer"] = _optimizer(config, tensors, moments, rest.get("param_groups"))
    return result


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By legacy name. Copies: of a view, torch.save would write all that it is a view of."""
    return {
        part: chunk.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        for part, chunk in zip(_parts(name), tensor.chunk(len(_parts(name))), strict=True)
    }


def _optimizer(
    config: Config, tensors: Mapping[str, Tensor], moments: Moments, stored_groups: Any
) -> dict[str, Any]:
    """AdamW's state dict, with the settings of its groups where a legacy file had them."""
    first = _split({name: values["exp_avg"] for name, values in moments.items()})
    second = _split({name: values["exp_avg_sq"] for name, values in moments.items()})
    steps = {part: values["step"] for name, values in moments.items() for part in _parts(name)}
    names = _optimizer_groups(config, tensors)
    numbers = {name: number for number, name in enumerate(names[0] + names[1])}
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    defaults = torch.optim.AdamW([torch.zeros(1)], **settings).state_dict()["param_groups"][0]
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
