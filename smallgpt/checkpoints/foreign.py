"""GPT-2 models of other programs: directories in Hugging Face's form, brought into ours.

What they have is kept: every row of the embedding and every token. Only the order of ids changes,
to ours: `<unk>`, `<sep>`, `<pad>`, then the rest as it was; a control token that is lacking gets a
row of its own, and rows without a token come last.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from torch import Tensor

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint, load_pickle, other_kind
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.tokenizer.characters import (
    PAD,
    SEP,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    UNK,
    added_token,
)
from smallgpt.tokenizer.subwords import SubwordTokenizer
from smallgpt.utils.commands import with_config
from smallgpt.utils.errors import UserError

PICKLED_FILE = "pytorch_model.bin"
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")
_NOT_LEARNT = re.compile(r"\.attn\.(masked_)?bias$")
"""Masks that older files hold."""
_OURS = {UNK: "<unk>", SEP: "\n", PAD: "<pad>"}
_NEEDED = "it needs a tokenizer.json, a vocab.txt, or a vocab.json with a merges.txt"


def load(directory: Path, classifier: bool | None = False) -> Checkpoint:
    """Read a GPT-2 with its tokenizer, without running code from it; weights in float32.

    Args:
        classifier: as in `checkpoint.load`; of a classifier we can use what is below its head.

    Raises:
        UserError: a file is missing, damaged or contradicts another, or we cannot run the model.
    """
    labels = huggingface.read_labels(directory)
    if classifier:
        raise other_kind(directory, None)
    if classifier is False and labels:
        raise UserError(
            f"{directory} is a classifier of another program ({', '.join(labels)})",
            "it can be a base_model: "
            f"{with_config('sentimentalTrain.py', 'sentimental_demo')} base_model={directory}",
        )
    values = huggingface.read_json(directory / huggingface.CONFIG_FILE)
    config = _config(directory / huggingface.CONFIG_FILE, values)
    weights = huggingface.from_tensors(directory, _tensors(directory), config)
    huggingface.check_finite(directory, weights)
    settings: dict[str, Any] = {}
    for file in (directory / "special_tokens_map.json", directory / TOKENIZER_CONFIG_FILE):
        settings |= huggingface.read_json(file) if file.exists() else {}
    definition = _definition(directory, settings)
    try:
        order, definition = _in_our_order(definition, _controls(definition, settings, values))
        tokenizer = SubwordTokenizer(definition)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the tokenizer of {directory} cannot be used: {error}", _NEEDED) from None
    if len(tokenizer) - order.count(None) > config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(tokenizer):,} ids, but config.json says "
            f"vocab_size {config.vocab_size:,}",
            "the files belong to different models: get them again",
        )
    # Behind the rows of `order` come those that have no token.
    rows = [*order, *sorted({*range(config.vocab_size)} - {*order})]
    for name in ("wte.weight", huggingface.LM_HEAD):
        if name in weights:
            weights[name] = _reordered(weights[name], rows)
    config = dataclasses.replace(config, vocab_size=len(rows))
    return Checkpoint(directory, 0, config, tokenizer, weights, {"sha256": {}})


def _config(file: Path, values: dict[str, Any]) -> Config:
    shape = {key: values.get(key) for key in ("vocab_size", "n_layer", "n_head", "n_embd")}
    activation = values.get("activation_function", "gelu_new")
    config = config_from_dict(
        {
            **shape,
            "tokenizer": "subwords",
            "block_size": values.get("n_positions"),
            "activation": "gelu" if activation == "gelu" else "gelu_new",
            "layer_norm_epsilon": values.get("layer_norm_epsilon", 1e-5),
            "tied": values.get("tie_word_embeddings", True),
        },
        str(file),
        Config,
    )
    for key, fitting in {
        "model_type": ("gpt2",),
        "activation_function": _ACTIVATIONS,
        "n_inner": (None, 4 * config.n_embd),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    }.items():
        if values.get(key, fitting[0]) not in fitting:
            runs = " or ".join(map(str, fitting))
            raise UserError(f"{file}: {key} is {values[key]!r}", f"Small GPT runs only {runs}")
    return config


def _tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors under the names of GPT2LMHeadModel, without masks and other heads."""
    pickled = directory / PICKLED_FILE
    safe = (directory / huggingface.WEIGHTS_FILE, directory / huggingface.INDEX_FILE)
    only_pickled = pickled.exists() and not any(file.exists() for file in safe)
    if only_pickled:
        stored = load_pickle(pickled, "get the model as safetensors")
    else:
        stored = huggingface.read_files(directory)
    tensors = {}
    for name, tensor in stored.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{pickled} is refused: {name} is not a tensor")
        name = str(name).removeprefix("transformer.")
        if not _NOT_LEARNT.search(name) and name != huggingface.HEAD:
            tensors[huggingface.their_name(name)] = tensor
    if only_pickled:
        huggingface.check_size(pickled, tensors)
    return tensors


def _definition(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of a tokenizer.json, which older models do not have."""
    if (directory / TOKENIZER_FILE).exists():
        return huggingface.read_json(directory / TOKENIZER_FILE)
    words, subwords = directory / "vocab.txt", directory / "vocab.json"
    if not words.exists() and not subwords.exists():
        raise UserError(f"{directory} has no tokenizer", _NEEDED)
    made: Any
    try:
        if words.exists():
            made = BertWordPieceTokenizer(
                str(words),
                lowercase=settings.get("do_lower_case", True),
                strip_accents=settings.get("strip_accents"),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            )
        else:
            made = ByteLevelBPETokenizer(str(subwords), str(directory / "merges.txt"))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"the tokenizer of {directory} is damaged: {error}") from None
    return json.loads(made.to_str())


def _vocabulary(definition: dict[str, Any]) -> dict[str, int]:
    model = definition["model"]
    if not isinstance(model["vocab"], dict):
        raise ValueError(f"a vocabulary of type {model.get('type')} is not supported")
    vocabulary: dict[str, int] = dict(model["vocab"])
    for token in definition["added_tokens"]:
        vocabulary[token["content"]] = token["id"]
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("two tokens have the same id")
    if any(type(number) is not int or number < 0 for number in vocabulary.values()):
        raise ValueError("an id is not a number from 0")
    return vocabulary


def _controls(
    definition: dict[str, Any], settings: dict[str, Any], values: dict[str, Any]
) -> dict[int, str]:
    """Which tokens play the parts of ours, by our id; a token plays one part only."""
    vocabulary = _vocabulary(definition)
    by_id = {number: token for token, number in vocabulary.items()}
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in settings.items()}
    # The end of a text stands for the end of an utterance where there is nothing better.
    end = by_id.get(values.get("eos_token_id", -1)) or named.get("eos_token")
    candidates = {
        UNK: (definition["model"].get("unk_token"), named.get("unk_token"), "[UNK]", "<unk>"),
        SEP: (named.get("sep_token"), "[SEP]", "<sep>", end),
        PAD: (named.get("pad_token"), "[PAD]", "<pad>"),
    }
    found: dict[int, str] = {}
    for ours, tokens in candidates.items():
        free = [t for t in tokens if t in vocabulary and t not in found.values()]
        free = [t for t in free if t != end or ours == SEP]
        if free:
            found[ours] = free[0]
    return found


def _in_our_order(
    definition: dict[str, Any], controls: dict[int, str]
) -> tuple[list[int | None], dict[str, Any]]:
    """The old id of each of our ids (None where it is new), and the tokenizer.json with ours."""
    vocabulary = _vocabulary(definition)
    taken = set(_OURS.values()) & (set(vocabulary) - set(controls.values()))
    if taken:
        raise ValueError(f"{taken.pop()!r} is a token of another meaning")
    order: list[int | None] = [
        vocabulary[controls[ours]] if ours in controls else None for ours in _OURS
    ]
    order += sorted(set(vocabulary.values()) - set(order))
    new_id = {old: new for new, old in enumerate(order) if old is not None}
    new_name = {controls[ours]: name for ours, name in _OURS.items() if ours in controls}

    model = dict(definition["model"])
    model["vocab"] = {new_name.get(t, t): new_id[old] for t, old in model["vocab"].items()}
    model["vocab"] |= {name: ours for ours, name in _OURS.items()}
    if model["type"] in ("WordLevel", "WordPiece"):
        model["unk_token"] = "<unk>"
    kept = [
        token | {"id": new_id[token["id"]]}
        for token in definition["added_tokens"]
        if token["content"] not in new_name
    ]
    own = [added_token(ours, name, special=ours != SEP) for ours, name in _OURS.items()]
    nothing = dict.fromkeys(("post_processor", "truncation", "padding"))
    return order, definition | nothing | {"added_tokens": own + kept, "model": model}


def _reordered(weight_VE: Tensor, rows: list[int | None]) -> Tensor:
    """Rows by our ids; a new one is a copy of `<sep>`'s, or zero where that is new as well."""
    new = rows[SEP]
    filler = torch.zeros_like(weight_VE[0]) if new is None else weight_VE[new]
    return torch.stack([filler if row is None else weight_VE[row] for row in rows])
