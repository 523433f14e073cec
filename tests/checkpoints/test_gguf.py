"""What a GGUF file holds, read back; tests/peers/ runs it in llama.cpp."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers

from smallgpt.checkpoints import checkpoint, gguf
from smallgpt.checkpoints.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNUSED, for_llama_cpp
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.tokenizer.characters import CHAT_TEMPLATE, PAD, SEP, UNK, Tokenizer, added_token
from tests.helpers.commands import refusal, refused_command, smallgpt
from tests.helpers.corpora import subwords
from tests.helpers.foreign import make_foreign
from tests.helpers.models import TINY, random_model, save_with_pairs, vocabulary

library: Any = importlib.import_module("gguf")
BLOCK_ERRORS = {"f32": 0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 8e-3, "q4_0": 0.15}
"""Of a weight, relative to the largest one."""


def save(root: Path, tokenizer: Tokenizer, spare: int = 0, **changes: Any) -> Path:
    config = replace(TINY, vocab_size=len(tokenizer) + spare, **changes)
    model = random_model(1, **{"vocab_size": config.vocab_size} | changes)
    return checkpoint.save(root, 1, config, tokenizer, model.state_dict(), None, {})


def converted(path: Path, *options: str | Path) -> tuple[Any, str]:
    """What gguf reads of the file that the command writes, and what the command says."""
    target = path.parent / f"{'-'.join(map(str, options)) or 'x'}.gguf"
    done = smallgpt("convert", path, "--to", "gguf", "--output", target, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"written: {target}\n"
    return library.GGUFReader(target), done.stderr


def value(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


def numbers(tensor: Any) -> npt.NDArray[np.float32]:
    shape = tuple(reversed(tensor.shape.tolist()))
    return np.asarray(library.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)


@pytest.mark.parametrize(
    ("precision", "width"),
    [("f32", 32), ("f16", 48), ("bf16", 32), ("q8_0", 32), ("q8_0", 48), ("q4_0", 32)],
)
def test_weights_in_every_precision(root: Path, precision: str, width: int) -> None:
    path = save(root, vocabulary(), n_embd=width, tied=width == 48, n_head=2)
    reader, _ = converted(path, "--quantize", precision)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ours = open_checkpoint(path).weights
    assert len(tensors) == len(ours)
    for theirs, name in {
        "token_embd.weight": "wte.weight",
        "position_embd.weight": "wpe.weight",
        "blk.1.attn_qkv.weight": "h.1.attn.c_attn.weight",
        "blk.0.attn_output.bias": "h.0.attn.c_proj.bias",
        "blk.1.ffn_down.weight": "h.1.mlp.c_proj.weight",
        "output_norm.weight": "ln_f.weight",
        **({} if width == 48 else {"output.weight": "lm_head.weight"}),
    }.items():
        stored, kind = numbers(tensors[theirs]), tensors[theirs].tensor_type.name
        expected = ours[name].numpy()
        largest = np.abs(expected).max() * BLOCK_ERRORS[kind.lower()]
        np.testing.assert_allclose(stored, expected, rtol=0, atol=largest)
        wanted = precision.upper()
        if expected.ndim == 1 or theirs.startswith("position"):
            wanted = "F32"
        elif expected.shape[1] % 32 and precision.startswith("q"):
            wanted = "F16"
        elif precision == "q4_0" and theirs in ("token_embd.weight", "output.weight"):
            wanted = "Q8_0"
        assert kind == wanted


def test_the_shape_and_how_replies_are_drawn(root: Path) -> None:
    path = save(root, vocabulary(), temperature=0.8, top_k=5, layer_norm_epsilon=1e-4, n_layer=3)
    reader, said = converted(path)
    shape = {"context_length": 32, "embedding_length": 32, "feed_forward_length": 128}
    shape |= {"block_count": 3, "attention.head_count": 4}
    assert {key: value(reader, f"gpt2.{key}") for key in shape} == shape
    assert value(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-4)
    assert value(reader, "general.sampling.temp") == pytest.approx(0.8)
    assert value(reader, "general.sampling.top_k") == 5
    assert value(reader, "tokenizer.chat_template") == CHAT_TEMPLATE
    assert "the exact one; llama.cpp computes its tanh form" in said
    tanh = save(root.with_name("other"), vocabulary(), activation="gelu_new")
    assert "its tanh form, as in llama.cpp" in converted(tanh)[1]


def test_biases_that_are_not_there_are_zero(root: Path) -> None:
    tensors = {t.name: t for t in converted(save(root, vocabulary(), bias=False))[0].tensors}
    assert sum(name.endswith(".bias") for name in tensors) == 2 * 6 + 1
    assert tensors["blk.0.attn_qkv.bias"].shape.tolist() == [96]
    assert not any(t.data.any() for name, t in tensors.items() if name.endswith(".bias"))


def test_what_a_reply_may_not_contain_and_what_ends_it(root: Path) -> None:
    tokenizer = Tokenizer([*vocabulary().characters, "\x07"])
    reader, _ = converted(save(root, tokenizer, spare=3))
    rows = len(tokenizer)
    suppressed = [UNK, rows - 1, rows, rows + 1, rows + 2]
    assert value(reader, "tokenizer.ggml.suppress_tokens") == suppressed
    assert value(reader, "tokenizer.ggml.eos_token_id") == SEP
    assert value(reader, "tokenizer.ggml.eot_token_id") == PAD
    types = value(reader, "tokenizer.ggml.token_type")
    assert types == [NORMAL, CONTROL, UNUSED, *[NORMAL] * (rows - 3), *[UNUSED] * 3]
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert len(set(tokens)) == rows + 3
    assert tokens[rows - 2 : rows] == [vocabulary().characters[-1], "\x07"]


def test_unknown_characters_are_replaced_one_by_one() -> None:
    """As the tokenizers library reads the table, which it has from SentencePiece too."""
    for known in ("好 早\u2581aé😀", "好早\u2580\U0001f601\ufffd"):
        made = for_llama_cpp(Tokenizer(list(known)), len(known) + 3)
        table = tokenizers.normalizers.Precompiled(made.charsmap)
        text = {c: t for c, t in zip(known, made.tokens[3:], strict=True) if c != " "}
        for character in [*known, *"龘\u2582\u2581\ufffdbè\u07ff😃\U000e0001 \x7f"]:
            expected = text.get(character, " " if character in known else made.tokens[UNK])
            assert table.normalize_str(character) == expected


def test_subwords_have_further_ids_for_unknown_characters(root: Path) -> None:
    tokenizer = subwords(["早 上\u2581好"] * 3, "好早ab", 30)
    path = save(root, tokenizer, spare=2, tied=False)
    reader, _ = converted(path)
    types = value(reader, "tokenizer.ggml.token_type")
    rows, aliases = len(tokenizer) + 2, types.count(BYTE)
    assert len(types) == rows + aliases and aliases > 51
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert "早\u2581上" in tokens and "<0xE9>" in tokens and "<0x61>" not in tokens
    for name in ("token_embd.weight", "output.weight"):
        (matrix,) = (numbers(t) for t in reader.tensors if t.name == name)
        assert (matrix[rows:] == matrix[UNK]).all() and (matrix[1] != matrix[UNK]).any()


# refused


def test_models_that_llama_cpp_cannot_run(tmp_path: Path, trained: Path) -> None:
    target = tmp_path / "x.gguf"

    def said(path: Path) -> str:
        return refused_command("convert", path, "--to", "gguf", "--output", target)

    assert "has ngram_order 3: llama.cpp has no such network" in said(save_with_pairs(tmp_path))
    classifier = replace(open_checkpoint(trained), labels=["good", "bad"])
    assert "is a classifier" in refusal(lambda: gguf.write(classifier, target))
    for kind in ("words", "vocab.txt"):
        make_foreign(tmp_path / kind, kind)
        message = said(tmp_path / kind)
        assert "llama.cpp cannot cut text as the model's tokenizer does (WordPiece)" in message
    arguments = ("convert", trained, "--to", "original", "--quantize", "f16", "--output", target)
    assert "--quantize is for --to gguf only" in refused_command(*arguments)
    assert not target.exists()


@pytest.mark.parametrize(
    "change", ["add_prefix_space", "use_regex", "normalizer", "ignore_merges", "added"]
)
def test_bytes_that_are_not_gpt2s(tmp_path: Path, change: str) -> None:
    make_foreign(tmp_path, "bytes")
    tokenizer = open_checkpoint(tmp_path).tokenizer
    assert for_llama_cpp(tokenizer, len(tokenizer)).pre == "gpt-2"
    definition = tokenizer.definition  # type: ignore[attr-defined]
    if change == "normalizer":
        definition["normalizer"] = {"type": "Lowercase"}
    elif change == "ignore_merges":
        definition["model"][change] = True
    elif change == "added":
        definition["added_tokens"].append(added_token(len(tokenizer) - 1, "ha", special=False))
    else:
        definition["pre_tokenizer"][change] = not definition["pre_tokenizer"][change]
    said = refusal(lambda: for_llama_cpp(tokenizer, len(tokenizer)))
    assert "(BPE)" in said and "GPT-2's bytes" in said


def test_without_the_package(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    output = tmp_path / "x.gguf"
    said = refused_command("convert", trained, "--to", "gguf", "--output", output)
    assert "needs the package gguf" in said and "pip install gguf" in said
    assert not output.exists()


def test_a_full_disk_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.GGUFWriter, "write_tensor_data", full)
    output = tmp_path / "new" / "x.gguf"
    output.parent.mkdir()
    said = refused_command("convert", trained, "--to", "gguf", "--output", output)
    assert f"{output} cannot be written: No space left on device" in said
    assert not list(output.parent.iterdir())


def test_what_is_written_is_no_model_to_chat_with(trained: Path, tmp_path: Path) -> None:
    gguf.write(open_checkpoint(trained), tmp_path / "x.gguf")
    assert "is a file, not a checkpoint directory" in refused_command("chat", tmp_path / "x.gguf")
