"""Our model as a Hugging Face GPT-2: the same weights under the same names, in its layout."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smallgpt.config import Config, ModelConfig
from smallgpt.model.classifier import head_width
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import PAD, SEP, Tokenizer
from smallgpt.utils.errors import UserError

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
HEAD, LM_HEAD = "score.weight", "lm_head.weight"
_PREFIX = "transformer."
_CLASSIFIER = "GPT2ForSequenceClassification"
_NO_BIAS = re.compile(r"^(score|lm_head)\.|\.(wte|wpe)\.|\.ngrams\.")
OWN_TYPE = "smallgpt"
"""model_type of networks that GPT-2 has no place for, so that transformers refuses them instead of
leaving a part of them out."""
# GPT-2 keeps these matrices as (in, out); ours are (out, in) like every torch Linear.
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


def write(
    directory: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    labels: list[str] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32).

    `weights` is the state dict of a GPT of this config; with labels, of a Classifier.
    """
    values = {CONFIG_FILE: _model_config(config)}
    if labels is None:
        values[GENERATION_CONFIG_FILE] = _generation_config(config, tokenizer)
        weights = {their_name(name): tensor for name, tensor in weights.items()}
    else:
        values[CONFIG_FILE] |= _classifier_config(config, tokenizer, labels)
    for name, value in values.items():
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")
    tensors = dict(weights)
    if not config.bias:
        add_zero_biases(tensors)
    tensors = {n: t.t() if _TRANSPOSED.search(n) else t for n, t in tensors.items()}
    write_tensors(tensors, directory / WEIGHTS_FILE)


def add_zero_biases(tensors: dict[str, Tensor]) -> None:
    """Give parameters under their names, in our layout, the biases that GPT-2 always has."""
    for name, weight in list(tensors.items()):
        if name.endswith(".weight") and not _NO_BIAS.search(name):
            tensors[name.removesuffix("weight") + "bias"] = torch.zeros(len(weight))


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A safetensors file in float32, with one tensor at a time in memory beside those given.

    The library wants all of them contiguous at once: a second copy of the weights.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + 4 * tensors[name].numel()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            # A GPU transposes faster than the CPU.
            tensor = tensors[name].detach().to(torch.float32).contiguous().cpu()
            output.write(tensor.numpy().astype("<f4", copy=False).data)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or holds no object.
    """
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} cannot be read: it is not an object")
    return values


def read_files(directory: Path) -> dict[str, Tensor]:
    """What model.safetensors holds, or the several files that an index names instead.

    Raises:
        UserError: a file is missing or damaged.
    """
    index, files = directory / INDEX_FILE, [directory / WEIGHTS_FILE]
    if index.exists() and not files[0].exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if not all(Path(name).name == name for name in names):
                raise ValueError("it names files outside of its folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged: {error}") from None
        files = [directory / name for name in names]
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} is missing or damaged: {error}") from None
    return tensors


def from_tensors(
    file: Path | str,
    tensors: dict[str, Tensor],
    config: ModelConfig,
    labels: list[str] | None = None,
    parts: Callable[[str], list[str]] | None = None,
) -> dict[str, Tensor]:
    """The state dict of a GPT, or with labels of a Classifier, out of what `file` held.

    Args:
        tensors: by the file's names; emptied.
        parts: the file's names for one of our parameters, which are its equal parts, in our layout;
            None where the file has GPT2LMHeadModel's names and layout.

    Raises:
        UserError: they are not the tensors of a GPT-2 of this shape.
    """
    # Before a network of any size is built: each of these is a dimension of one of the tensors.
    largest = max((tensor.numel() for tensor in tensors.values()), default=0)
    sizes = (config.block_size, config.vocab_size, config.n_embd)
    if config.n_layer > len(tensors) or max(sizes) > largest:
        raise UserError(f"{file} has fewer tensors, or smaller ones, than its config says")
    expected = hollow_model(config).state_dict()
    if labels is not None:
        expected = {their_name(name): tensor for name, tensor in expected.items()}
        expected[HEAD] = torch.empty(head_shape(config, labels), device="meta")
    head = tensors.pop(LM_HEAD, None) if config.tied and labels is None else None
    weights = {}
    for own_name, tensor in expected.items():
        names = [own_name if labels is not None else their_name(own_name)]
        names = parts(own_name) if parts else names
        found = [
            _taken(file, tensors, name, part.shape, transposed=not parts).to(tensor.dtype)
            for name, part in zip(names, tensor.chunk(len(names)), strict=True)
        ]
        weights[own_name] = found[0] if len(found) == 1 else torch.cat(found)
    # Without biases of our own, the file's must be the zeros that `write` put there.
    unknown = [
        name
        for name, tensor in tensors.items()
        if config.bias or not name.endswith(".bias") or tensor.any()
    ]
    if unknown:
        raise UserError(f"{file} has unknown tensors ({unknown[0]} …): another architecture")
    if head is not None and not torch.equal(head.float(), weights["wte.weight"]):
        raise UserError(
            f"{file}: {LM_HEAD}, its output head, is not its embedding, but they should be tied",
            "where they are not, tie_word_embeddings must be false in config.json",
        )
    return weights


def _taken(
    file: Path | str, tensors: dict[str, Tensor], name: str, shape: torch.Size, transposed: bool
) -> Tensor:
    """A tensor out of `tensors`, in our layout and of this shape."""
    stored = tensors.pop(name, None)
    if stored is None:
        raise UserError(f"{file} lacks {name}: it is a model of another architecture")
    if transposed:
        stored = in_our_layout(name, stored)
    if stored.shape != shape:
        raise UserError(
            f"{file}: {name} has shape {tuple(stored.shape)}, "
            f"the config says {tuple(shape)}: a model of another architecture"
        )
    if not stored.is_floating_point():
        raise UserError(f"{file}: {name} holds {stored.dtype}, not floating-point numbers")
    return stored


def in_our_layout(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a file, transposed where GPT-2 keeps the parameter of this name so."""
    return tensor.t() if tensor.dim() == 2 and _TRANSPOSED.search(name) else tensor


def check_size(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse pickled tensors that are larger than their file: views of a small storage."""
    size = sum(tensor.nbytes for name, tensor in tensors.items() if name != LM_HEAD)
    if size > file.stat().st_size:
        raise UserError(f"{file} is refused: its tensors are larger than the file")


def check_finite(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse a stranger's weights with infinity or not-a-number: no text could come out of them."""
    for name, tensor in weights.items():
        if not all(torch.isfinite(extreme) for extreme in tensor.aminmax()):
            raise UserError(
                f"{file}: {name} holds numbers that are not finite",
                "the training that made it broke down; get another checkpoint of it",
            )


def their_name(name: str) -> str:
    """Hugging Face's name for one of our parameters."""
    return name if name == LM_HEAD else _PREFIX + name


def hollow_model(config: ModelConfig) -> GPT:
    """A GPT of this shape whose parameters have no contents: they are to be assigned."""
    with torch.device("meta"), _NoInitialisation():
        return GPT(config)


class _NoInitialisation(TorchFunctionMode):
    """Passes over the drawing of fresh weights, for which torch would load a second of modules."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **kwargs)


def saved_by_transformers(directory: Path) -> bool:
    """Whether config.json is one that transformers has written; ours names no version of it."""
    try:
        return "transformers_version" in read_json(directory / CONFIG_FILE)
    except UserError:
        return False


def read_labels(directory: Path) -> list[str] | None:
    """The names of a classifier's classes; None where the model is a language model.

    Raises:
        UserError: config.json is unreadable, or the model is of another type.
    """
    file = directory / CONFIG_FILE
    values = read_json(file)
    if values.get("model_type") not in ("gpt2", OWN_TYPE):
        raise UserError(
            f"{file} describes a model of type {values.get('model_type')!r}, not gpt2",
            "Small GPT runs GPT-2 models only",
        )
    if values.get("architectures") != [_CLASSIFIER]:
        return None
    try:
        return [str(values["id2label"][str(n)]) for n in range(len(values["id2label"]))]
    except (KeyError, TypeError):
        raise UserError(f"{file}: id2label does not name the classes 0, 1, 2 …") from None


def head_shape(config: ModelConfig, labels: list[str]) -> tuple[int, int]:
    """(classes, width) of the head of a classifier."""
    return len(labels), _head_width(config)


def _head_width(config: ModelConfig) -> int:
    return head_width(config.n_embd, getattr(config, "pooling", "last"))


def is_own(config: ModelConfig) -> bool:
    """Whether the network has parts that GPT-2 has no place for."""
    return config.ngram_order > 1 or _head_width(config) != config.n_embd


def _model_config(config: ModelConfig) -> dict[str, Any]:
    """GPT-2's config.json for this shape."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": OWN_TYPE if is_own(config) else "gpt2",
        "activation_function": config.activation,
        **{key: getattr(config, key) for key in ("vocab_size", "n_embd", "n_layer", "n_head")},
        **dict.fromkeys(("n_positions", "n_ctx"), config.block_size),
        "n_inner": 4 * config.n_embd,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": SEP,
        "pad_token_id": PAD,
        "dtype": "float32",
    }


def _classifier_config(config: Config, tokenizer: Tokenizer, labels: list[str]) -> dict[str, Any]:
    # transformers reads the verdict at the last position that is not this id.
    masked = getattr(config, "use_mask", True)
    return {
        "architectures": [_CLASSIFIER],
        "num_labels": len(labels),
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
        "problem_type": "single_label_classification",
        "pad_token_id": PAD if masked else tokenizer.start,
    }


def _generation_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """How transformers draws replies, as configured for our chat.

    Two differences stay: its repetition penalty counts the characters of the prompt too, and it has
    no `best_of`.
    """
    drawn = config.temperature > 0
    sampling = ("temperature", "top_k", "top_p") if drawn else ()
    return {
        "do_sample": drawn,
        **{key: getattr(config, key) for key in sampling},
        "repetition_penalty": config.repetition_penalty,
        "max_new_tokens": config.max_new_tokens,
        "eos_token_id": [SEP, PAD],
        "pad_token_id": PAD,
        "begin_suppress_tokens": [SEP, PAD],  # a reply is never empty
        "suppress_tokens": [*tokenizer.suppressed_ids(), *range(len(tokenizer), config.vocab_size)],
    }
