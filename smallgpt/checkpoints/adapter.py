"""An adapter: what LoRA has learnt, in a directory in PEFT's format.

    adapter_config.json, adapter_model.safetensors     what PEFT reads
    tokenizer.json, tokenizer_config.json, config.yaml, training_state.pt, manifest.json
                                                       as in a checkpoint (see checkpoint.py)

It names the model it is for, its base, by path and checksum. PEFT leaves out the second line; what
it has trained on a base of ours can be opened too.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from smallgpt.checkpoints import checkpoint, huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint, DamagedError
from smallgpt.checkpoints.run_folder import MANIFEST_FILE, place
from smallgpt.config import Config, SentimentConfig
from smallgpt.config_file import config_from_dict, load_config
from smallgpt.model import lora
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.tokenizer.subwords import load_tokenizer
from smallgpt.utils.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_THEIR_ROWS = ".token_adapter.trainable_tokens_delta"
_NOT_OURS = {
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "alpha_pattern", "layer_replication")),
    **dict.fromkeys(("alora_invocation_tokens", "target_parameters", "use_bdlora", "loftq_config")),
    "bias": "none",
}
"""Settings of PEFT's that change what an adapter computes, and what they must be."""
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of PEFT's to begin that take something out of the base's matrices."""


@dataclass(frozen=True)
class Base:
    """The model that an adapter is for.

    name: what opens it: its path, or the name of the one that comes with Small GPT.
    path: its directory, for PEFT.
    sha256: of its weights.
    added_rows: rows of the adapter's embedding behind those that it has.
    """

    name: str
    path: str
    sha256: str
    added_rows: int


def base_of(stored: Checkpoint, name: str, added_rows: int) -> Base:
    """How an adapter will name its base; arguments are those of `Base`.

    Raises:
        UserError: it is an adapter itself, which PEFT cannot build on.
    """
    if is_adapter(stored.path):
        advice = f"merge it: python -m smallgpt convert {stored.path} --merge --output DIRECTORY"
        raise UserError(f"base_model: {stored.path} is an adapter, not a whole model", advice)
    return Base(name, str(stored.path), stored.weights_checksum(), added_rows)


def base_in(stored: Checkpoint) -> Base:
    """What an adapter of ours says of its base."""
    return Base(**stored.manifest["base"])


def is_adapter(path: Path) -> bool:
    """Whether it is the directory of an adapter."""
    return (path / CONFIG_FILE).is_file()


def labels_of(path: Path) -> list[str] | None:
    """The classes of an adapter for a classifier; None of one for a language model."""
    if not (path / MANIFEST_FILE).is_file():
        return None
    labels: list[str] | None = _read_manifest(path)["labels"]
    return labels


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an adapter of ours; errors are those of `checkpoint.read_manifest`."""
    manifest = checkpoint.read_manifest(path)
    try:
        base, labels = Base(**manifest["base"]), manifest["labels"]
        whole = all(isinstance(getattr(base, f.name), f.type) for f in dataclasses.fields(base))  # type: ignore[arg-type]
        whole &= labels is None or all(isinstance(label, str) for label in [*labels])
        if not whole or not isinstance(manifest["rank"], int):
            raise TypeError("base, labels or rank is not what it should be")
    except (KeyError, TypeError) as error:
        file = path / MANIFEST_FILE
        raise DamagedError(path, f"{file} is damaged: {error!r}") from None
    return manifest


def save(
    base: Base,
    root: Path,
    step: int,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    training_state: dict[str, Any] | None,
    facts: Mapping[str, Any],
    labels: list[str] | None = None,
) -> Path:
    """Write the adapter `root/cpt{step}`; arguments and errors are those of `checkpoint.save`.

    `weights` is what `lora.learnt` gives.
    """
    target = place(root, step)
    tensors = {_their_name(name, labels): tensor for name, tensor in weights.items()}
    more = {"base": dataclasses.asdict(base), "labels": labels, "rank": config.lora_rank}
    with checkpoint.new_directory(target, "checkpoint_root") as work:
        described = _peft_config(base, config, tokenizer, weights, labels)
        text = json.dumps(described, indent=1, ensure_ascii=False)
        (work / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        huggingface.write_tensors(tensors, work / WEIGHTS_FILE)
        checkpoint.write_run(
            work, config, tokenizer, training_state, {"step": step, **facts, **more}
        )
    return target


def _their_name(name: str, labels: list[str] | None) -> str:
    """PEFT's name for one of our parameters."""
    name = name if labels is not None or name.startswith("lm_head.") else f"transformer.{name}"
    if name.endswith((lora.A, lora.B)):
        return f"{_PREFIX}{name}.weight"
    return _PREFIX + name.replace(lora.ROWS, _THEIR_ROWS)


def _peft_config(
    base: Base,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    labels: list[str] | None,
) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    rows = {
        name.removesuffix(lora.ROWS).rpartition(".")[2]: list(
            range(len(tokenizer) - len(tensor), len(tokenizer))
        )
        for name, tensor in weights.items()
        if name.endswith(lora.ROWS)
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if labels is None else "SEQ_CLS",
        "base_model_name_or_path": base.path,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": list(config.lora_matrices()),
        "fan_in_fan_out": True,  # transformers' GPT-2 keeps matrices as (in, out)
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None if labels is None else ["score"],
        # With tied embeddings one list is for both.
        "trainable_token_indices": (rows if len(rows) > 1 else rows.get("wte")) or None,
    }


def load(
    path: Path,
    open_bases: Callable[[str], Iterator[Checkpoint]],
    verify_weights: bool = True,
    classifier: bool | None = False,
) -> Checkpoint:
    """Read an adapter with its base: the weights are those of a network with adapters, as
    `lora.add_adapters` makes it, and so is the config. `merge` makes a plain network of it.

    Args:
        open_bases: opens the models that a name may stand for, in turn; an empty name means that
            none is known.
        verify_weights, classifier: see `checkpoint.load`.

    Raises:
        UserError: it is damaged, or of the other kind; its base is missing, or another one; or PEFT
            was asked for something that our network does not have.
    """
    ours = (path / MANIFEST_FILE).is_file()
    manifest: dict[str, Any] = {"step": 0, "sha256": {}}
    if ours:
        manifest = _read_manifest(path)
    for name in sorted(manifest["sha256"]):
        if name != checkpoint.STATE_FILE and (verify_weights or name != WEIGHTS_FILE):
            checkpoint.verify(path, manifest, name)
    labels = labels_of(path)
    if classifier is not None and classifier != (labels is not None):
        raise checkpoint.other_kind(path, labels)
    settings = huggingface.read_json(path / CONFIG_FILE)
    _refuse_unknown(path, settings, ours)
    known = manifest.get("base") or {}
    named = known.get("name") or settings.get("base_model_name_or_path")
    checksum, others = known.get("sha256"), list[str]()
    for base in open_bases(named if isinstance(named, str) else ""):
        if checksum in (None, base.weights_checksum()):
            break
        others.append(str(base.path))
    else:
        raise UserError(
            f"{path} is an adapter for another model than {', '.join(others)}: the weights there "
            "have changed since it was trained",
            "put the model back that it was trained on, or train it anew",
        )
    if ours:
        schema = Config if labels is None else SentimentConfig
        config: Config = load_config(path / checkpoint.CONFIG_FILE, [], schema)
        tokenizer = load_tokenizer(path)
    else:
        rank, alpha = settings.get("r"), settings.get("lora_alpha")
        own = {"lora_rank": rank, "lora_alpha": alpha, "base_model": str(base.path)}
        config = config_from_dict(dataclasses.asdict(base.config) | own, str(path), Config)
        tokenizer = base.tokenizer
    frozen = _weights_of(base, config, tokenizer, labels)
    tensors = _read(path, labels)
    _check_fit(path, tensors, frozen)
    if not ours:
        _refuse_other_ids(path, tensors, base)
        _put_into_base(path, tensors, frozen, settings)
    weights = lora.adapted(frozen, tensors)
    return Checkpoint(path, manifest["step"], config, tokenizer, weights, manifest, labels)


def merge(stored: Checkpoint) -> Checkpoint:
    """The plain model of an adapter and its base, in float32."""
    config = dataclasses.replace(stored.config, lora_rank=0)
    return dataclasses.replace(
        stored, config=config, weights=lora.merged(stored.weights, stored.config.lora_alpha)
    )


def write_merged(stored: Checkpoint, target: Path) -> None:
    """Write an adapter, as `load` gives it, and its base as a whole checkpoint, for use only.

    Raises:
        UserError: it is no adapter, or `target` cannot be written.
    """
    if not is_adapter(stored.path):
        raise UserError(f"{stored.path} is no adapter: there is nothing to merge")
    whole = merge(stored)
    known = ("base", "labels", "rank", "step", "sha256", "format")
    facts = {key: value for key, value in stored.manifest.items() if key not in known}
    config, tokenizer, weights = whole.config, whole.tokenizer, whole.weights
    arguments = (whole.step, config, tokenizer, weights, None, facts, whole.labels)
    checkpoint.save(target.parent, *arguments, name=target.name)


def _weights_of(
    base: Checkpoint, config: Config, tokenizer: Tokenizer, labels: list[str] | None
) -> dict[str, Tensor]:
    """The weights that are frozen, and a head of zeros, which an adapter for a classifier has."""
    if labels is not None:
        head = {huggingface.HEAD: torch.zeros(huggingface.head_shape(config, labels))}
        return checkpoint.weights_for_classifier(base, tokenizer) | head
    if config.vocab_size == base.config.vocab_size:
        return dict(base.weights)  # with the rows that no character has
    return checkpoint.weights_for_vocabulary(base, tokenizer)


def _refuse_unknown(path: Path, settings: Mapping[str, Any], ours: bool) -> None:
    """Refuse what our network does not have, instead of leaving it out."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path} is an adapter of type {kind}", "Small GPT runs LoRA adapters only")
    for key, off in _NOT_OURS.items():
        if settings.get(key) and settings[key] != off:
            advice = "merge it with PEFT (merge_and_unload), and use the model that you get"
            raise UserError(f"{path} has {key}: {settings[key]!r}, which is not LoRA here", advice)
    if str(settings.get("init_lora_weights")).lower().startswith(_CHANGE_THE_BASE):
        problem = f"{path} began with {settings['init_lora_weights']}, which changes the base"
        raise UserError(problem, "convert it with PEFT to a plain LoRA adapter")
    if settings.get("task_type") == "SEQ_CLS" and not ours:
        advice = "merge it with PEFT (merge_and_unload): what you get can be a base_model"
        raise UserError(f"{path} is an adapter for a classifier of another program", advice)


def _refuse_other_ids(path: Path, tensors: Mapping[str, Tensor], base: Checkpoint) -> None:
    """Refuse rows of ids that PEFT and the base, as it is here, count in different orders."""
    if not base.has_checksums and any(name.startswith(lora.EMBEDDINGS) for name in tensors):
        raise UserError(
            f"{path} changes the embedding or the output head of another program's model, whose "
            "ids are in another order here",
            "merge it with PEFT (merge_and_unload), and use the model that you get",
        )


def _read(path: Path, labels: list[str] | None) -> dict[str, Tensor]:
    """The tensors of an adapter, by our names, in float32."""
    file = path / WEIGHTS_FILE
    try:
        stored = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is missing or damaged: {error}") from None
    for name, tensor in stored.items():
        if not tensor.is_floating_point() or not tensor.numel():
            held = f"{tensor.dtype}, of shape {tuple(tensor.shape)}"
            raise UserError(f"{file}: {name} holds {held}, not floating-point numbers")
    tensors = {_our_name(name, labels): tensor.float() for name, tensor in stored.items()}
    huggingface.check_finite(file, tensors)
    return {name: huggingface.in_our_layout(name, tensor) for name, tensor in tensors.items()}


def _check_fit(path: Path, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> None:
    """Refuse an adapter that was made for another network than its base."""
    for name, tensor in tensors.items():
        if not _fits(name, tensors, frozen):
            raise UserError(
                f"{path / WEIGHTS_FILE}: {name}, of shape {tuple(tensor.shape)}, does not fit its "
                "base",
                "it was trained on another model, or on one with a larger vocabulary",
            )


def _fits(name: str, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> bool:
    kind = next((kind for kind in (lora.A, lora.B, lora.ROWS) if name.endswith(kind)), "")
    module, tensor = name.removesuffix(kind), tensors[name]
    weight = frozen.get(f"{module}.weight" if kind else name)
    if weight is None or not kind:
        return weight is not None and tensor.shape == weight.shape
    if kind == lora.ROWS:
        return (
            tensor.dim() == 2 and tensor.shape[1] == weight.shape[1] and len(tensor) <= len(weight)
        )
    low, high = tensors.get(module + lora.A), tensors.get(module + lora.B)
    if low is None or high is None or low.dim() != 2 or high.dim() != 2:
        return False
    return (len(high), low.shape[1]) == weight.shape and high.shape[1] == len(low)


def _put_into_base(
    path: Path,
    tensors: dict[str, Tensor],
    frozen: dict[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Take out of an adapter of PEFT's what is not low-rank: weights and rows of the embedding that
    replace the base's. They are put into `frozen`."""
    for name, tensor in list(tensors.items()):
        if name.endswith(lora.A):
            continue
        if name.endswith(lora.B):
            if settings.get("use_rslora"):  # whose scale is alpha / sqrt(rank)
                tensors[name] = tensor * math.sqrt(tensor.shape[1])
        elif name.endswith(lora.ROWS):
            module, places = name.removesuffix(lora.ROWS), settings.get("trainable_token_indices")
            places = places.get(module) if isinstance(places, dict) else places
            weight, rows = frozen[f"{module}.weight"], tensors.pop(name)
            places = places if isinstance(places, list) and len(places) == len(rows) else [None]
            if not all(type(place) is int and 0 <= place < len(weight) for place in places):
                problem = f"{path / CONFIG_FILE}: trainable_token_indices are not ids of its base"
                advice = "it was trained on a base with a larger vocabulary"
                raise UserError(problem, advice)
            frozen[f"{module}.weight"] = weight.index_copy(0, torch.tensor(places), rows)
        elif name == "wte.weight" and huggingface.LM_HEAD not in frozen:
            problem = f"{path} replaces the embedding, but not the output head, which is tied to it"
            raise UserError(problem, "train trainable_token_indices instead")
        else:
            frozen[name] = tensors.pop(name)


def _our_name(name: str, labels: list[str] | None) -> str:
    """Our name for one of PEFT's tensors; `_their_name` back."""
    name = name.removeprefix(_PREFIX).replace(_THEIR_ROWS, lora.ROWS)
    if name.endswith((f"{lora.A}.weight", f"{lora.B}.weight")):
        name = name.removesuffix(".weight")
    return name if labels is not None else name.removeprefix("transformer.")
