"""Preference tuning: the losses against what the papers write, and what a run does with good data,
with bad data, and when it is stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import smallgpt
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.data.preferences import PreferencePair, RatedReply
from smallgpt.distributed.world import ALONE
from smallgpt.model.gpt import GPT
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import SEP, UNK
from smallgpt.training import preference
from smallgpt.training.preference_examples import Examples
from smallgpt.training.preference_loss import Balance, PreferenceFigures, Scored, reason_to_stop
from smallgpt.training.preference_task import PreferenceTask
from smallgpt.training.rows import MixedRows, open_mixed
from tests.helpers.commands import refusal
from tests.helpers.models import TINY, random_model, save_tiny, vocabulary
from tests.helpers.processes import forked, losses, same_weights, write_run

HERE = Runtime(torch.device("cpu"), torch.float32, "test")
PROMPTS = ["早上好呀", "你叫什么名字", "今天天气不错", "晚安", "你好", "好吗", "睡得好吗"]
PAIRS = [
    {"prompt": prompt + "呀" * more, "chosen": "好呀", "rejected": "那就好"}
    for prompt in PROMPTS
    for more in range(4)
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), "utf-8")
    return path


def tune(folder: Path, base: Path, records: list[dict[str, Any]] = PAIRS, **changes: Any) -> Path:
    values = {
        "data_path": str(write(folder / "preferences.jsonl", records)),
        "base_model": str(base),
        "preference_loss": "dpo",
        "train_percent": 0.7,
        "device": "cpu",
        "dtype": "float32",
        "tensorboard_path": "",
        "train_batch": 4,
        "max_steps": 20,
        "warmup_steps": 1,
        "decay_steps": 20,
        "eval_freq": 10,
        "lr": 1e-3,
        "checkpoint_root": str(folder / "run"),
        **changes,
    }
    return preference.run(config_from_dict(values, "test", Config))


def thumbs(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of the replies of pairs, good or bad for itself; one a prompt, so none has a pair."""
    return [
        {"prompt": r["prompt"], "completion": r[key], "label": key == "chosen"}
        for number, r in enumerate(records)
        for key in (("chosen", "rejected")[number % 2],)
    ]


# The losses and their gradients, written out once more.


def log_p(model: GPT, messages: list[str], reply: str) -> Tensor:
    """The sum over the reply's characters and its end, each with a forward pass of its own."""
    tokenizer = vocabulary()
    ids = [i for message in messages for i in [*tokenizer.encode(message), SEP]]
    total = torch.zeros(())
    for target in [*tokenizer.encode(reply), SEP]:
        logits = model(torch.tensor([ids]))[0, -1]
        total = total + logits[target] - logits.exp().sum().log()
        ids.append(target)
    return total


def task_of(
    items: list[PreferencePair] | list[RatedReply],
    policy: GPT,
    reference: GPT,
    mixed: int = 0,
    **changes: Any,
) -> PreferenceTask:
    """A step takes all that is learnt from, and so many rows that are mixed in."""
    config = replace(TINY, vocab_size=len(vocabulary()), train_percent=0.7, **changes)
    config = replace(config, preference_loss="kto" if hasattr(items[0], "good") else "dpo")
    examples = Examples.of(items, vocabulary(), config)
    config = replace(config, train_batch=len(examples.train) + mixed)
    rows = None
    if mixed:
        config = replace(config, base_model="base", mix_share=mixed / config.train_batch)
        corpus = open_mixed(config, ALONE)
        assert corpus
        rows = MixedRows(config, corpus, vocabulary(), ALONE)
    task = PreferenceTask(config, HERE, policy, vocabulary(), examples, "", mixed_rows=rows)
    task.model = reference
    task.measure_reference()
    task.model = policy
    return task


def loss_and_gradients(task: PreferenceTask, count: int) -> tuple[float, dict[str, Tensor]]:
    task.model.zero_grad()
    parts, _ = task.parts(0, count)
    total = 0.0
    for part in parts:
        loss = task.loss(task.model, task.on_device(part))
        loss.backward()
        total += loss.item()
    return total, {
        n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None
    }


def compare(task: PreferenceTask, expected: Tensor, count: int) -> None:
    found, gradients = loss_and_gradients(task, count)
    task.model.zero_grad()
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=1e-6)


ITEMS = [
    PreferencePair(["早上好"], "好呀", "不好"),
    PreferencePair(["你好吗", "好", "是的"], "晚安", "早"),
    PreferencePair(["天气不错"], "是呀，不错", "安"),
    PreferencePair(["晚安"], "安", "天天天天"),
    PreferencePair(["我的天"], "呀", "你的"),
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("smoothing", "likelihood"), [(0.0, 0.0), (0.2, 0.0), (0.1, 0.7)])
def test_dpo_is_equation_7_of_its_paper(count: int, smoothing: float, likelihood: float) -> None:
    """With the label smoothing of its appendix, and the likelihood of arXiv:2404.19733."""
    policy, reference = random_model(1), random_model(2)
    more: dict[str, Any] = {"preference_smoothing": smoothing}
    more["preference_likelihood"] = likelihood
    task = task_of(ITEMS, policy, reference, preference_beta=0.3, **more)
    chosen = [ITEMS[n] for n in task.examples.train]
    losses = []
    for pair in chosen:
        ratios = []
        for reply in (pair.chosen, pair.rejected):
            with torch.no_grad():
                before = log_p(reference, pair.messages, reply)
            ratios.append(log_p(policy, pair.messages, reply) - before)
        margin = 0.3 * (ratios[0] - ratios[1])
        loss = -(1 - smoothing) * torch.log(1 / (1 + torch.exp(-margin)))
        loss = loss - smoothing * torch.log(1 / (1 + torch.exp(margin)))
        said = len(pair.chosen) + 1
        losses.append(loss - likelihood * log_p(policy, pair.messages, pair.chosen) / said)
    compare(task, torch.stack(losses).mean(), count)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_mixed_in_counts_by_its_share(tmp_path: Path, count: int) -> None:
    """The mean loss of a character of it, and the mean of the pairs, however the step is split:
    three rows are not two equal parts."""
    policy, reference = random_model(1), random_model(2)
    said = ["早上好", "天气不错", "你叫什么", "晚安呀", "是的"]
    text = "".join(f"{one}\n{other}\n\n" for one in said for other in said)
    (tmp_path / "old.txt").write_text(text, "utf-8")
    mixing = {"mix_path": str(tmp_path / "old.txt"), "unk_rate": 0.0, "preference_beta": 0.3}
    task = task_of(ITEMS, policy, reference, 3, **mixing)
    alone = task_of(ITEMS, policy, reference, preference_beta=0.3)
    pairs, rows = len(ITEMS[:4]), 3
    assert len(task.examples.train) == pairs
    of_pairs, gradients = loss_and_gradients(alone, 1)
    assert task.mixed_rows
    batch = task.mixed_rows.batch(0)
    assert len(batch.ids) == rows
    model = task.model
    model.zero_grad()
    total, characters = torch.zeros(()), 0
    for ids, targets, documents in zip(batch.ids, batch.targets, batch.documents, strict=True):
        for number in range(int(documents.max()) + 1):
            own = documents == number
            logits = model(ids[own][None])[0]
            total = total + F.cross_entropy(logits, targets[own], reduction="sum")
            characters += int((targets[own] != IGNORED).sum())
    (total / characters).backward()
    of_rows = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found, both = loss_and_gradients(task, count)
    weights = pairs / (pairs + rows), rows / (pairs + rows)
    expected = weights[0] * of_pairs + weights[1] * total.item() / characters
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in both.items():
        wanted = weights[0] * gradients[name] + weights[1] * of_rows[name]
        torch.testing.assert_close(gradient, wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_kto_is_equation_8_of_its_paper(count: int) -> None:
    """However the step is split: the divergence is that of all of it."""
    policy, reference = random_model(1), random_model(2)
    items = [RatedReply(p.messages, p.chosen, n % 3 > 0) for n, p in enumerate(ITEMS)]
    task = task_of(items, policy, reference, preference_beta=0.3)
    examples = task.examples
    with torch.no_grad():
        away = []
        for n in examples.train:
            other = vocabulary().decode(examples.replies[n][1][:-1])
            assert other != items[n].reply
            messages = items[n].messages
            away.append(log_p(policy, messages, other) - log_p(reference, messages, other))
        z0 = torch.stack(away).mean().clamp(min=0)
    good = sum(item.good for item in items)
    weights = {True: max(1, (5 - good) / good), False: max(1, good / (5 - good))}
    losses = []
    for n in examples.train:
        item = items[n]
        with torch.no_grad():
            before = log_p(reference, item.messages, item.reply)
        reward = 0.3 * (log_p(policy, item.messages, item.reply) - before - 0)
        value = torch.sigmoid(reward - 0.3 * z0 if item.good else 0.3 * z0 - reward)
        losses.append(weights[item.good] * (1 - value))
    assert {items[n].good for n in examples.train} == {True, False}
    compare(task, torch.stack(losses).mean(), count)


def test_what_a_reply_is_to_others_is_what_the_chat_reads() -> None:
    """A reply longer than half of the context is cut at its end, a prompt at its beginning."""
    config = replace(TINY, block_size=16, preference_loss="dpo", train_percent=0.5)
    pairs = [
        PreferencePair(["早" * 9, "好" * 4], "安" * 40, "晚"),
        PreferencePair(["你好"], "魑好", "好"),
    ]
    examples = Examples.of(pairs, vocabulary(), config)
    long = examples.contexts[0], examples.replies[0]
    assert vocabulary().decode(long[0]) == "好好好好\n"
    assert vocabulary().decode(long[1][0]) == "安" * 12
    assert long[1][1][-1] == SEP
    assert (
        max(
            len(context) + max(map(len, r))
            for context, r in zip(examples.contexts, examples.replies, strict=True)
        )
        == 17
    )
    assert UNK in examples.replies[1][0]
    assert sorted([*examples.train, *examples.validation]) == [0, 1]


def test_replies_to_other_messages_are_to_others() -> None:
    """Though most preferences may be about the same messages."""
    said = "早好安你我是天"
    pairs = [PreferencePair([["早"], ["晚安"]][n == 6], a, "呀") for n, a in enumerate(said)]
    config = replace(TINY, preference_loss="dpo")
    for seed in range(5):
        examples = Examples.of(pairs, vocabulary(), replace(config, seed=seed))
        unrelated = [vocabulary().decode(replies[2][:-1]) for replies in examples.replies]
        assert unrelated[:6] == ["天"] * 6
        assert unrelated[6] in said[:6]


# Runs.


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_it_comes_to_say_what_is_preferred(
    trained: Path, tmp_path: Path, kind: str, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    records = PAIRS if kind == "dpo" else thumbs(PAIRS)
    more: dict[str, Any] = {"lr": 1e-2 if rank else 3e-3}
    if kind == "dpo":
        more["preference_likelihood"] = 1.0
    path = tune(tmp_path, trained, records, preference_loss=kind, lora_rank=rank, **more)
    for name, better in (("validation_loss", -1), ("reward_margin", 1)):
        figures = losses(tmp_path, name)
        assert (figures[-1] - figures[0]) * better > 0, name
    assert losses(tmp_path, "reward_accuracy")[-1] == 1
    assert smallgpt.load(path, {"temperature": 0}).reply("早上好呀呀") == "好呀"
    assert "preferences: " in capfd.readouterr().err


def test_what_is_mixed_in_is_not_forgotten(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.txt").write_text("小明小明\n天气不错\n\n" * 30, "utf-8")
    mixing: dict[str, Any] = {"mix_path": str(tmp_path / "old.txt"), "mix_share": 0.25}
    mixing |= {"accumulate": 2, "lr": 3e-3, "preference_likelihood": 1.0}
    path = tune(tmp_path, trained, **mixing, max_steps=40, decay_steps=40)
    assert "mixed in: 1 of the 4 rows of a step, of 30 dialogues" in capfd.readouterr().err
    replies = [smallgpt.load(path, {"temperature": 0}).reply(p) for p in ("早上好呀呀", "小明小明")]
    assert replies == ["好呀", "天气不错"]
    said = refusal(lambda: tune(tmp_path, trained, **{**mixing, "mix_share": 0.7}))
    assert "mix_share is 0.7; it leaves 1 preference a step, for 2 parts" in said


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_run_goes_on_exactly_and_with_two_processes_nearly(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path)
    assert forked(tmp_path, "run.yaml").returncode == 0
    (tmp_path / "run").rename(tmp_path / "base")
    write(tmp_path / "p.jsonl", PAIRS if kind == "dpo" else thumbs(PAIRS))
    keys = [f"preference_loss={kind}", "data_path=p.jsonl", "base_model=base", "dropout=0.1"]
    keys += ["preference_patience=0", "tokenizer=characters"]
    keys += ["mix_path=text.txt", "mix_share=0.3"] * (kind == "dpo")
    for folder, more in (
        ("whole", ["dropout=0"]),
        ("cut", ["dropout=0", "max_steps=5"]),
        ("cut", ["dropout=0", "resume_from=latest"]),
        ("cut", ["dropout=0", "resume_from=latest"]),
    ):
        done = forked(tmp_path, "run.yaml", *keys, *more, f"checkpoint_root={folder}")
        assert done.returncode == 0, done.stderr
    assert (
        "nothing to do: cut/cpt12 is at step 12 of 12\nto train on, raise max_steps" in done.stderr
    )
    assert not (tmp_path / "cut/cpt13").exists()
    assert same_weights(tmp_path / "whole/cpt12", tmp_path / "cut/cpt12")
    done = forked(tmp_path, "run.yaml", *keys, "dropout=0", "checkpoint_root=two", processes=2)
    assert done.returncode == 0, done.stderr
    alone, together = (losses(tmp_path, folder=folder) for folder in ("whole", "two"))
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == len(alone)
    # Other preferences would need another reference.
    write(tmp_path / "p.jsonl", PAIRS[:-1] if kind == "dpo" else thumbs(PAIRS[:-1]))
    done = forked(
        tmp_path, "run.yaml", *keys, "checkpoint_root=cut", "resume_from=latest", "max_steps=14"
    )
    assert done.returncode == 2
    assert "has learnt from other preferences" in done.stderr


def test_a_run_that_does_not_move_says_why(trained: Path, tmp_path: Path) -> None:
    """Users of other programs see a loss that stays at 0.693."""
    said = refusal(lambda: tune(tmp_path, trained, lr=1e-9, min_lr=0.0, preference_patience=10))
    assert "is told apart no better than before the first step" in said
    assert "the model has hardly moved" in said
    assert "raise lr (now 1e-09)" in said
    assert (tmp_path / "run" / "cpt10").exists()
    assert losses(tmp_path)[-1] == pytest.approx(math.log(2), abs=1e-3)


def test_labels_at_random_are_named_as_the_reason(trained: Path, tmp_path: Path) -> None:
    """Each pair stands in it both ways: nothing can be learnt from it."""
    both = [r for p in PAIRS for r in (p, {**p, "chosen": p["rejected"], "rejected": p["chosen"]})]
    keys = {"preference_patience": 10, "train_batch": 8, "lr": 3e-2, "optimizer": "adamw"}
    said = refusal(lambda: tune(tmp_path, trained, both, **keys))
    assert "labelled at random" in said


def test_a_run_that_forgets_the_better_replies_stops(trained: Path, tmp_path: Path) -> None:
    """DPO may lower both replies, the worse one faster."""
    alike = [{**p, "chosen": "好呀早上好", "rejected": "好呀早上我"} for p in PAIRS]
    keys = {"lr": 0.05, "max_steps": 100, "decay_steps": 100, "preference_beta": 0.01}
    said = refusal(lambda: tune(tmp_path, trained, alike, **keys))
    assert "better replies have become unlikely" in said
    assert "preference_likelihood=1" in said


def test_the_reasons_by_their_figures() -> None:
    figures = PreferenceFigures(
        0.5, 1, 0.9, -5, -9, 0.1, moved=2, margin=3, margin_error=1, fallen=0
    )
    config = replace(TINY, preference_loss="dpo", preference_patience=50)
    assert reason_to_stop(config, 100, figures) is None
    still = replace(figures, moved=0.01, margin=0.001, margin_error=0.002)
    assert reason_to_stop(config, 49, still) is None
    assert "hardly moved" in str(reason_to_stop(config, 50, still))
    assert reason_to_stop(replace(config, preference_patience=0), 50, still) is None
    assert "ten times" in str(reason_to_stop(replace(config, lora_rank=8), 50, still))
    fallen = replace(figures, fallen=1.5)
    assert "1.5 nats a token" in str(reason_to_stop(config, 1, fallen))


def test_figures_of_one_kind_alone_are_left_out() -> None:
    """All validated replies may be good ones."""
    config = replace(TINY, preference_loss="kto")
    scored = Scored(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(3) > 0, torch.ones(3))
    figures = PreferenceFigures.of(config, Balance.of(3, 1), scored, scored)
    assert "rejected_log_p" not in figures.as_dict()
    assert "reward_margin" not in figures.as_dict()
    assert figures.as_dict()["validation_loss"] == pytest.approx(0.5)  # all have gained alike
    assert reason_to_stop(config, 1000, figures) is None
    line = "validation loss 0.5000, 0% right, log p of better replies 1.0, KL 1.00"
    assert str(figures) == line


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"base_model": ""}, "preference_loss is 'dpo'; it needs a base_model"),
        ({"preference_loss": "ppo"}, "preference_loss is 'ppo'; it must be one of dpo, kto"),
        ({"preference_loss": "kto", "preference_smoothing": 0.1}, "needs preference_loss: dpo"),
        ({"preference_beta": 0}, "preference_beta is 0; it must be a number above 0"),
    ],
)
def test_settings_that_cannot_be(
    trained: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    base = changes.pop("base_model", str(trained))
    assert problem in refusal(lambda: tune(tmp_path, base, **changes))


def test_two_prompts_are_enough() -> None:
    """Whatever `train_percent` is: one to learn from and one to validate on."""
    for share in (0.01, 0.99):
        config = replace(TINY, train_percent=share, preference_loss="dpo")
        examples = Examples.of(ITEMS[:2], vocabulary(), config)
        assert len(examples.train) == len(examples.validation) == 1


def test_what_is_looked_at_stands_for_all() -> None:
    """A file may have all good replies first."""
    items = [
        RatedReply([f"你好{'呀' * (n % 20)}{'！' * (n // 20)}"], "好", n < 200) for n in range(400)
    ]
    config = replace(TINY, vocab_size=len(vocabulary()), train_percent=0.5, preference_loss="kto")
    examples = Examples.of(items, vocabulary(), config)
    config = replace(config, test_batch=8, eval_steps=8)
    task = PreferenceTask(config, HERE, random_model(), vocabulary(), examples, "")
    for numbers, part in ((task.held_back, examples.validation), (task.sample, examples.train)):
        assert len(set(numbers)) == 64
        assert set(numbers) <= set(part)
        assert 16 < examples.good[torch.from_numpy(numbers)].sum() < 48


def test_adapters_keep_rows_of_the_base_that_no_character_has(tmp_path: Path) -> None:
    base = save_tiny(tmp_path, 1)
    assert open_checkpoint(base).config.vocab_size > len(vocabulary())
    keys: dict[str, Any] = {"lora_rank": 2, "preference_patience": 0}
    whole = tune(tmp_path, base, checkpoint_root=str(tmp_path / "whole"), **keys)
    tune(tmp_path, base, max_steps=10, **keys)
    last = tune(tmp_path, base, resume_from="latest", **keys)
    one, other = open_checkpoint(whole).weights, open_checkpoint(last).weights
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["wte.weight"], open_checkpoint(base).weights["wte.weight"])


def test_a_run_on_dialogues_does_not_go_on_with_preferences(trained: Path, tmp_path: Path) -> None:
    said = refusal(lambda: tune(tmp_path, trained, resume_from=str(trained), max_steps=99))
    assert "has learnt from other preferences, or otherwise" in said
    assert "with this one as base_model" in said


def test_one_prompt_alone_leaves_nothing_to_validate_on(trained: Path, tmp_path: Path) -> None:
    said = refusal(lambda: tune(tmp_path, trained, PAIRS[:1]))
    assert "at least two different prompts" in said
