"""A model of pieces of text, from training to everything that is made of it."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import smallgpt
from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.data.corpus import match_tokenizer, open_corpus, split
from smallgpt.data.packing import PackedRows
from smallgpt.evaluation import report
from smallgpt.hub import publish
from smallgpt.runtime import Runtime
from smallgpt.sentiment import recipe
from smallgpt.sentiment.explain import explain
from smallgpt.tokenizer.characters import PAD, UNK
from smallgpt.tokenizer.subwords import SubwordTokenizer
from smallgpt.training import pretrain
from smallgpt.training.validation import validate
from tests.helpers.commands import refusal
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import SMALL, same_weights
from tests.helpers.reviews import classifier_config

OTHER = "早上好\n魑魅魍魉！\n\n早上好呀\n魍，在\n\n早上好\n很好\n"


def train(folder: Path, name: str, typed: str = "", **changes: Any) -> Path:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join([DIALOGUES] * 8), "utf-8")
    values = SMALL | {"data_path": str(text), "checkpoint_root": str(folder / name)}
    values |= {"tokenizer": "subwords", "max_steps": 6, "max_new_tokens": 8} | changes
    return pretrain.run(config_from_dict(values, "test", Config), "", frozenset(typed.split()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text.txt` and the run `whole`: cpt4 and cpt6; not to be changed."""
    folder = tmp_path_factory.mktemp("subwords")
    train(folder, "whole", vocab_size=70, unk_rate=0.5)
    return folder


@pytest.fixture(scope="module")
def stored(run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(run / "whole" / "cpt6")


def test_it_is_a_model_of_pieces_that_talks(stored: checkpoint.Checkpoint) -> None:
    tokenizer = stored.tokenizer
    assert isinstance(tokenizer, SubwordTokenizer) and tokenizer.of_pieces
    assert stored.config.tokenizer == "subwords"
    assert stored.config.vocab_size == len(tokenizer) <= 70
    assert max(map(len, tokenizer.characters)) > 1
    bot = smallgpt.load(stored.path, {"temperature": 1.0, "repetition_penalty": 1.5})
    said = bot.reply("早上好呀")
    assert said and "\ufffd" not in said and len(tokenizer.encode(said)) <= 8


def test_validation_is_in_nats_a_character(run: Path, stored: checkpoint.Checkpoint) -> None:
    """Against each dialogue alone, the first piece by its share among those that begin alike."""
    corpus = open_corpus([run / "text.txt"])
    encoded, _ = match_tokenizer(corpus, stored.tokenizer)
    _, held_back = split(len(corpus), stored.config.train_percent, stored.config.seed)
    model, total, characters = stored.model(), 0.0, 0
    pieces = stored.tokenizer
    shares = {piece: 1 / number for number, piece in enumerate(pieces.characters, 3)}
    for number in held_back:
        text = corpus.tokenizer.decode(corpus.dialogue(int(number)))
        ids = [*pieces.encode(text), PAD]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0]
        total += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        alike = sum(share for piece, share in shares.items() if piece[0] == text[0])
        total -= math.log(shares[pieces.decode(ids[:1])] / alike)
        characters += len(text)  # the end is one more, the first one less
    assert stored.manifest["validation_loss"] == pytest.approx(total / characters, rel=1e-5)
    rows = PackedRows(encoded, held_back, stored.config.block_size, seed=0)
    here = Runtime(torch.device("cpu"), torch.float32, "")
    measured = validate(model, rows, here, np.arange(len(rows)), 2)
    assert measured is not None and measured.targets == characters


def test_both_vocabularies_are_evaluated_on_the_same_characters(
    run: Path, stored: checkpoint.Checkpoint, trained: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    paths = [stored.path, trained]
    report.on_text(paths, [run / "text.txt"], pairs=0, replies=0, output=figures, device="cpu")
    one = json.loads(figures.read_text("utf-8"))
    assert one["characters"] == one["compared_with"]["characters"]


def test_a_resumed_run_is_the_uninterrupted_one(run: Path) -> None:
    train(run, "two", vocab_size=70, unk_rate=0.5, max_steps=4, decay_steps=12)
    resumed = train(run, "two", tokenizer="characters", unk_rate=0.5, resume_from="latest")
    assert same_weights(run / "whole" / "cpt6", resumed)


def test_it_goes_on_with_other_text(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(OTHER, "utf-8")
    path = train(tmp_path, "run", resume_from=str(run / "whole" / "cpt6"), max_steps=8)
    before, after = (checkpoint.load(p).tokenizer for p in (run / "whole" / "cpt6", path))
    assert after.characters == before.characters and UNK in after.encode(OTHER)


def test_finetuning_adds_characters_behind(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(OTHER, "utf-8")
    base = run / "whole" / "cpt6"
    path = train(tmp_path, "run", base_model=str(base), max_steps=2, train_percent=0.7)
    before, after = checkpoint.load(base), checkpoint.load(path)
    old = len(before.tokenizer)
    assert after.tokenizer.characters[: old - 3] == before.tokenizer.characters
    assert set(after.tokenizer.characters[old - 3 :]) == set(OTHER) - set(DIALOGUES)
    assert UNK not in after.tokenizer.encode(OTHER)
    moved = (after.weights["wte.weight"][:old] - before.weights["wte.weight"]).abs().max()
    assert 0 < moved < 0.05
    assert smallgpt.load(path).reply("早上好")


@pytest.mark.parametrize("key", ["resume_from", "base_model"])
def test_another_tokenizer_cannot_be_asked_for(run: Path, tmp_path: Path, key: str) -> None:
    changes = {key: str(run / "whole" / "cpt6"), "tokenizer": "characters"}
    said = refusal(lambda: train(tmp_path, "run", "tokenizer", **changes))
    assert "tokenizer is characters, but the checkpoint's is subwords" in said


def test_too_small_a_vocabulary_is_refused_with_the_smallest(tmp_path: Path) -> None:
    said = refusal(lambda: train(tmp_path, "run", vocab_size=20))
    smallest = len(set(DIALOGUES) - {"\n"}) + 3
    assert f"set vocab_size: {smallest} or more" in said
    path = train(tmp_path, "run", vocab_size=smallest, max_steps=1)
    assert checkpoint.load(path).config.vocab_size == smallest


def test_ngrams_of_pieces(tmp_path: Path) -> None:
    path = train(tmp_path, "run", ngram_order=2, ngram_rows=50, ngram_embd=4, max_steps=1)
    assert smallgpt.load(path).reply("早上好")


def test_the_legacy_format_has_no_pieces(stored: checkpoint.Checkpoint, tmp_path: Path) -> None:
    said = refusal(lambda: legacy_pth.write(stored, tmp_path / "x.pth"))
    assert "tokenizer is subwords" in said and not list(tmp_path.iterdir())


def test_made_ready_it_is_a_model_of_transformers(
    stored: checkpoint.Checkpoint, tmp_path: Path
) -> None:
    transformers: Any = importlib.import_module("transformers")
    publish.make_ready(stored.path, tmp_path / "ready", "mit")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ready")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ready")
    bot = smallgpt.load(tmp_path / "ready", {"temperature": 0, "max_repeats": 0})
    for prompt in ("早上好呀", "你叫什么名字", "魑<pad>好"):
        context = tokenizer(prompt + "\n", return_tensors="pt")
        said = model.generate(**context, do_sample=False)[0, context["input_ids"].shape[1] :]
        text = tokenizer.decode(said, skip_special_tokens=True).partition("\n")[0]
        assert text == bot.conversation().reply(prompt)


def test_a_classifier_of_pieces(stored: checkpoint.Checkpoint, tmp_path: Path) -> None:
    path = recipe.run(classifier_config(tmp_path, stored.path, max_steps=4, eval_freq=2))
    judge = smallgpt.load(path, kind="classifier")
    assert isinstance(judge.tokenizer, SubwordTokenizer) and judge.tokenizer.classifies
    explained = explain(judge, "早上好呀今天错")
    assert "".join(explained.characters) == "早上好呀今天错"
    assert len(explained.shares) == len(explained.characters) < 7
    assert judge.can_only_guess("魑魅魍魉好") and not judge.can_only_guess("早上好呀魑")


def test_worse_than_blind_guessing_is_said(run: Path, stored: checkpoint.Checkpoint) -> None:
    """A piece drawn blindly is worth several characters, so that a character of it costs less."""
    corpus = open_corpus([run / "text.txt"])
    encoded, _ = match_tokenizer(corpus, stored.tokenizer)
    rows = PackedRows(encoded, np.arange(len(corpus)), 32, seed=0)
    config = replace(stored.config, device="cpu")
    here = Runtime(torch.device("cpu"), torch.float32, "")
    task = pretrain.DialogueTask(config, here, stored.model(), stored.tokenizer, rows, rows)
    batch = rows.batch(np.arange(len(rows)))
    blind = len(stored.tokenizer) ** (batch.target_count() / rows.characters(batch))
    assert blind < len(stored.tokenizer) / 2
    assert task.weakness({"perplexity": blind * 1.3}, False)
    assert not task.weakness({"perplexity": blind / 1.3}, False)
