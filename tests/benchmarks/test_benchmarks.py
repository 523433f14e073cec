"""The benchmarks measure what they say: the plain recipe is the published model, rows and loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import Result

from benchmarks.measure import Contestant, matmul_peak, peak_memory
from benchmarks.plain import PlainGPT, PlainTrainer, padded_rows, real_targets
from benchmarks.time_to_loss import Task, our_config, prepare
from smallgpt import runtime
from smallgpt.config import ModelConfig
from smallgpt.data.corpus import open_corpus
from smallgpt.data.packing import PackedRows
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import PAD
from smallgpt.training.validation import validate
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY

SHAPE = ModelConfig(block_size=256, vocab_size=60, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n".join([DIALOGUES] * 5), encoding="utf-8")
    return file


def as_ours(plain: PlainGPT, config: ModelConfig) -> GPT:
    """Our model with the plain one's weights."""
    theirs = plain.state_dict()
    ours = {name: theirs[name] for name in ("wte.weight", "wpe.weight")}
    for kind in ("weight", "bias"):
        ours[f"ln_f.{kind}"] = theirs[f"ln_f.{kind}"]
        for i in range(config.n_layer):
            parts = [theirs[f"blocks.{i}.attention.{n}.{kind}"] for n in ("query", "key", "value")]
            ours[f"h.{i}.attn.c_attn.{kind}"] = torch.cat(parts)
            ours[f"h.{i}.attn.c_proj.{kind}"] = theirs[f"blocks.{i}.attention.out.{kind}"]
            ours[f"h.{i}.mlp.c_fc.{kind}"] = theirs[f"blocks.{i}.dense.{kind}"]
            ours[f"h.{i}.mlp.c_proj.{kind}"] = theirs[f"blocks.{i}.out.{kind}"]
            for norm in ("1", "2"):
                ours[f"h.{i}.ln_{norm}.{kind}"] = theirs[f"blocks.{i}.ln{norm}.{kind}"]
    model = GPT(config)
    model.load_state_dict(ours)
    return model.eval()


def test_the_plain_model_is_the_published_architecture() -> None:
    torch.manual_seed(0)
    plain = PlainGPT(60, 2, 2, 16, 256)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 60, (3, 40))
    torch.testing.assert_close(plain(ids), as_ours(plain, SHAPE)(ids), rtol=1e-4, atol=1e-4)


def test_both_measure_the_same_loss_on_the_same_dialogues(text: Path) -> None:
    task = prepare(text, 2, 2, 16, seed=0)
    rows = padded_rows(task.corpus, task.held_out, 256)
    trainer = PlainTrainer(rows, task.shape["vocab_size"], 2, 2, 16, 4, 10, torch.device("cpu"))
    for _ in range(3):
        trainer.step()
    config = our_config(task, decay_steps=10)
    ours = validate(
        as_ours(trainer.model, config),
        PackedRows(task.corpus, task.held_out, 256, 0),
        runtime.Runtime(torch.device("cpu"), torch.float32, "a test"),
        4,
        100,
        seed=0,
    )
    assert ours is not None
    assert ours.targets == int(real_targets(rows).sum())
    assert trainer.loss(rows, batch=3) == pytest.approx(ours.validation_loss, rel=1e-4)


def test_the_plain_loss_counts_padding_as_the_earlier_program_did(text: Path) -> None:
    corpus = open_corpus([text])
    rows = padded_rows(corpus, range(4), 256)
    assert rows.shape == (4, 257)
    assert rows[0].tolist()[: len(corpus.dialogue(0))] == corpus.dialogue(0)
    assert (rows[0, len(corpus.dialogue(0)) :] == PAD).all()
    trainer = PlainTrainer(rows, len(corpus.tokenizer), 2, 2, 16, 4, 10, torch.device("cpu"))
    logits = trainer.model(rows[:, :-1])
    everything = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    everything.backward()
    expected = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    seen: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        parameters = list(parameters)
        seen.extend(p.grad.clone() for p in parameters)
        return clip(parameters, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
        assert trainer.step() == int(real_targets(rows).sum())
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_held_out_dialogues_are_not_trained_on(text: Path) -> None:
    task: Task = prepare(text, 1, 2, 16, seed=3)
    assert not set(task.train) & set(task.held_out)
    assert len(task.held_out) >= 1


class Failing:
    def say(self, word: str) -> str:
        return word

    def fail(self) -> None:
        raise ValueError("as asked")


def test_a_contestant_answers_and_its_failures_are_told() -> None:
    with Contestant(Failing) as contestant:
        assert contestant.call("say", "yes") == "yes"
        assert 1e6 < contestant.peak_memory() < 1e11
        with pytest.raises(RuntimeError, match="as asked"):
            contestant.call("fail")


def test_the_limits_of_the_machine_are_measured() -> None:
    assert matmul_peak(torch.float32, torch.device("cpu"), size=256) > 0
    assert peak_memory() > 1e7


def bench(name: str, *options: object) -> Result:
    """`python -m benchmarks.NAME`, in this process but for its contestants."""
    return python_here(REPOSITORY, "-m", f"benchmarks.{name}", *map(str, options))


def printed(name: str, *options: object) -> list[dict[str, Any]]:
    done = bench(name, *options)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_training_benchmark_prints_its_figures(text: Path) -> None:
    (line,) = printed("training", "--size", "tiny", "--rounds", 2, "--data", text)
    ours, plain = line["our_characters_per_second"], line["plain_characters_per_second"]
    assert line["ratio"] == pytest.approx(ours / plain, rel=0.01)
    assert line["our_positions_per_second"] >= ours > 0
    assert line["plain_positions_per_second"] > plain > 0
    flops = 6 * line["parameters"] * line["our_positions_per_second"]
    peak = 1e9 * line["matmul_peak_gflops"]
    assert line["utilisation"] == pytest.approx(flops / peak, rel=0.01)
    assert line["our_peak_memory_gb"] > 0


def test_time_to_loss_prints_both_runs_and_draws_them(text: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    options = ("--budget", 0.3, "--layers", 1, "--heads", 2, "--width", 16)
    *points, result = printed("time_to_loss", *options, "--data", text, "--plot", picture)
    last = {point["contestant"]: point for point in points}
    assert result["plain_loss"] == last["plain"]["loss"]
    assert result["our_loss"] == last["ours"]["loss"]
    assert result["reached"] == (result["our_loss"] <= result["plain_loss"])
    assert result["reached"] or result["ratio"] is None
    assert result["plain_seconds"] == last["plain"]["seconds"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_sentiment_benchmark_prints_both_ratios() -> None:
    options = ("--size", "tiny", "--reviews", 48, "--rounds", 1, "--steps", 1)
    (line,) = printed("sentiment", *options)
    plain, ours, frozen = (line[f"{name}_epoch_s"] for name in ("plain", "ours", "frozen"))
    assert line["ratio"] == pytest.approx(plain / ours, rel=0.01)
    assert line["frozen_ratio"] == pytest.approx(ours / frozen, rel=0.01)
    assert line["frozen_states_s"] > 0


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("training", "--size", "13M"),
        ("scaling", "--size", "13M"),
        ("sentiment", "--size", "13M"),
        ("training", "--data", "missing.txt"),
        ("time_to_loss", "--data", "missing.txt"),
    ],
)
def test_wrong_arguments_end_with_a_clear_line(name: str, option: str, value: str) -> None:
    done = bench(name, option, value)
    assert done.exit_code == 2
    assert f"error: {option}: " in done.stderr and value in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: `make bench-gpu` uses it")
def test_without_a_gpu_the_gpu_benchmark_says_so() -> None:
    done = bench("training", "--device", "cuda")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "skipped" in done.stderr
