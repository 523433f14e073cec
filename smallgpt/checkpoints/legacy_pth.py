"""The legacy `.pth`, the format of the published models: one dict with the shape, the step,
`state_dict` and the state of AdamW. There is no vocabulary in it.

Its linear layers have our layout, (out, in), but queries, keys and values are three matrices.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints.checkpoint import Checkpoint, load_pickle, read_manifest
from smallgpt.checkpoints.huggingface import check_finite, check_size, from_tensors, hollow_model
from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.model.parameters import parameter_groups
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.tokenizer.subwords import pieces_of
from smallgpt.utils import atomic
from smallgpt.utils.commands import with_config
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import not_found

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
_VECTOR = re.compile(r"\.bias$|\.ln(1|2|_f)\.")
_LEGACY_NAMES = (
    (".ln_1.", ".ln1."),
    (".ln_2.", ".ln2."),
    (".attn.c_proj.", ".attention.out_net."),
    (".mlp.c_fc.", ".ffn.dense1."),
    (".mlp.c_proj.", ".ffn.out_net."),
)

Moments = Mapping[str, Mapping[str, Tensor]]
"""By parameter AdamW's `step`, `exp_avg` and `exp_avg_sq`, as in a saved optimizer; or empty."""


def is_legacy(path: Path) -> bool:
    """Whether a path is meant to be a legacy file."""
    return path.suffix in SUFFIXES and not path.is_dir()


def load(path: Path, texts: list[Path] | None) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, its weights mapped from the file, and the training state. No code runs.

    Args:
        texts: what the weights were trained on: their vocabulary is the text's.

    Raises:
        UserError: the file is missing, damaged, hostile or of another format; or the text is not
            its own, or None.
    """
    if not path.exists():
        train = with_config("train.py", "train90M")
        own = f"or train a model of your own ({train}) and chat with it: resume_from=latest"
        raise not_found(path, advice=f"put it there, {own}")
    stored = load_pickle(path, "get the file again", mmap=True)
    state, step = stored.get("state_dict"), stored.get("global_step")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _refused(path, "state_dict is not a dict of tensors")
    if type(step) is not int or step < 0:
        raise _refused(path, f"global_step is {step!r}, not a number from 0")
    shape = {key: stored.get(key) for key in _SHAPE_KEYS} | {"bias": stored.get("bias", True)}
    config = config_from_dict(shape, str(path), Config)
    tensors = {str(name).removeprefix(COMPILED): tensor for name, tensor in state.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_MASK)}
    check_size(path, tensors)
    weights = from_tensors(path, tensors, config, parts=_parts)
    check_finite(path, weights)
    moments: Moments = {}
    rest = {
        "global_epoch": stored.get("global_epoch", 0),
        "dataset": str(stored.get("dataset", "")),
        "param_groups": [],
        "compiled": any(str(name).startswith(COMPILED) for name in state),
    }
    if optimizer := stored.get("optimizer"):
        try:
            moments = _read_moments(path, optimizer["state"], config)
            rest["param_groups"] = [
                {k: v for k, v in g.items() if k != "params"} for g in optimizer["param_groups"]
            ]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _refused(path, f"its optimizer is damaged: {error}") from None
    tokenizer = _vocabulary(path, config.vocab_size, moments, texts)
    config = dataclasses.replace(config, data_path=[str(text) for text in texts or []])
    manifest = {"original": rest, "sha256": {}}
    # The file does not know the place in the text.
    training = {"scaler": {}, "completed": step, "rows_used": 0, "text": None, "moments": moments}
    return Checkpoint(path, step, config, tokenizer, weights, manifest), training


def _refused(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a model of the legacy format: {reason}",
        "give a legacy cpt….pth file, or a checkpoint directory",
    )


def _read_moments(path: Path, state: Any, config: Config) -> Moments:
    if not state:
        return {}  # it has taken no step
    numbers = _numbers(config)
    moments: dict[str, dict[str, Tensor]] = {}
    for key in ("exp_avg", "exp_avg_sq"):
        tensors = {part: state[number][key] for part, number in numbers.items()}
        file = f"{key} of the optimizer of {path}"
        for name, tensor in from_tensors(file, tensors, config, parts=_parts).items():
            step = state[numbers[_parts(name)[0]]]["step"]
            moments.setdefault(name, {"step": torch.as_tensor(step, dtype=torch.float32)})
            moments[name][key] = tensor
    return moments


def _vocabulary(path: Path, wanted: int, moments: Moments, texts: list[Path] | None) -> Tokenizer:
    from smallgpt.data.corpus import open_corpus  # only here: other models need not wait for it
    from smallgpt.data.dialogue_formats import text_chunks

    if texts is None:
        raise UserError(
            f"{path} has no vocabulary of its own",
            _convert_to(path.with_suffix(""), path) + ", with the very text it was trained on",
        )
    advice = "set data_path (or --text) to the very text the weights were trained on"
    try:
        tokenizer = open_corpus(texts, text_chunks).tokenizer
    except UserError as error:
        raise UserError(
            f"{path} holds no vocabulary, and its text cannot be read: {error.problem}", advice
        ) from None
    spare = wanted - len(tokenizer)
    if spare and not (0 < spare <= SPARE_IDS and _were_never_used(moments, spare)):
        raise UserError(
            f"{path} has a vocabulary of {wanted:,} ids, but {', '.join(map(str, texts))} gives "
            f"{len(tokenizer):,}",
            advice,
        )
    if spare:
        note(f"{path}: the last {spare} of {wanted:,} ids were never used in training")
    return tokenizer


def _were_never_used(moments: Moments, spare: int) -> bool:
    """Whether the last ids had no character in training.

    Such rows of the embedding are only ever pushed away from all that is said: together with
    `<unk>`, which legacy training never saw, their gradients have one direction.
    """
    if not moments:
        return False
    gradients_VE = moments["wte.weight"]["exp_avg"]
    similarity_V = F.cosine_similarity(gradients_VE, gradients_VE[-1:])
    return bool((similarity_V[[UNK, *range(-spare, 0)]] > PARALLEL).all())


# Converted into a directory.


def to_checkpoint(
    path: Path, texts: list[Path] | None, target: Path, with_optimizer: bool = True
) -> None:
    """Make a checkpoint directory of a `.pth` file; one that is there already is replaced.

    `texts` and errors are those of `load` and of `checkpoint.save`. Without its optimizer a model
    is for use only, and a third of the size.
    """
    stored, state = load(path, texts)
    names, once = ", ".join(stored.config.data_path), "" if with_optimizer else ", once"
    note(f"converting {path} with the vocabulary of {names} into {target}{once}")
    checkpoint.save(
        target.parent,
        stored.step,
        stored.config,
        stored.tokenizer,
        stored.weights,
        state if with_optimizer and state["moments"] else None,
        {**stored.manifest, "source": _identity(path)},
        name=target.name,
    )


def directory_beside(path: Path, texts: list[Path] | None) -> Path:
    """The checkpoint directory of a `.pth` file: beside it, made the first time, for use only.

    It is a UserError if it cannot be made (see `to_checkpoint`), or something else is in its place.
    """
    target = path.with_suffix("")
    if (target / MANIFEST_FILE).is_file():
        source = read_manifest(target).get("source")
        if not path.exists() or source == _identity(path):
            return target
    else:
        source = None
    if source is None and path.exists() and target.exists():
        raise UserError(
            f"{path} would be converted into {target}, but something else is there",
            "move it, or " + _convert_to("DIRECTORY", path),
        )
    to_checkpoint(path, texts, target, with_optimizer=False)
    return target


def _convert_to(target: Path | str, path: Path) -> str:
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
    config, rest = stored.config, stored.manifest.get("original", {})
    for key in ("activation", "layer_norm_epsilon", "tied", "ngram_order"):
        if getattr(config, key) != getattr(Config(), key):
            raise UserError(f"{key} is {getattr(config, key)}: no legacy .pth has such a network")
    if pieces_of(stored.tokenizer):
        raise UserError("tokenizer is subwords: a legacy .pth is for a vocabulary of characters")
    tensors = _split(stored.weights)
    mask = torch.ones(config.block_size, config.block_size).tril()[None]
    state = {name: tensors.get(name, mask) for name in _file_names(config)}
    state[_HEAD] = state[_EMBEDDING]
    prefix = COMPILED if rest.get("compiled") else ""
    contents: dict[str, Any] = {
        "global_step": stored.step,
        "global_epoch": rest.get("global_epoch", 0),
        **{key: getattr(config, key) for key in _SHAPE_KEYS},
        "bias": config.bias,
        "dataset": rest.get("dataset", ""),
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
    }
    if (stored.path / checkpoint.STATE_FILE).exists() and (moments := _moments(stored)):
        contents["optimizer"] = _optimizer(config, moments, rest.get("param_groups"))
    with (
        checkpoint.write_errors(str(target)),
        atomic.file(target) as work,
        work.open("wb") as file,  # of a name, torch wants a suffix
    ):
        torch.save(contents, file)


def _moments(stored: Checkpoint) -> Moments:
    """AdamW's state by the name of the parameter; empty where another optimizer was at work."""
    state = stored.training_state()
    if "moments" in state:
        moments: Moments = state["moments"]
        return moments
    if len(state.get("optimizers", [])) != 1:
        note("the optimizer is not written: a legacy .pth has AdamW only")
        return {}
    hollow = hollow_model(stored.config)
    names = [name for group in parameter_groups(hollow) for name, _ in group]
    numbered = state["optimizers"][0]["state"]
    return {name: numbered[number] for number, name in enumerate(names)}


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
    numbers = _numbers(config)
    decaying = sum(not _VECTOR.search(name) for name in numbers)
    members = [*range(decaying)], [*range(decaying, len(numbers))]
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
            {**group, "betas": tuple(group["betas"]), "params": part}
            for group, part in zip(groups, members, strict=True)
        ],
    }


# Names and order of the tensors.


def _parts(name: str) -> list[str]:
    """The legacy names for one of our parameters: one, or three of equal size."""
    name = f"transformer.{name}"
    if ".attn.c_attn." in name:
        return [name.replace(".attn.c_attn.", f".attention.W_{x}.") for x in "qkv"]
    for ours, theirs in _LEGACY_NAMES:
        name = name.replace(ours, theirs)
    return [name]


def _file_names(config: Config) -> list[str]:
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


def _numbers(config: Config) -> dict[str, int]:
    """By legacy name the number in AdamW: first what decays, then vectors, which do not."""
    learnt = [name for name in _file_names(config) if not name.endswith(_MASK)]
    ordered = sorted(learnt, key=lambda name: _VECTOR.search(name) is not None)
    return {name: number for number, name in enumerate(ordered)}
