"""GPT-2 directories of other programs, made here by transformers: same logits, used anywhere."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import smallgpt
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.sentiment import recipe
from smallgpt.sentiment.explain import explain
from smallgpt.tokenizer.characters import PAD, SEP, UNK
from smallgpt.tokenizer.subwords import SubwordTokenizer, load_tokenizer
from tests.helpers.commands import Evil, refusal
from tests.helpers.foreign import KINDS, make_foreign
from tests.helpers.reviews import classifier_config, write_reviews

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = importlib.import_module("transformers")
tokenizers: Any = importlib.import_module("tokenizers")
TEXTS = ["今天天气很好", "hello worlds 你好", "早上好吗？", "abc 09", "🙂"]


def their_ids(directory: Path, kind: str, text: str) -> list[int]:
    if kind == "vocab.txt":
        made = tokenizers.BertWordPieceTokenizer(str(directory / "vocab.txt"))
        made.encode_special_tokens = True
        return list(made.encode(text, add_special_tokens=False).ids)
    if kind == "vocab.json":
        files = (str(directory / "vocab.json"), str(directory / "merges.txt"))
        return list(tokenizers.ByteLevelBPETokenizer(*files).encode(text).ids)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    return list(theirs(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(
    tmp_path: Path, kind: str, activation: str, tied: bool
) -> None:
    changes = {"activation_function": activation, "tie_word_embeddings": tied}
    theirs = make_foreign(tmp_path, kind, spare=3, layer_norm_epsilon=1e-4, **changes)
    ours = open_checkpoint(tmp_path)
    model = ours.model()
    seen: dict[int, int] = {}
    for text in TEXTS:
        mine, other = ours.tokenizer.encode(text), their_ids(tmp_path, kind, text)
        assert len(mine) == len(other)
        seen |= zip(mine, other, strict=True)
        with torch.no_grad():
            expected = theirs(torch.tensor([other])).logits[0]
            logits = model(torch.tensor([mine]))[0]
        for own, foreign in seen.items():
            torch.testing.assert_close(logits[:, own], expected[:, foreign], rtol=1e-4, atol=1e-5)
        # The same rows in another order, and new ones for control tokens that were lacking.
        assert logits.shape[1] - expected.shape[1] in range(4)
    assert len(seen) > 10
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back_and_control_tokens_cannot_be_typed(tmp_path: Path, kind: str) -> None:
    make_foreign(tmp_path, kind)
    tokenizer = open_checkpoint(tmp_path).tokenizer
    for text in ("今天天气很好", "你好，吗？\n房间"):
        ids = tokenizer.encode(text)
        assert (
            tokenizer.decode([*ids, PAD]) == text or kind in ("bytes", "vocab.json") or UNK in ids
        )
        assert "".join(part for _, part in tokenizer.spans(text)) == text
        assert ids.count(SEP) == text.count("\n")
    broken = "今\ud83d天"  # half a surrogate pair
    assert "".join(part for _, part in tokenizer.spans(broken)) == broken
    for typed in ("[SEP]", "[PAD]", "<|endoftext|>", "<pad>", "<unk>"):
        assert not {SEP, PAD} & set(tokenizer.encode(typed))
    if "words" in kind:
        assert tokenizer.decode(tokenizer.encode("hello worlds")) == "hello worlds"


@pytest.mark.parametrize("kind", ["characters", "vocab.txt", "bytes"])
@pytest.mark.parametrize("tied", [True, False])
def test_chat(tmp_path: Path, kind: str, tied: bool) -> None:
    make_foreign(tmp_path, kind, tie_word_embeddings=tied)
    for dtype in ("float32", "int8"):
        bot = smallgpt.load(tmp_path, dtype=dtype)
        said = "".join(bot.stream("今天好吗？"))
        assert said
        assert "\n" not in said and "[MASK]" not in said and "<unk>" not in said


def test_classifiers_of_other_programs_are_bases_only(tmp_path: Path) -> None:
    make_foreign(tmp_path, "characters")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    theirs.save_pretrained(tmp_path)
    assert "classifier of another program" in refusal(lambda: smallgpt.load(tmp_path))
    assert open_checkpoint(tmp_path, classifier=None).labels is None


@pytest.mark.parametrize(
    ("kind", "tied"), [("characters", True), ("vocab.txt", False), ("bytes", True)]
)
def test_a_classifier_from_any_of_them(tmp_path: Path, kind: str, tied: bool) -> None:
    make_foreign(tmp_path / "base", kind, spare=2, tie_word_embeddings=tied)
    write_reviews(tmp_path / "reviews.csv")
    chosen = classifier_config(tmp_path, tmp_path / "base", max_steps=4, eval_freq=2)
    path = recipe.run(chosen)
    judge = smallgpt.load(path, kind="classifier")
    texts = ["今天好好", "今天错hello", "[SEP]"]
    verdicts = judge.predict(texts)
    assert len(explain(judge, texts[1]).shares) == len(explain(judge, texts[1]).characters)
    pipeline = transformers.pipeline("text-classification", str(path), top_k=None)
    for text, verdict in zip(texts, verdicts, strict=True):
        theirs = {entry["label"]: entry["score"] for entry in pipeline([text])[0]}
        assert theirs == pytest.approx(verdict.probabilities, abs=1e-4)
    again = load_tokenizer(path)
    assert isinstance(again, SubwordTokenizer) and again.classifies
    assert again.encode("今天hello") == judge.tokenizer.encode("今天hello")


@pytest.mark.parametrize("kind", ["characters", "vocab.txt", "bytes"])
def test_the_characters_of_ids_are_those_of_the_text(tmp_path: Path, kind: str) -> None:
    """Also where a character is several ids."""
    make_foreign(tmp_path, kind)
    tokenizer = open_checkpoint(tmp_path).tokenizer
    text = "今天天气好" if kind == "characters" else "今天，hello!\n好"
    text += "魑é😀" if kind == "bytes" else ""
    assert tokenizer.lengths()[tokenizer.encode(text)].sum() == len(text)
    assert len(tokenizer.lengths()) == len(tokenizer)


@pytest.mark.parametrize("form", ["sharded", "bin", "old names"])
def test_weights_in_other_forms(tmp_path: Path, form: str) -> None:
    theirs = make_foreign(tmp_path, "characters")
    expected = open_checkpoint(tmp_path).weights
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    if form == "sharded":
        theirs.save_pretrained(tmp_path, max_shard_size="8kB")
        assert (tmp_path / "model.safetensors.index.json").exists()
    elif form == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:  # without prefix and head, with masks, as the first GPT-2 on the hub
        old = {n.removeprefix("transformer."): t for n, t in state.items() if "lm_head" not in n}
        old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
        torch.save(old, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path).weights
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_inner": 40}, "n_inner is 40"),
        ({"n_layer": 3}, "lacks transformer.h.2"),
        ({"n_layer": 1}, "unknown tensors"),
        ({"n_layer": 10**9}, "fewer tensors, or smaller ones, than its config says"),
        ({"n_embd": 10**30, "n_head": 1}, "fewer tensors, or smaller ones"),
        ({"n_embd": 20}, "has shape"),
        ({"n_head": 3}, "n_head"),
        ({"n_positions": 64}, "has shape"),
        ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number"),
        ({"vocab_size": 10}, "has shape"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    make_foreign(tmp_path, "characters")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
    assert said in refusal(lambda: smallgpt.load(tmp_path))


HARMED = {
    "none": "has no tokenizer",
    "broken": "tokenizer.json cannot be read",
    "unigram": "a vocabulary of type Unigram is not supported",
    "twice": "two tokens have the same id",
    "larger": "but config.json says vocab_size",
    "cut": "model.safetensors is missing or damaged",
    "infinite": "h.1.ln_1.weight holds numbers that are not finite",
    **dict.fromkeys(("evil", "terabytes", "number"), "pytorch_model.bin is refused"),
}


@pytest.mark.parametrize("damage", HARMED)
def test_damaged_and_hostile_directories(tmp_path: Path, damage: str) -> None:
    make_foreign(tmp_path, "characters")
    file, weights = tmp_path / "tokenizer.json", tmp_path / "model.safetensors"
    definition = json.loads(file.read_text("utf-8"))
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {"twice": {"新": 7}, "larger": {"新": len(vocabulary)}}.get(damage, {})
    if damage == "unigram":
        definition["model"] = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
    file.write_text("{" if damage == "broken" else json.dumps(definition), "utf-8")
    if damage == "none":
        file.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "infinite":
        tensors = safetensors.torch.load_file(weights)
        tensors["transformer.h.1.ln_1.weight"][3] = float("inf")
        safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    pickled: dict[str, Any] = {"evil": Evil(tmp_path / "it ran"), "number": 5}
    pickled["terabytes"] = torch.zeros(1).expand(2**20, 2**20)  # of a small file
    if damage in pickled:
        weights.unlink()
        torch.save({"wte.weight": pickled[damage]}, tmp_path / "pytorch_model.bin")
    said = refusal(lambda: smallgpt.load(tmp_path))
    assert str(tmp_path) in said
    assert HARMED[damage] in said
    assert not (tmp_path / "it ran").exists()
