"""The `.pth` files of the earlier implementation, to which the published models belong.

One dict: the shape, the step, `state_dict`, and the state of AdamW. There is no vocabulary in it.
Shapes as in model.py; its linear layers have ours' layout, (out, in), but queries, keys and values
are three matrices.
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
MOMENTS = ("exp_avg", "exp_avg_sq")
_SHAPE_KEYS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
_NAMES = (
    (re.compile(r"\.ln_([12])\."), r".ln\1."),
    (re.compile(r"\.attn\.c_proj\."), ".attention.out_net."),
    (re.compile(r"\.mlp\.c_fc\."), ".ffn.dense1."),
    (re.compile(r"\.mlp\.c_proj\."), ".ffn.out_net."),
)
_CALLED = re.compile(r"GLOBAL ([\w.]+)")
_JOINT = ".attn.c_attn."
_NOT_LEARNT = re.compile(r"\.attention\.attention\.mask$|^lm_head\.weight$")
"""The causal mask, and the embedding a second time."""


@dataclass(frozen=True)
class Original:
    """What a file holds, under our names.

    config: the default keys with the file's shape.
    weights: state dict of a GPT, float32; views of the file where they can be.
    moments: by parameter, AdamW's `step`, `exp_avg`, `exp_avg_sq`; None where the file has none.
    rest: what our checkpoints do not have: `global_epoch`, `dataset`, `param_groups`, `compiled`.
    """

    step: int
    config: Config
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]] | None
    rest: dict[str, Any]


def read(path: Path) -> Original:
    """Read a file without running code from it; it is memory-mapped.

    Raises:
        UserError: it is missing, damaged, hostile, or not a file of the earlier implementation.
    """
    stored = _load(path)
    state = stored["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _not_ours(path, "state_dict is not a dict of tensors")
    config = _shape(path, stored)
    compiled = any(str(name).startswith(COMPILED) for name in state)
    tensors = {str(name).removeprefix(COMPILED): tensor for name, tensor in state.items()}
    expected = {name: tuple(t.shape) for name, t in hollow_model(config).state_dict().items()}
    _check_tensors(path, tensors, expected)
    weights = {name: _joined([tensors[n] for n in theirs(name)]).float() for name in expected}
    check_finite(path, weights)
    order = [name for name in tensors if not _NOT_LEARNT.search(name)]
    optimizer = stored.get("optimizer")
    moments = _read_moments(path, optimizer, order, tensors, expected) if optimizer else None
    groups = optimizer["param_groups"] if optimizer else []
    rest = {
        "global_epoch": stored.get("global_epoch", 0),
        "dataset": str(stored.get("dataset", "")),
        "param_groups": [{k: v for k, v in g.items() if k != "params"} for g in groups],
        "compiled": compiled,
    }
    return Original(stored["global_step"], config, weights, moments, rest)


def theirs(name: str) -> list[str]:
    """The names of the earlier implementation for one of our parameters: one, or three."""
    if _JOINT in name:
        return ["transformer." + name.replace(_JOINT, f".attention.W_{x}.") for x in "qkv"]
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return ["transformer." + name]


def _load(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch stores entries as they are; what is packed could unpack to any size.
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise UserError(f"{path} is refused: torch does not compress what it saves")
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder", "give the file in it") from None
    except UserError:
        raise
    except zipfile.BadZipFile:
        raise _not_ours(path, "it is cut off, or was not written by torch.save") from None
    except Exception as error:  # a forged file makes torch stumble in many ways
        called = _CALLED.search(str(error))
        reason = f"it would run {called[1]}" if called else "it is damaged"
        raise UserError(
            f"{path} is refused: {reason}, and is not tensors and plain values only",
            "reading it could run a stranger's code; get the file again",
        ) from None
    if not isinstance(stored, dict) or "state_dict" not in stored:
        raise _not_ours(path, "it has no state_dict")
    return stored


def _not_ours(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a model of the earlier implementation: {reason}",
        "give a cpt….pth file of it, or a checkpoint directory",
    )


def _shape(path: Path, stored: dict[str, Any]) -> Config:
    for key, least in {**dict.fromkeys(_SHAPE_KEYS, 1), "global_step": 0}.items():
        if type(stored.get(key)) is not int or stored[key] < least:
            raise _not_ours(path, f"{key} is {stored.get(key)!r}, not a number from {least}")
    if not isinstance(stored.get("bias", True), bool):
        raise _not_ours(path, f"bias is {stored['bias']!r}")
    if stored["n_layer"] > len(stored["state_dict"]):
        raise _not_ours(path, f"it has fewer tensors than its n_layer, {stored['n_layer']}, says")
    shape = {key: stored[key] for key in _SHAPE_KEYS}
    config = dataclasses.replace(Config(), **shape, bias=stored.get("bias", True))
    config.check(lambda key: str(path))
    return config


def _check_tensors(
    path: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]
) -> None:
    known = {"lm_head.weight"}
    held = 0
    for name, shape in expected.items():
        parts = theirs(name)
        part_shape = (shape[0] // len(parts), *shape[1:])
        for part in parts:
            tensor = tensors.get(part)
            if tensor is None:
                raise _not_ours(path, f"it lacks {part}")
            if tuple(tensor.shape) != part_shape:
                raise _not_ours(path, f"{part} has shape {tuple(tensor.shape)}, not {part_shape}")
            if not tensor.is_floating_point():
                raise _not_ours(path, f"{part} holds {tensor.dtype}")
            held += tensor.numel() * tensor.element_size()
            known.add(part)
    if held > path.stat().st_size:  # views of a small storage can look like terabytes
        raise _not_ours(path, "its tensors are larger than the file")
    unknown = [n for n in tensors if n not in known and not _NOT_LEARNT.search(n)]
    if unknown:
        raise _not_ours(path, f"it has unknown tensors ({unknown[0]} …)")
    head, embedding = tensors.get("lm_head.weight"), tensors["transformer.wte.weight"]
    if head is not None and not torch.equal(head, embedding):
        raise _not_ours(path, "its output head is not its embedding")


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_moments(
    path: Path,
    optimizer: Any,
    order: list[str],
    tensors: dict[str, Tensor],
    expected: dict[str, tuple[int, ...]],
) -> dict[str, dict[str, Tensor]] | None:
    """AdamW's state by our names; None where it has taken no step.

    It numbers the parameters of two groups: those of two or more dimensions, then the others.
    """
    numbered = [n for n in order if tensors[n].dim() >= 2]
    numbered += [n for n in order if tensors[n].dim() < 2]
    try:
        state = optimizer["state"]
        if not state:
            return None
        by_name = {name: state[number] for number, name in enumerate(numbered)}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, shape in expected.items():
            parts = [by_name[n] for n in theirs(name)]
            moments[name] = {"step": torch.as_tensor(parts[0]["step"], dtype=torch.float32)}
            for key in MOMENTS:
                moments[name][key] = _joined([part[key] for part in parts])
                if tuple(moments[name][key].shape) != shape:
                    raise ValueError(f"{key} of {name} has another shape")
        return moments
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _not_ours(path, f"its optimizer is damaged: {error}") from None


def _refuse_other_networks(config: Config) -> None:
    default = Config()
    for key in ("activation", "layer_norm_epsilon", "tied", "ngram_order"):
        if getattr(config, key) != getattr(default, key):
            raise UserError(
                f"{key} is {getattr(config, key)}: the earlier implementation has no such network"
            )


def contents(
    step: int,
    config: Config,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]] | None,
    rest: Mapping[str, Any],
) -> dict[str, Any]:
    """What `read` reads: the dict that `torch.save` is to write, on the CPU.

    Args:
        rest: as in `Original`; what is missing takes a default.

    Raises:
        UserError: the network is one that the earlier implementation does not have.
    """
    _refuse_other_networks(config)
    pieces = {n: piece for name in weights for n, piece in _split(name, weights[name]).items()}
    mask = torch.ones(config.block_size, config.block_size).tril()[None]
    order = _order(config)
    state = {name: pieces.get(name, mask) for name in order}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    order = [name for name in order if name in pieces]
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
        result["optimizer"] = _optimizer(config, order, state, moments, rest)
    return result


def _order(config: Config) -> list[str]:
    """The names in a state dict of theirs, but for the head."""
    layer = ["ln1", "ln2", "attention.attention.mask"]
    layer += [f"attention.{name}" for name in ("W_q", "W_k", "W_v", "out_net")]
    layer += ["ffn.dense1", "ffn.out_net"]
    modules = [f"h.{number}.{name}" for number in range(config.n_layer) for name in layer]
    names = ["transformer.wte.weight", "transformer.wpe.weight"]
    for module in [*modules, "ln_f"]:
        kinds = ("weight", "bias") if config.bias else ("weight",)
        whole = module.endswith(".mask")
        names += [f"transformer.{module}" + ("" if whole else f".{kind}") for kind in kinds]
    return list(dict.fromkeys(names))


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    parts = theirs(name)
    # Copies: a view would make torch.save write the whole of what it is a view of.
    return {
        part: piece.clone(memory_format=torch.contiguous_format)
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)
    }


def _optimizer(
    config: Config,
    order: list[str],
    state: dict[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    rest: Mapping[str, Any],
) -> dict[str, Any]:
    by_name: dict[str, dict[str, Tensor]] = {}
    for name, values in moments.items():
        for part in theirs(name):
            by_name[part] = {"step": values["step"].clone()}
        for key in MOMENTS:
            for part, piece in _split(name, values[key]).items():
                by_name[part][key] = piece
    matrices = [n for n in order if state[n].dim() >= 2]
    vectors = [n for n in order if state[n].dim() < 2]
    numbered = {name: number for number, name in enumerate(matrices + vectors)}
    defaults = torch.optim.AdamW(
        [torch.zeros(1)], lr=config.lr, betas=(config.beta1, config.beta2)
    ).state_dict()["param_groups"][0]
    groups = rest.get("param_groups") or [
        {**defaults, "weight_decay": config.weight_decay},
        {**defaults, "weight_decay": 0.0},
    ]
    return {
        "state": {numbered[name]: by_name[name] for name in numbered},
        "param_groups": [
            {**group, "betas": tuple(group["betas"]), "params": [numbered[name] for name in names]}
            for group, names in zip(groups, (matrices, vectors), strict=True)
        ],
    }
