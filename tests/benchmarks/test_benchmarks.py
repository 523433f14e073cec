"""The benchmarks measure what they say: the plain recipe is the published model, rows and loss."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import Result

from benchmarks import generation
from benchmarks.measure import Contestant, matmul_peak, peak_memory
from benchmarks.plain import PlainGPT, PlainTrainer, padded_rows, real_targets
from benchmarks.scaling import Turn, bytes_a_step
from benchmarks.time_to_loss import our_config, prepare
from smallgpt.config import ModelConfig
from smallgpt.data.corpus import open_corpus
from smallgpt.data.packing import PackedRows
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import PAD
from smallgpt.training.validation import validate
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, finished

CPU = torch.device("cpu")


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


def test_the_plain_model_is_the_published_one_and_both_measure_the_same_loss(text: Path) -> None:
    task = prepare(text, 2, 2, 16, seed=3)
    assert len(task.held_out) >= 1 and not set(task.train) & set(task.held_out)
    rows = padded_rows(task.corpus, task.held_out, 256)
    trainer = PlainTrainer(rows, task.shape["vocab_size"], 2, 2, 16, 4, 10, CPU)
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = our_config(task, decay_steps=10)
    model = as_ours(trainer.model, config)
    ids = rows[:3, :40]
    torch.testing.assert_close(trainer.model(ids), model(ids), rtol=1e-4, atol=1e-4)
    held_out = PackedRows(task.corpus, task.held_out, 256, 0)
    ours = validate(
        model, held_out, Runtime(CPU, torch.float32, "a test"), np.arange(len(held_out)), 4
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
    trainer = PlainTrainer(rows, len(corpus.tokenizer), 2, 2, 16, 4, 10, CPU)
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


class Failing:
    def say(self, word: str) -> str:
        return word

    def fail(self) -> None:
        raise ValueError("as asked")

    def take_long(self, folder: Path) -> None:
        try:
            (folder / "begun").touch()
            time.sleep(600)
        finally:
            (folder / "begun").unlink()


def test_a_contestant_answers_and_its_failures_are_told() -> None:
    with Contestant(Failing) as contestant:
        assert contestant.call("say", "yes") == "yes"
        assert 1e6 < contestant.peak_memory() < 1e11
        with pytest.raises(RuntimeError, match="as asked"):
            contestant.call("fail")


def test_a_contestant_that_takes_too_long_is_given_up() -> None:
    contestant = object.__new__(Contestant)
    contestant._connection, silent = multiprocessing.Pipe()
    with pytest.raises(TimeoutError):
        contestant.call("say", "yes", seconds=0.01)
    assert silent.recv() == ("say", ("yes",))


def test_what_a_contestant_still_does_is_ended_and_cleaned_up(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError), Contestant(Failing) as contestant:
        with pytest.raises(TimeoutError):
            contestant.call("take_long", tmp_path, seconds=0)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise TimeoutError
    assert not (tmp_path / "begun").exists()
    assert contestant._process.exitcode == 0  # it was not killed


def test_the_limits_of_the_machine_are_measured() -> None:
    assert matmul_peak(torch.float32, CPU, size=256) > 0
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


@pytest.mark.slow
def test_the_sentiment_benchmark_prints_both_ratios() -> None:
    options = ("--size", "tiny", "--reviews", 48, "--rounds", 1, "--steps", 1)
    (line,) = printed("sentiment", *options)
    plain, ours, frozen = (line[f"{name}_epoch_s"] for name in ("plain", "ours", "frozen"))
    assert line["ratio"] == pytest.approx(plain / ours, rel=0.01)
    assert line["frozen_ratio"] == pytest.approx(ours / frozen, rel=0.01)
    assert line["frozen_states_s"] > 0


@pytest.mark.slow
def test_adapters_are_measured_against_the_whole_model() -> None:
    (line,) = printed("adapters", "tiny", "--steps", 1)
    assert line["time_ratio"] == pytest.approx(line["seconds_adapters"] / line["seconds"], rel=0.01)
    assert line["gpu_gb_adapters"] < line["gpu_gb"]
    assert line["disk_mb_adapters"] < line["disk_mb"] / 10


@pytest.mark.slow
def test_two_processes_are_measured_against_one(text: Path) -> None:
    options = ["--size", "tiny", "--rows", "2", "--steps", "2", "--rounds", "2", "--data", text]
    done = finished([sys.executable, "-m", "benchmarks.scaling", *map(str, options)], REPOSITORY)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["scaling"], line["rows_a_process"], line["threads"]) == ("weak", 2, 1)
    assert line["gradient_bytes"] == 4 * line["parameters"]
    rounds = line["efficiency_of_rounds"]
    assert len(rounds) == 2
    assert line["efficiency"] == pytest.approx(sum(rounds) / 2, abs=0.001)
    assert line["tokens_per_second_two"] > 0
    assert line["efficiency_of_two_apart"] > 0
    assert line["all_reduce_seconds"] > 0
    if line["bytes_measured_in"] == "a network of their own":
        # Each sends its half of the sum and its half of the numbers once, and some headers.
        assert 1 < line["bytes_by_gradients"] < 1.3


def test_bytes_of_a_step_are_those_beyond_what_is_sent_at_rest() -> None:
    # 4 steps in 2 s each; 30 bytes a second at rest, between second 2 and 12.
    turns = [Turn(0, 2, 1000, 1460, 0), Turn(12, 14, 1760, 2220, 0)]
    assert bytes_a_step(turns, 4) == pytest.approx((2 * 460 - 4 * 30) / 8)
    assert bytes_a_step(turns[:1], 4) == 460 / 4


class InThisProcess(contextlib.nullcontext[None]):
    """A contestant without a process of its own."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._made = make(*arguments)

    def __enter__(self) -> Any:
        return self

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._made, method)(*arguments)


def test_the_generation_benchmark_compares_every_case(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # so that what it sets is undone
    monkeypatch.setattr(generation, "DTYPES", ("int8",))
    monkeypatch.setattr(generation, "CONTEXTS", (20,))
    monkeypatch.setattr(generation, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(generation, "Contestant", InThisProcess)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: None)  # imports torch
    generation.main(quick=True, rounds=1)
    cases = {case["case"]: case for case in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(cases) == ["plain", "ours", "first", "startup"]
    plain, ours, first, startup = cases.values()
    assert plain["context"] == ours["context"] == 20
    assert ours["dtype"] == "int8"
    assert ours["times_plain"] == pytest.approx(
        plain["seconds_a_character"] / ours["seconds_a_character"], rel=0.01
    )
    layers, head = 2 * 12 * 64 * 64, 200 * 64
    assert ours["weight_bytes"] == layers + head
    assert ours["share_of_bandwidth_limit"] == pytest.approx(
        ours["weight_bytes"] / 1e10 / ours["seconds_a_character"], rel=0.01
    )
    assert first["seconds"] > 0
    assert startup["ratio"] == pytest.approx(
        startup["prompt_seconds"]
        / (startup["import_torch_seconds"] + startup["read_weights_seconds"]),
        rel=0.01,
    )


def test_the_comparison_with_llama_cpp_has_a_line_for_each_of_both(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Twice:
        """Takes two seconds for everything, and a second more for a row."""

        def __init__(
            self, path: Path, vocab_size: int, context: int, threads: int, rows: int
        ) -> None:
            assert path.stat().st_size and (vocab_size, context) == (200, 256)
            self.rows = rows

        def seconds_a_character(self, context: int, rows: int, characters: int) -> float:
            assert rows == self.rows
            return 2.0 + rows

        def seconds_to_first(self, prompt: int) -> float:
            return 2.0

    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    monkeypatch.setattr(generation, "ROWS", (1, 3))
    monkeypatch.setattr(generation, "QUANTIZATIONS", {"int4": "q4_0"})
    monkeypatch.setattr(generation, "Contestant", InThisProcess)
    monkeypatch.setattr(generation, "LlamaCpp", Twice)
    generation.main(quick=True, rounds=1, peer="llama.cpp")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours, theirs = lines[::2], lines[1::2]
    assert [(line.get("context"), line.get("rows")) for line in ours] == [
        (20, 1),
        (250, 1),
        (20, 3),
        (None, None),
    ]
    assert [line.get("ms_per_character") for line in theirs] == [3000, 3000, 5000, None]
    assert theirs[-1]["ms_to_first_character"] == 2000
    assert {(line["who"], line["dtype"]) for line in lines} == {
        ("ours", "int4"),
        ("llama.cpp", "q4_0"),
    }
    for our, their in zip(ours[:3], theirs, strict=False):
        assert our["times_as_fast"] == pytest.approx(
            their["ms_per_character"] / our["ms_per_character"], rel=0.01
        )


@pytest.mark.slow
def test_the_serving_benchmark_has_a_line_for_each_case(tmp_path: Path) -> None:
    options = ["--quick", "--rounds", "1", "--clients", "1", "--clients", "9", "--requests", "40"]
    peer = "llama.cpp" if importlib.util.find_spec("xllamacpp") else None
    command = [sys.executable, "-m", "benchmarks.serving", *options]
    done = finished([*command, *(["--peer", peer] if peer else [])], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    who = ["ours", peer] if peer else ["ours"]
    clients = [line for line in lines if line["case"] == "clients"]
    assert [(line["clients"], line["who"]) for line in clients] == [
        (count, name) for count in (1, 9) for name in who
    ]
    for line in clients:
        assert line["characters"] == 48 * line["clients"]
        assert 0 < line["ms_to_first_character"] <= line["slowest_ms_to_first_character"]
        assert line["characters_a_second"] > 0
    assert [line["rows"] for line in lines if line["case"] == "overhead"] == [1, 8]
    assert [line["who"] for line in lines if line["case"] == "idle"] == who
    assert lines[-1]["case"] == "memory" and lines[-1]["megabytes"] > 1


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("training", "--size", "13M"),
        ("scaling", "--size", "13M"),
        ("scaling", "--rows", "12"),
        ("generation", "--size", "7B"),
        ("serving", "--size", "7B"),
        ("sentiment", "--size", "13M"),
        ("training", "--data", "missing.txt"),
        ("time_to_loss", "--data", "missing.txt"),
    ],
)
def test_wrong_arguments_end_with_a_clear_line(name: str, option: str, value: str) -> None:
    done = bench(name, option, value)
    assert done.exit_code == 2
    assert f"error: {option}: " in done.stderr and value in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_gpu_benchmark_says_so() -> None:
    done = bench("training", "--device", "cuda")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "skipped" in done.stderr
