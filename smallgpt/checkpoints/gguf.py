"""GGUF, llama.cpp's format: weights, tokenizer and chat template in one file.

llama.cpp knows our network as `gpt2`, and calculates the same but for an exact GELU: see `write`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from smallgpt.checkpoints import checkpoint, huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.gguf_tokenizer import NORMAL, Vocabulary, for_llama_cpp
from smallgpt.config import Config
from smallgpt.tokenizer.characters import CHAT_TEMPLATE, PAD, SEP, UNK
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

if TYPE_CHECKING:
    import gguf

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
SUFFIX = ".gguf"
_BLOCK = 32
"""So many weights of a row are quantised together."""
_SEQUENCE = "penalties;dry;top_n_sigma;temperature;top_k;typ_p;top_p;min_p;xtc"
"""llama.cpp's steps of drawing an id, with the temperature where ours is, not last."""
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def write(stored: Checkpoint, target: Path, quantization: Quantization = "f16") -> None:
    """Write a language model as a GGUF file, atomically, and say which GELU it has.

    Args:
        quantization: of matrices; vectors and positions are float32. A matrix whose width 32 does
            not divide is f16 instead of q8_0 or q4_0. With q4_0 the embedding and the output head
            are q8_0, as llama.cpp's own program keeps them finer.

    Raises:
        UserError: llama.cpp has no such network or tokenizer, the package gguf is not installed, or
            the file cannot be written.
    """
    if stored.labels:
        raise UserError(f"{stored.path} is a classifier: llama.cpp runs language models only")
    config = stored.config
    if config.ngram_order > 1:
        raise UserError(
            f"{stored.path} has ngram_order {config.ngram_order}: llama.cpp has no such network",
            "a model with ngram_order 1 can go there",
        )
    try:
        import gguf
    except ModuleNotFoundError:
        problem, advice = "GGUF needs the package gguf", "install it: pip install gguf"
        raise UserError(problem, advice) from None
    vocabulary = for_llama_cpp(stored.tokenizer, config.vocab_size)
    with checkpoint.write_errors(str(target)), atomic.file(target) as work:
        writer = gguf.GGUFWriter(work, "gpt2")
        try:
            writer.add_name(target.stem)
            _add_config(writer, config, quantization)
            _add_tokenizer(writer, vocabulary, stored)
            _write_tensors(writer, _tensors(stored, vocabulary.aliases), quantization)
        finally:
            writer.close()
    if config.activation == "gelu_new":
        note("GELU: its tanh form, as in llama.cpp")
    else:
        form = "llama.cpp computes its tanh form, which differs by less than 5e-4 an activation"
        note(f"GELU: the exact one; {form}")


def _add_config(writer: gguf.GGUFWriter, config: Config, quantization: Quantization) -> None:
    """The shape, and how replies are drawn.

    One difference stays: llama.cpp's repetition penalty counts the characters of the prompt too.
    """
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    most = "ALL" if quantization == "f32" else "MOSTLY"
    writer.add_file_type(LlamaFileType[f"{most}_{quantization.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_sampling_sequence(_SEQUENCE)
    writer.add_sampling_temp(config.temperature)
    writer.add_sampling_top_k(config.top_k)
    writer.add_sampling_top_p(config.top_p)
    writer.add_sampling_min_p(0.0)
    writer.add_sampling_penalty_repeat(config.repetition_penalty)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, stored: Checkpoint) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    # An unused token never wins over the characters of its name.
    writer.add_token_scores([-1.0 if kind == NORMAL else -1000.0 for kind in vocabulary.types])
    writer.add_eos_token_id(SEP)
    writer.add_eot_token_id(PAD)  # it ends a reply too
    writer.add_pad_token_id(PAD)
    # Of several unknown characters in a row Unigram makes one: none is to be unknown to it.
    writer.add_unk_token_id(SEP if vocabulary.charsmap else UNK)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.charsmap:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    unused = range(len(stored.tokenizer), len(vocabulary.tokens))
    # gguf has no name for this key; llama.cpp knows it since June 2026.
    writer.add_array(
        "tokenizer.ggml.suppress_tokens", [*stored.tokenizer.suppressed_ids(), *unused]
    )
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(stored: Checkpoint, aliases: int) -> dict[str, Tensor]:
    """Our parameters by llama.cpp's names; `aliases` further rows are those of `<unk>`."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    weights = {huggingface.their_name(name): t for name, t in stored.weights.items()}
    if not stored.config.bias:
        huggingface.add_zero_biases(weights)
    names = get_tensor_name_map(MODEL_ARCH.GPT2, stored.config.n_layer)
    tensors = {str(names.get_name(n, (".weight", ".bias"))): t for n, t in weights.items()}
    for name in (_EMBEDDING, _HEAD):
        if aliases and name in tensors:
            rows = tensors[name][UNK].expand(aliases, -1)
            tensors[name] = torch.cat([tensors[name], rows])
    return tensors


def _write_tensors(
    writer: gguf.GGUFWriter, tensors: dict[str, Tensor], quantization: Quantization
) -> None:
    """Their names, shapes and types, then the tensors, one at a time in memory."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    types = {}
    for name, tensor in tensors.items():
        kind = GGMLQuantizationType[_kind(name, tensor, quantization).upper()]
        block, size = GGML_QUANT_SIZES[kind]
        length = tensor.numel() // block * size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), length, kind)
        types[name] = kind
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        array = tensor.detach().to(torch.float32).contiguous().cpu().numpy()
        writer.write_tensor_data(quantize(array, types[name]))


def _kind(name: str, tensor: Tensor, quantization: Quantization) -> Quantization:
    if tensor.dim() == 1 or name.startswith("position_embd."):
        return "f32"
    if quantization in ("q8_0", "q4_0") and tensor.shape[1] % _BLOCK:
        return "f16"
    return "q8_0" if quantization == "q4_0" and name in (_EMBEDDING, _HEAD) else quantization
