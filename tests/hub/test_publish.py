"""What is made ready to upload loads everywhere, and its card tells the truth."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import smallgpt
from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.data.prepare import write
from smallgpt.hub.publish import make_ready
from tests.helpers.commands import refusal, refused_command
from tests.helpers.commands import smallgpt as smallgpt_command
from tests.helpers.models import DIALOGUES, save_with_pairs

os.environ["HF_HUB_OFFLINE"] = "1"
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM


def code_of(card: ModelCard, path: Path) -> dict[str, Any]:
    """Run the card's example."""
    (code,) = re.findall(r"```python\n(.*?)\n```", card.content, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("PATH", str(path)), names)
    return names


@pytest.mark.parametrize("most_bytes", ["2GB", "50KB"])
def test_a_language_model(trained: Path, tmp_path: Path, most_bytes: str) -> None:
    target = tmp_path / "ready"
    make_ready(trained, target, "mit", most_bytes)
    names = {path.name for path in target.iterdir()}
    assert "training_state.pt" not in names
    assert ("model.safetensors.index.json" in names) == (most_bytes == "50KB")
    before, after = checkpoint.load(trained), checkpoint.load(target)
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert smallgpt.load(target).reply("早上好") == smallgpt.load(trained).reply("早上好")
    card = ModelCard.load(target / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-generation"
    manifest = json.loads((trained / "manifest.json").read_text("utf-8"))
    assert f"| validation loss, nats | {manifest['validation_loss']:.4f} |" in card.content
    assert "text.txt" in card.content and str(trained.parents[1]) not in card.content
    model = code_of(card, target)["model"]
    assert torch.equal(model.transformer.wte.weight, before.weights["wte.weight"])


def test_damage_is_found_in_any_part(trained: Path, tmp_path: Path) -> None:
    make_ready(trained, tmp_path / "ready", "mit", "50KB")
    part = sorted((tmp_path / "ready").glob("*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:-8] + b"12345678")
    assert "is damaged" in refusal(lambda: smallgpt.load(tmp_path / "ready"))
    part.unlink()
    assert "is missing" in refusal(lambda: smallgpt.load(tmp_path / "ready"))


def test_a_classifier(classified: Path, tmp_path: Path) -> None:
    make_ready(classified, tmp_path / "ready", "other")
    texts = ["今天好好", "今天错"]
    ready = smallgpt.load(tmp_path / "ready", kind="classifier")
    assert ready.predict(texts) == smallgpt.load(classified, kind="classifier").predict(texts)
    card = ModelCard.load(tmp_path / "ready" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    report = json.loads((classified.parent / "report.json").read_text("utf-8"))
    assert f"| test accuracy | {report['test']['accuracy']:.4f}" in card.content
    judge = code_of(card, tmp_path / "ready")["judge"]
    for text, theirs, ours in zip(texts, judge(texts), ready.predict(texts), strict=True):
        scores = {entry["label"]: entry["score"] for entry in theirs}
        assert scores == pytest.approx(ours.probabilities, abs=1e-4), text
    # Of a longer text transformers reads the beginning, and the card says so.
    most = ready.config.block_size - 2
    assert f"more than {most} tokens transformers reads the beginning only" in card.content
    long = "今天好" * most
    assert judge([long]) == judge([long[:most]])


def test_a_model_of_our_own(tmp_path: Path) -> None:
    path = save_with_pairs(tmp_path)
    make_ready(path, tmp_path / "ready", "mit")
    card = ModelCard.load(tmp_path / "ready" / "README.md")
    assert card.data.library_name == "smallgpt" and "which alone runs it" in card.content
    assert code_of(card, tmp_path / "ready")["model"]
    assert smallgpt.load(tmp_path / "ready").reply("早上好") == smallgpt.load(path).reply("早上好")
    card = (tmp_path / "ready" / "README.md").read_text("utf-8")
    assert "\nA language model of Chinese dialogues: a GPT-2 with " in card


def test_a_converted_file_claims_no_training_of_ours(trained: Path, tmp_path: Path) -> None:
    legacy_pth.write(checkpoint.load(trained), tmp_path / "x.pth")
    text = trained.parents[1] / "text.txt"
    legacy_pth.to_checkpoint(tmp_path / "x.pth", [text], tmp_path / "cpt90M")
    make_ready(tmp_path / "cpt90M", tmp_path / "ready", "mit")
    card = ModelCard.load(tmp_path / "ready" / "README.md").content
    assert "# cpt90M\n" in card and "not with Small GPT" in card
    assert "| optimizer |" not in card and "| seed |" not in card


def test_a_file_for_llama_cpp(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "demo"
    done = smallgpt_command("push-ready", trained, "--output", target, "--gguf")
    assert done.exit_code == 0, done.output
    assert "llama-cli -m demo.gguf" in (target / "README.md").read_text("utf-8")
    assert (target / "demo.gguf").read_bytes()[:4] == b"GGUF"
    (target / "demo.gguf").unlink()  # without it, it is a whole checkpoint
    assert smallgpt.load(target).reply("早上好")
    pairs = save_with_pairs(tmp_path)
    refused = ("push-ready", pairs, "--output", tmp_path / "ready", "--gguf")
    assert "llama.cpp has no such network" in refused_command(*refused)
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_16_bits(trained: Path, tmp_path: Path, dtype: str) -> None:
    target = tmp_path / "ready"
    done = smallgpt_command("push-ready", trained, "--output", target, "--dtype", dtype)
    assert done.exit_code == 0, done.output
    before, after = checkpoint.load(trained), checkpoint.load(target)
    for name, weight in before.weights.items():
        assert torch.equal(weight.to(getattr(torch, dtype)).float(), after.weights[name]), name
    files = {path: (path / "model.safetensors").stat().st_size for path in (trained, target)}
    assert files[target] < 0.6 * files[trained]
    # Made ready again, they stay as they are.
    done = smallgpt_command("push-ready", target, "--output", tmp_path / "again")
    assert done.exit_code == 0 and "README.md is not taken over" in done.stderr
    again = tmp_path / "again"
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (target / name).read_bytes()
    theirs = AutoModelForCausalLM.from_pretrained(target)
    assert str(theirs.dtype) == f"torch.{dtype}"
    embedding = theirs.get_input_embeddings().state_dict()["weight"]
    assert torch.equal(embedding.float(), after.weights["wte.weight"])
    make_ready(target, tmp_path / "wider", "mit", dtype="float32")
    assert torch.equal(checkpoint.load(tmp_path / "wider").weights["wte.weight"], embedding.float())


def test_the_card_takes_a_text_and_an_evaluation(trained: Path, tmp_path: Path) -> None:
    text, about, figures = (tmp_path / name for name in ("x.txt", "about.md", "figures.json"))
    known = sorted(set(DIALOGUES) - {"\n"})
    write(([one, one + other] for one, other in pairwise(known[:20])), {text: 1.0})
    about.write_text("## Not for\n\nadvice\n", "utf-8")
    measure = ("evaluate", trained, "--data", text, "--json", figures, "--replies", "5")
    assert smallgpt_command(*measure, "--smalltalk", "--dialogues", "2").exit_code == 0
    measured = json.loads(figures.read_text("utf-8"))
    make_ready(trained, tmp_path / "ready", "mit", about=about, evaluation=figures)
    card = (tmp_path / "ready" / "README.md").read_text("utf-8")
    assert "\n## Not for\n\nadvice\n\n## Training" in card
    assert f"| bits a character on x.txt | {measured['bits_per_character']:.3f} |" in card
    assert f"(R10@1) on x.txt | {100 * measured['r10_at_1']:.1f} % (95 %:" in card
    small_talk = measured["small_talk"]
    share = f"{100 * small_talk['fitting'] / small_talk['replies']:.1f} % of"
    assert f"| replies that fit in held-out small talk | {share} {small_talk['replies']} |" in card
    # A card may be edited afterwards.
    (tmp_path / "ready" / "README.md").write_text("mine", "utf-8")
    assert smallgpt.load(tmp_path / "ready").reply("早上好")
    other = ("push-ready", tmp_path / "ready", "--output", tmp_path / "y", "--evaluation", figures)
    assert "is not an evaluation of" in refused_command(*other)
    for without in ("checkpoint", "r10_at_1_95"):
        figures.write_text(json.dumps({k: v for k, v in measured.items() if k != without}), "utf-8")
        edited = ("push-ready", trained, "--output", tmp_path / "y", "--evaluation", figures)
        assert f"{figures} is not what smallgpt evaluate writes" in refused_command(*edited)
    for option, file in (("--about", tmp_path / "x"), ("--evaluation", about)):
        said = refused_command("push-ready", trained, "--output", tmp_path / "y", option, file)
        assert f"{file} cannot be read" in said
    assert not (tmp_path / "y").exists()


def test_what_is_there_stays(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "is there already" in refusal(lambda: make_ready(trained, tmp_path / "mine", "mit"))
    assert "not found" in refusal(lambda: make_ready(tmp_path / "x", tmp_path / "y", "mit"))
    assert not (tmp_path / "y").exists()
