"""A checkpoint is a Hugging Face model: transformers reads it without any code of ours."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import smallgpt
from smallgpt.chat.chatbot import Chatbot, prompt_ids
from smallgpt.checkpoints import checkpoint
from smallgpt.tokenizer.characters import PAD, SEP
from tests.helpers.commands import refusal
from tests.helpers.models import TINY, random_model, vocabulary

os.environ["HF_HUB_OFFLINE"] = "1"  # a wrong path is to fail, not to be looked for elsewhere
transformers: Any = importlib.import_module("transformers")
# Unprintable characters and unused ids stand in the vocabulary, and must never be said.
TOKENIZER = type(vocabulary())([*vocabulary().characters, "\t", "\x00", "\u2028"])
UNUSED = 6


def save(root: Path, seed: int = 0, **changes: Any) -> Path:
    config = replace(TINY, vocab_size=len(TOKENIZER) + UNUSED, **changes)
    model = random_model(seed, vocab_size=config.vocab_size, bias=config.bias)
    return checkpoint.save(root, seed, config, TOKENIZER, model.state_dict(), {}, {})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf"), temperature=0)


@pytest.fixture(scope="module")
def theirs(stored: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(stored)


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.parametrize("kind", ["with biases", "without biases", "trained"])
def test_the_same_logits(trained: Path, tmp_path: Path, kind: str) -> None:
    path = trained if kind == "trained" else save(tmp_path, bias=kind == "with biases")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True
    )
    assert not any(report.values()), report
    ours = checkpoint.load(path).model()
    ids = torch.randint(0, ours.config.vocab_size, (8, 32), generator=torch.manual_seed(0))
    with torch.no_grad():
        expected, logits = model(ids, attention_mask=torch.ones_like(ids)).logits, ours(ids)
    assert expected.std() > 0.3, "a model that says nothing proves nothing"
    difference = (logits - expected).abs().max().item()
    print(f"largest difference of logits: {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_transformers_has_nothing_to_warn_about(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], temperature: float
) -> None:
    path = save(tmp_path, temperature=temperature, top_k=5, max_new_tokens=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    said = model.generate(**tokenizer("你好\n", return_tensors="pt"))
    assert said.shape[1] <= 6
    assert capfd.readouterr() == ("", "")
    assert model.generation_config.do_sample == (temperature > 0)


TEXTS = st.text(st.sampled_from("你我好吗 ab\n\r\t\x00<pad>😀\u3000é")) | st.text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
@example("<pad><sep><unk>")
@example("你好😀\n\n 我 \r\n")
@example("e\u0301")  # nothing is composed
@example("")
def test_the_same_ids(theirs: Any, text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert theirs(text)["input_ids"] == ids
    known = [i for i in ids if i >= 3]
    assert theirs.decode(known) == TOKENIZER.decode(known)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["早上好呀", " 好\n呀 ", "<pad>你在吗\r\n", "<sep>好"])
def test_the_chat_template_is_our_conversation(theirs: Any, said: list[str]) -> None:
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": text} for r, text in zip(roles, said, strict=False)]
    templated = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert templated == prompt_ids(said, TOKENIZER, 10_000, 1)[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_greedy_replies(tmp_path: Path, seed: int) -> None:
    path = save(tmp_path, seed, temperature=0, max_repeats=0, max_new_tokens=16)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    stored = checkpoint.load(path)
    bot = Chatbot(stored.model(), stored.tokenizer, stored.config)
    for prompt in ("你好", "早上", "a b", "😀"):
        context = torch.tensor([stored.tokenizer.encode(prompt + "\n")])
        theirs = model.generate(context, attention_mask=torch.ones_like(context))
        reply = [i for i in theirs[0, context.shape[1] :].tolist() if i not in (SEP, PAD)]
        bot.flush()
        assert bot.reply(prompt) == stored.tokenizer.decode(reply)


def test_the_trained_model_talks_the_same_over_several_turns(trained: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    stored = checkpoint.load(trained)
    bot = Chatbot(stored.model(), stored.tokenizer, stored.config)
    messages: list[dict[str, str]] = []
    for prompt in ("早上好呀", "很好"):
        messages.append({"role": "user", "content": prompt})
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        said = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        reply = tokenizer.decode(said, skip_special_tokens=True).removesuffix("\n")
        assert bot.reply(prompt) == reply != ""
        messages.append({"role": "assistant", "content": reply})


def test_several_prompts_at_once_and_the_replies_alone(trained: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(trained).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    texts = ["早上好呀\n", "你叫什么名字\n晚安\n", "晚安\n"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    assert sorted(inputs) == ["attention_mask", "input_ids"]  # to GPT-2, token types are words
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    together = ids[:, inputs["input_ids"].shape[1] :].tolist()
    for text, reply in zip(texts, together, strict=True):
        own = tokenizer(text, return_tensors="pt")
        alone = model.generate(**own, do_sample=False, max_new_tokens=6)[0]
        alone = alone[own["input_ids"].shape[1] :].tolist()
        assert reply[: len(alone)] == alone


def test_a_tokenizer_says_what_older_versions_of_transformers_would_guess(stored: Path) -> None:
    settings = json.loads((stored / "tokenizer_config.json").read_text("utf-8"))
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["padding_side"] == "left"


def test_a_model_saved_over_ours_is_told(trained_copy: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(trained_copy)
    with torch.no_grad():
        model.transformer.ln_f.weight.add_(0.01)
    model.save_pretrained(trained_copy)
    message = refusal(lambda: smallgpt.load(trained_copy))
    assert "was changed after it was saved: another program (transformers)" in message
    assert "delete manifest.json and config.yaml there" in message
    for name in ("manifest.json", "config.yaml"):
        (trained_copy / name).unlink()
    assert smallgpt.load(trained_copy).reply("早上好呀")
