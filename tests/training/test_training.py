"""Training: steps, resuming, interruption, and what stops a run."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from smallgpt import runtime
from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.data.corpus import open_corpus
from smallgpt.data.packing import PackedRows, RowOrder
from smallgpt.distributed.world import World
from smallgpt.model.gpt import GPT
from smallgpt.training import optimizer, pretrain, resume, validation
from smallgpt.training.interruption import stop_on_signals
from smallgpt.training.optimizer import make_optimizers
from smallgpt.training.pretrain import DialogueTask
from smallgpt.training.rows import pack_corpus
from smallgpt.training.trainer import LaunchedStep, Trainer
from smallgpt.training.validation import sample_of, validate
from smallgpt.utils.errors import UserError
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, SMALL, same_weights
from tests.helpers.varlen import varlen_on_cpu

SHAPE: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
SETTINGS: dict[str, Any] = SMALL | {
    "max_steps": 8,
    "save_freq": 100,
    "train_batch": 4,
    "decay_steps": 8,
    "max_new_tokens": 6,
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("\n".join([DIALOGUES] * 4), encoding="utf-8")
    return SETTINGS | {
        "data_path": str(tmp_path / "text.txt"),
        "checkpoint_root": str(tmp_path / "run"),
    }


def train(settings: dict[str, Any], typed: Sequence[str] = (), **changes: Any) -> Path:
    chosen = config_from_dict(settings | changes, "test", Config)
    return pretrain.run(chosen, "train.py X", frozenset(typed))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path).weights


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def hangup_not_ignored() -> Iterator[None]:
    """As in a shell, also where the tests run under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Trainer], Any]], None]:
    """Make something happen once, just before the step of a number."""

    def before_step(number: int, happen: Callable[[Trainer], Any]) -> None:
        real, waiting = Trainer.launch, [happen]

        def launch(self: Trainer) -> LaunchedStep:
            if self.completed + 1 == number and waiting:
                waiting.pop()(self)
            return real(self)

        monkeypatch.setattr(Trainer, "launch", launch)

    return before_step


def trainer(settings: dict[str, Any], **changes: Any) -> Trainer:
    chosen = config_from_dict(settings | changes, "test", Config)
    corpus = open_corpus(chosen.data_paths())
    chosen = replace(chosen, vocab_size=len(corpus.tokenizer))
    runtime.seed_everything(chosen.seed)
    rows = pack_corpus(chosen, corpus, corpus.tokenizer)
    here = runtime.start(chosen)
    return Trainer(chosen, here, DialogueTask(chosen, here, GPT(chosen), corpus.tokenizer, *rows))


def rows_of(run: Trainer) -> PackedRows:
    assert isinstance(run.task, DialogueTask)
    return run.task.rows


# -- one step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_parameter_has_one_optimizer_and_only_matrices_decay(optimizer: Any) -> None:
    plan = Config(vocab_size=20, n_layer=2, n_head=2, n_embd=16, optimizer=optimizer)
    model = GPT(plan)
    groups = [g for o in make_optimizers(model, plan) for g in o.param_groups]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (plan.weight_decay if parameter.dim() > 1 else 0.0)


@pytest.mark.parametrize("native", [True, False])
def test_muon_is_torchs_on_a_cpu_without_bfloat16_too(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """To the rounding of bfloat16, in which torch iterates, where that is slow."""
    dtype = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(optimizer, "choose_dtype", lambda name, device: (dtype, "test"))
    shapes = [(16, 48), (48, 16), (24, 24)]
    generator = torch.Generator().manual_seed(0)
    begin = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    one, other = optimizer.Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q, start in zip(ours, theirs, begin, strict=True):
        difference = (p - q).norm() / (q - start).norm()
        assert difference == 0 if native else 0 < difference < 0.02
    states = [[s["momentum_buffer"] for s in o.state.values()] for o in (one, other)]
    assert all(torch.equal(p, q) for p, q in zip(*states, strict=True))


def test_loss_is_the_mean_over_real_characters(settings: dict[str, Any]) -> None:
    run = trainer(settings, unk_rate=0.0)
    rows = rows_of(run).batch(RowOrder(len(rows_of(run)), run.config.seed).take(0, 4))
    total, count = 0.0, 0
    with torch.no_grad():  # each dialogue of the batch alone, padding and packing aside
        for row in range(4):
            for document in rows.documents[row].unique():
                if document < 0:
                    continue
                own = rows.documents[row] == document
                logits = run.model(rows.ids[row][own][None])
                total += F.cross_entropy(logits[0], rows.targets[row][own], reduction="sum").item()
                count += int(own.sum())
    result = run.step()
    assert result.tokens == count
    assert result.loss == pytest.approx(total / count, rel=1e-5)


def test_accumulation_gives_the_same_weights(settings: dict[str, Any]) -> None:
    whole, parts = trainer(settings), trainer(settings, accumulate=4)
    for _ in range(5):
        one, other = whole.step(), parts.step()
        assert one.tokens == other.tokens
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for left, right in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_gradient_is_clipped(settings: dict[str, Any]) -> None:
    run = trainer(settings, grad_clip=1e-3)
    norms = []

    def measure(*_: Any) -> None:
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    run.optimizers[0].register_step_pre_hook(measure)
    assert run.step().grad_norm > 0.01
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(settings: dict[str, Any], optimizer: str) -> None:
    run = trainer(settings, optimizer=optimizer, decay_steps=60)
    losses = [run.step().loss for _ in range(60)]
    assert losses[0] > 3  # near ln(vocabulary)
    assert losses[-1] < 0.5 * losses[0]


def test_validation_is_the_same_rows_every_time_and_padding_never_counts(
    settings: dict[str, Any],
) -> None:
    run = trainer(settings)
    here = run.runtime
    sample = sample_of(rows_of(run), most=4, seed=1)
    first = validate(run.model, rows_of(run), here, sample, 2)
    again = validate(run.model, rows_of(run), here, sample_of(rows_of(run), most=4, seed=1), 2)
    assert first is not None
    assert first == again
    for rows_at_a_time in (1, 3, 100):  # 3: the last batch is not full
        other = validate(run.model, rows_of(run), here, sample, rows_at_a_time)
        assert other is not None
        assert other.targets == first.targets
        assert other.validation_loss == pytest.approx(first.validation_loss, rel=1e-5)
    figures = first.as_dict()
    assert figures["bits_per_character"] == pytest.approx(math.log2(figures["perplexity"]))
    everything = validate(run.model, rows_of(run), here, np.arange(len(rows_of(run))), 2)
    assert everything is not None
    assert everything.targets == rows_of(run).positions


# -- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.2},
        {"dropout": 0.1, "optimizer": "muon", "accumulate": 2},
        {"dtype": "bfloat16", "unk_rate": 1.0},
    ],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Nor do validating and saving change it, nor the shape of another network in the YAML."""
    straight = train(settings, **changes, checkpoint_root=str(tmp_path / "straight"))
    train(settings, **changes, max_steps=3)
    changes |= {"eval_freq": 2, "save_freq": 3, "n_embd": 32, "n_layer": 1, "block_size": 16}
    resumed = train(settings, ["max_steps"], **changes, vocab_size=99, resume_from="latest")
    assert resumed.name == straight.name == "cpt8"
    assert checkpoint.load(resumed).config.n_embd == 16
    assert same_weights(straight, resumed)
    losses = [[m["loss"] for m in metrics(p.parent) if "loss" in m] for p in (straight, resumed)]
    assert losses[0] == losses[1]
    states = [checkpoint.load(p).training_state() for p in (straight, resumed)]
    assert states[0]["rows_used"] == states[1]["rows_used"] == 32


def test_dialogues_longer_than_a_row_are_counted(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("你好吗\n好呀\n\n" * 9 + "早上好\n" * 9, encoding="utf-8")
    train(settings, max_steps=1, data_path=str(tmp_path / "long.txt"), train_percent=0.99)
    assert "1 dialogue too long for one row, continued in the next\n" in capsys.readouterr().err


def test_resume_with_another_text_keeps_the_vocabulary(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings, max_steps=4)
    (tmp_path / "new.txt").write_text("你好吗\n龘好呀\n\n早上好\n晚安呀", encoding="utf-8")
    other: dict[str, Any] = {"data_path": str(tmp_path / "new.txt"), "train_batch": 2}
    path = train(settings, resume_from="latest", **other)
    message = capsys.readouterr().err
    assert "knows no place in this text" in message
    assert "the model does not know 1 of them\n" in message
    assert "too long for one row" not in message
    stored = checkpoint.load(path)
    assert "龘" not in stored.tokenizer.characters
    assert stored.training_state()["rows_used"] == 4 * 2
    train(settings, **other | {"train_batch": 1}, resume_from="latest", max_steps=9)
    assert checkpoint.load(path.with_name("cpt9")).training_state()["rows_used"] == 4 * 2 + 1


def test_what_a_finished_run_can_be_resumed_as(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(settings, save_freq=4)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    assert train(settings, resume_from="latest") == path
    assert "is at step 8 of 8" in capsys.readouterr().err
    with pytest.raises(UserError, match="n_embd is 32, but the checkpoint's is 16"):
        train(settings, ["n_embd"], resume_from="latest", n_embd=32, max_steps=9)
    with pytest.raises(UserError, match="already holds the checkpoints of a run"):
        train(settings)
    with pytest.raises(UserError, match="holds cpt8, which would mix"):
        train(settings, resume_from=str(tmp_path / "run" / "cpt4"))
    with pytest.raises(
        UserError, match=r"optimizer: muon, but .* with adamw\n  -> set optimizer=adamw"
    ):
        train(settings, resume_from="latest", max_steps=9, optimizer="muon")
    second = str(tmp_path / "second")
    elsewhere = train(settings, resume_from=str(tmp_path / "run" / "cpt4"), checkpoint_root=second)
    assert same_weights(elsewhere, path)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}


def test_the_disk_is_looked_at_before_the_first_step(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = train(settings, checkpoint_root=str(tmp_path / "first"))
    size = sum(file.stat().st_size for file in path.iterdir())
    free = 0

    def disk(folder: Path) -> Any:
        assert Path(folder).is_dir()
        return shutil._ntuple_diskusage(10**12, 10**12 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"checkpoint_root: the disk of .* but a checkpoint takes"):
        train(settings)
    assert list((tmp_path / "run").glob("cpt*")) == []
    free = 2 * size
    train(settings, save_freq=1)  # 8 steps, and all are kept
    assert "make room, or set keep_last=1" in capsys.readouterr().err
    free = size  # as the estimate leaves out the texts, one still has room
    train(settings, checkpoint_root=str(tmp_path / "single"))
    assert "make room" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("saves", "keep_last", "free", "warned"),
    [
        *((1, 3, 10, False), (4, 3, 40, False), (4, 3, 39, True), (5, 3, 50, False)),
        *((5, 3, 49, True), (9, 0, 90, False), (9, 0, 89, True), (0, 1, 10, False)),
    ],
)
def test_how_many_checkpoints_must_have_room(
    saves: int,
    keep_last: int,
    free: int,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil._ntuple_diskusage(100, 100 - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    run_folder.check_room(tmp_path, 10, saves, keep_last)
    assert bool(capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    "change", [{"n_layer": 3}, {"n_head": 1}, {"n_embd": 64}, {"block_size": 8}, {"bias": False}]
)
def test_a_typed_key_of_the_shape_must_be_the_checkpoints(change: dict[str, Any]) -> None:
    stored, chosen = Config(**SHAPE), Config(**SHAPE | change, dropout=0.5)
    shaped = resume.with_shape_of(stored, chosen, 77, frozenset({"lr"}))
    assert shaped == replace(stored, dropout=0.5, vocab_size=77)
    ((key, value),) = change.items()
    with pytest.raises(UserError, match=f"{key} is {value}, but the checkpoint's is"):
        resume.with_shape_of(stored, chosen, 77, frozenset({key}))


# -- limits, reports --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save_freq", "eval_freq", "validated"), [(2, 0, [8]), (3, 4, [3, 4, 6, 8])]
)
def test_metrics_say_what_happened(
    settings: dict[str, Any], tmp_path: Path, save_freq: int, eval_freq: int, validated: list[int]
) -> None:
    board = tmp_path / "board"
    train(settings, save_freq=save_freq, eval_freq=eval_freq, tensorboard_path=str(board))
    lines = metrics(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    for line in steps:
        assert line.keys() == {"step", "loss", "lr", "tokens_per_second", "grad_norm", "seconds"}
    assert [line["seconds"] for line in steps] == sorted(line["seconds"] for line in steps)
    evaluations = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == validated
    for line in evaluations:
        assert line["bits_per_character"] == pytest.approx(line["validation_loss"] / math.log(2))
        assert len(line["replies"]) == 3
        assert all(reply for _, reply in line["replies"])
    saved = [line["checkpoint"] for line in lines if "checkpoint" in line]
    assert saved == [f"cpt{step}" for step in range(save_freq, 8, save_freq)] + ["cpt8"]
    events = EventAccumulator(str(board))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {tag.partition("/")[0] for tag in tags} == {"loss", "validation", "optimizer", "speed"}
    for tag, key, source in (
        ("train", "loss", steps),
        ("validation", "validation_loss", evaluations),
    ):
        drawn = [(event.step, event.value) for event in events.Scalars(f"loss/{tag}")]
        assert drawn == [(line["step"], pytest.approx(line[key])) for line in source]


def test_validation_picks_replies_and_counts_loops(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On fixed pairs; where there are none, the figures are left out."""
    characters = "你我好吗的是早上晚安天气不错呀谢小明叫什么名字"
    talks = [f"{c}{c}\n好{c}呀\n" for c in characters]
    (tmp_path / "talks.txt").write_text("\n".join(talks), encoding="utf-8")
    (tmp_path / "alone.txt").write_text("你好\n你好呀" + "\n\n你好" * 20, encoding="utf-8")
    board = str(tmp_path / "board")
    keys: dict[str, Any] = {"data_path": str(tmp_path / "talks.txt"), "train_percent": 0.3}
    keys |= {"max_steps": 2, "eval_freq": 1, "tensorboard_path": board, "seed": 1}
    path = train(settings, **keys)
    lines = [line for line in metrics(path.parent) if "perplexity" in line]
    said = capsys.readouterr().err
    for line in lines:
        picked, loops = line["r10_at_1"], line["loops_share"]
        assert f", R10@1 {picked:.0%}, {loops:.0%} of replies loop" in said
    manifest = checkpoint.load(path).manifest
    assert {key: manifest[key] for key in ("r10_at_1", "loops_share")} == {
        key: lines[-1][key] for key in ("r10_at_1", "loops_share")
    }
    events = EventAccumulator(board)
    events.Reload()
    for key in ("r10_at_1", "loops_share"):
        drawn = [event.value for event in events.Scalars(f"validation/{key}")]
        assert drawn == [pytest.approx(line[key]) for line in lines]

    alone = {"data_path": str(tmp_path / "alone.txt"), "seed": 0, "train_percent": 0.8}
    path = train(settings, **keys | alone, checkpoint_root=str(tmp_path / "second"))
    (*_, line) = (line for line in metrics(path.parent) if "perplexity" in line)
    assert "r10_at_1" not in line and "loops_share" not in line


def test_tensorboard_is_in_the_folder_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    train(settings, max_steps=1, tensorboard_path="auto")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_goes_on_where_tensorboard_cannot_write(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("add_scalar", "add_text"):
        monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{name}", full)
    assert train(settings, tensorboard_path="auto").name == "cpt8"
    assert capsys.readouterr().err.count("cannot be written: No space left on device") == 1


def test_metrics_behind_the_resumed_step_are_dropped(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    train(settings, max_steps=4)
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')  # then the machine went down
    train(settings, max_steps=6, resume_from="latest")
    assert [m["step"] for m in metrics(tmp_path / "run") if "loss" in m] == [1, 2, 3, 4, 5, 6]


def test_max_epoch_ends_the_run(settings: dict[str, Any]) -> None:
    chosen = config_from_dict(settings, "test", Config)
    corpus = open_corpus(chosen.data_paths())
    rows, _ = pack_corpus(chosen, corpus, corpus.tokenizer)
    path = train(settings, max_steps=None, max_epoch=3, train_batch=2)
    assert path.name == f"cpt{round(3 * len(rows) / 2)}"


def test_checkpoints_kept_are_the_newest_and_the_best(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    # After step 2 the rate is so high that the loss only rises.
    train(settings, max_steps=6, save_freq=1, eval_freq=1, keep_last=2, lr=3.0, warmup_steps=0)
    kept = run_folder.checkpoints(tmp_path / "run")
    losses = {m["step"]: m["validation_loss"] for m in metrics(kept[0].parent) if "perplexity" in m}
    best = min(losses, key=losses.__getitem__)
    assert {p.name for p in kept} == {f"cpt{best}", "cpt5", "cpt6"}
    assert run_folder.best(run_folder.checkpoints(tmp_path / "run")).name == f"cpt{best}"


# -- what stops a run -------------------------------------------------------------------------


def test_vocabulary_too_small_says_both_numbers(settings: dict[str, Any], tmp_path: Path) -> None:
    needed = len(open_corpus([tmp_path / "text.txt"]).tokenizer)
    with pytest.raises(UserError, match=f"vocab_size is 10, but the text has {needed} ids"):
        train(settings, vocab_size=10)
    path = train(settings, vocab_size=needed + 13)
    assert weights(path)["wte.weight"].shape[0] == needed + 13


def test_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    settings: dict[str, Any], tmp_path: Path, before_step: Any
) -> None:
    before_step(6, lambda run: run.model.get_parameter("ln_f.weight").data.fill_(math.nan))
    with pytest.raises(UserError, match="step 6: the loss is nan"):
        train(settings, save_freq=2)
    kept = run_folder.checkpoints(tmp_path / "run")
    assert [p.name for p in kept] == ["cpt2", "cpt4", "cpt5"]
    assert all(torch.isfinite(t).all() for t in weights(kept[1]).values())


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cause", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_what_was_before_it_is_saved(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps_ahead: int,
    optimizer: str,
    cause: float,
) -> None:
    settings |= {"optimizer": optimizer, "dropout": 0.1}
    expected = train(settings, max_steps=5, checkpoint_root=str(tmp_path / "straight"))
    real_launch, real_loss = Trainer.launch, DialogueTask.loss

    def launch(self: Trainer) -> LaunchedStep:
        self.steps_ahead = steps_ahead
        return real_launch(self)

    def loss(self: DialogueTask, network: torch.nn.Module, part: Any) -> torch.Tensor:
        value = real_loss(self, network, part)
        once = len(seen) == 5
        seen.append(value)
        return value * cause if once else value

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(Trainer, "launch", launch)
    monkeypatch.setattr(DialogueTask, "loss", loss)
    with pytest.raises(UserError, match="step 6: the loss is"):
        train(settings)
    assert len(seen) == 6 + steps_ahead
    (saved,) = run_folder.checkpoints(tmp_path / "run")
    assert saved.name == "cpt5"
    assert same_weights(saved, expected)
    states = [
        [optimizer["state"] for optimizer in checkpoint.load(path).training_state()["optimizers"]]
        for path in (saved, expected)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)

    # Diverging again, it keeps the checkpoint that is there, and with a lower rate it goes on.
    seen[:] = seen[:5]
    before = (saved / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="step 6: the loss is"):
        train(settings, resume_from="latest")
    assert (saved / "manifest.json").read_bytes() == before
    assert train(settings, resume_from="latest", lr=1e-4, min_lr=1e-5).name == "cpt8"


def test_a_step_launched_before_the_last_one_is_read_changes_nothing_in_the_run(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"eval_freq": 3, "save_freq": 5, "accumulate": 2, "dropout": 0.1}
    expected = train(settings, checkpoint_root=str(tmp_path / "straight"))
    real, real_finish, order = Trainer.launch, Trainer.finish, []

    def launch(self: Trainer) -> LaunchedStep:
        self.steps_ahead = 1
        launched = real(self)
        order.append(launched.number)
        return launched

    def finish(self: Trainer, launched: LaunchedStep) -> Any:
        order.append(-launched.number)
        return real_finish(self, launched)

    monkeypatch.setattr(Trainer, "launch", launch)
    monkeypatch.setattr(Trainer, "finish", finish)
    assert same_weights(train(settings), expected)
    # All are read where the run validates (3, 6, 8) or saves (5, 8).
    assert order == [1, 2, -1, 3, -2, -3, 4, 5, -4, -5, 6, -6, 7, 8, -7, -8]
    lines = [
        [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in m]
        for m in (metrics(tmp_path / "run"), metrics(tmp_path / "straight"))
    ]
    assert lines[0] == lines[1]


def test_no_place_to_write_stops_before_the_work(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="checkpoint_root: cannot write to"):
        train(settings, checkpoint_root=str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="tensorboard_path"):
        train(settings, tensorboard_path=str(tmp_path / "file"))


def test_second_run_in_one_folder_is_refused_and_the_first_goes_on(
    settings: dict[str, Any], before_step: Any
) -> None:
    refused = []

    def second_run(first: Trainer) -> None:
        with pytest.raises(UserError, match="another run is at work in") as error:
            train(settings)
        refused.append(error)

    before_step(4, second_run)
    assert train(settings).name == "cpt8"
    assert refused


def test_sigterm_during_validation_saves_at_once(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = validation.summed_loss, []

    def summed_loss(*arguments: Any) -> Any:
        batches.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(validation, "summed_loss", summed_loss)
    with pytest.raises(SystemExit) as stopped:
        train(settings, eval_freq=4, test_batch=1)
    assert stopped.value.code == 143
    assert len(batches) == 1
    assert [p.name for p in run_folder.checkpoints(tmp_path / "run")] == ["cpt4"]


class _SignalledWhileAsking(World):
    """A group in which a SIGTERM comes to this process after it has said that it has none."""

    def max(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return number


def test_a_signal_that_comes_while_processes_agree_is_not_lost() -> None:
    with stop_on_signals() as stop:
        assert not stop.agreed(_SignalledWhileAsking())  # no other process knows of it
        assert stop.agreed(World())
    assert stop.number == signal.SIGTERM


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), MemoryError()]
)
def test_out_of_memory_says_what_to_lower(
    settings: dict[str, Any], before_step: Any, error: Exception
) -> None:
    def fail(run: Trainer) -> None:
        raise error

    before_step(1, fail)
    with pytest.raises(UserError, match=r"out of memory at step 1: \S(.*\n.*)raise accumulate"):
        train(settings)


def test_a_compiler_that_fails_is_said_and_the_run_goes_on_without(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("no headers\nat all")

    straight = train(settings, dropout=0.1, checkpoint_root=str(tmp_path / "straight"))
    monkeypatch.setattr(torch, "compile", lambda *model, **options: broken)
    assert same_weights(train(settings, dropout=0.1, compile=True), straight)
    assert "compile: it failed, running without: no headers\n" in capfd.readouterr().err


def test_overflowing_gradients_skip_the_step_of_every_optimizer(settings: dict[str, Any]) -> None:
    run = trainer(settings, optimizer="muon")
    run.scaler = torch.amp.GradScaler("cpu")  # as on a GPU in float16
    run.most_overflows = 3
    scale = run.scaler.get_scale()
    matrix = run.model.get_parameter("h.0.mlp.c_fc.weight")  # one of Muon's
    matrix.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    before = [p.clone() for p in run.model.parameters()]
    assert run.step().grad_norm == math.inf
    after = list(run.model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert run.scaler.get_scale() == scale / 2
    assert run.step().grad_norm == math.inf
    with pytest.raises(UserError, match=r"step 3: .* inf, as in 3 steps in a row"):
        run.step()


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to finish what it was given."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "item")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function.overloadpacket.__name__ in self.WAITING
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("changes", "waits"),
    [({}, 0), ({"accumulate": 2, "grad_clip": 0.0}, 0), ({"optimizer": "muon"}, 1)],
)
def test_launching_a_step_waits_for_nothing(
    settings: dict[str, Any], changes: dict[str, Any], waits: int
) -> None:
    run = trainer(settings, **changes)
    run.step()
    with Waits() as launching:
        launched = run.launch()
    # Muon must know whether the step is finite; AdamW's kernels find out for themselves.
    assert launching.count == waits
    assert math.isfinite(run.finish(launched).loss)
    with Waits() as planted:
        bool(torch.ones(1))
    assert planted.count == 1


def test_validation_computes_no_gradient_and_waits_once_only(settings: dict[str, Any]) -> None:
    run = trainer(settings)
    sample = np.arange(len(rows_of(run)))
    assert len(sample) > 3
    counts = []
    for rows_at_a_time in (1, len(sample)):
        with Waits() as validating, FlopCounterMode(display=False) as computing:
            validate(run.model, rows_of(run), run.runtime, sample, rows_at_a_time)
        counts.append((validating.count, computing.get_total_flops()))
    assert counts[0] == counts[1]
    batch = rows_of(run).batch(sample)
    with torch.no_grad(), FlopCounterMode(display=False) as computing:
        run.model(batch.ids, batch.positions, batch.documents, targets_BT=batch.targets)
    assert counts[0] == (1, computing.get_total_flops())


def test_variable_length_attention_trains_the_same_model(settings: dict[str, Any]) -> None:
    varlen_on_cpu()
    masked, other = trainer(settings, accumulate=2), trainer(settings, accumulate=2)
    other.task.runtime = replace(other.runtime, varlen=True)  # type: ignore[attr-defined]
    for _ in range(3):
        assert other.step().loss == pytest.approx(masked.step().loss, rel=1e-5)
    losses = [run.task.validate(lambda: False) for run in (masked, other)]
    first, second = (loss.as_dict()["validation_loss"] for loss in losses if loss)
    assert first == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("goes_on", ["base_model", "resume_from"])
def test_attention_is_chosen_for_the_shape_of_the_model_that_is_trained_on(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, goes_on: str
) -> None:
    first = train(settings)
    shapes = []

    def with_attention(here: runtime.Runtime, config: Config) -> runtime.Runtime:
        shapes.append((config.n_embd, config.n_head))
        return here

    monkeypatch.setattr(runtime, "with_attention", with_attention)
    others = {key: value for key, value in settings.items() if not key.startswith("n_")}
    root = f"{settings['checkpoint_root']}2"
    train(others, checkpoint_root=root, max_steps=9, **{goes_on: str(first)})
    assert shapes == [(settings["n_embd"], settings["n_head"])]


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_all_blocks_share_a_graph_and_learn_what_they_learn_without(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    varlen_on_cpu()
    settings |= {"n_layer": 3, "dropout": 0.0, "train_batch": 2}
    plain, run = trainer(settings), trainer(settings, compile=True)
    for one in (plain, run):
        one.task.runtime = replace(one.runtime, varlen=True)  # type: ignore[attr-defined]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        for _ in range(4):
            assert run.step().loss == pytest.approx(plain.step().loss, rel=1e-4)
        assert "compile: compiled in" in capsys.readouterr().err
        validations = [one.task.validate(lambda: False) for one in (run, plain)]
        losses = [value.as_dict()["validation_loss"] for value in validations if value]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        run.task.sample_replies()  # each of another length
        # More dialogues in as many rows are no reason to compile.
        parts, _ = run.task.parts(0, 1)
        batch, tokens = parts[0]
        every_place = batch._replace(documents=torch.arange(32).expand(2, 32))
        assert len(every_place.bounds()) > len(batch.bounds())
        run.task.loss(run.network, run.task.on_device((every_place, tokens)))
        # One to train and one to validate.
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    finally:
        torch._dynamo.reset()


def test_metrics_of_deleted_checkpoints_are_kept_aside(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    shutil.rmtree(train(settings))
    old = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    train(settings, max_steps=2)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 2, 2]
    assert (tmp_path / "run" / "metrics.jsonl.old").read_text("utf-8") == old


def test_metrics_of_a_run_killed_before_its_first_checkpoint_are_dropped(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings, save_freq=4, eval_freq=2)
    monkeypatch.setattr(checkpoint, "save", real)
    train(settings)
    assert [m["step"] for m in metrics(tmp_path / "run") if "loss" in m] == list(range(1, 9))
    assert not (tmp_path / "run" / "metrics.jsonl.old").exists()


@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupted_run_saves_says_how_to_go_on_and_goes_on(
    settings: dict[str, Any], tmp_path: Path, before_step: Any, number: int, code: int
) -> None:
    lines = [f"{key}: {value}\n" for key, value in settings.items()]
    (tmp_path / "run.yaml").write_text("".join(lines), encoding="utf-8")
    before_step(3, lambda run: os.kill(os.getpid(), number))
    result = python_here(tmp_path, REPOSITORY / "train.py", "run.yaml", "lr=0.02")
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert [p.name for p in run_folder.checkpoints(tmp_path / "run")] == ["cpt3"]
    assert "stopped at step 3" in result.stderr
    assert f"{REPOSITORY / 'train.py'} run.yaml lr=0.02 resume_from=latest" in result.stderr
    assert "or chat with the model as it is now: " in result.stderr
    assert f"chat.py {tmp_path / 'run' / 'cpt3'}" in result.stderr
    resumed = train(settings, lr=0.02, resume_from="latest")
    straight = train(settings, lr=0.02, checkpoint_root=str(tmp_path / "straight"))
    assert same_weights(straight, resumed)


@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"  # Python 3.12 on pty.fork
)
def test_a_closed_terminal_saves(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = [f"{key}: {value}\n" for key, value in (settings | {"max_steps": 10**6}).items()]
    (tmp_path / "run.yaml").write_text("".join(lines), encoding="utf-8")
    command = [str(REPOSITORY / "train.py"), "run.yaml", "save_freq=1000000", "decay_steps=1000000"]
    run = pexpect.spawn(sys.executable, command, cwd=tmp_path, encoding="utf-8", timeout=60)
    run.expect_exact("loss ")
    os.close(
        run.child_fd
    )  # the window is closed: SIGHUP, and writing to it is an error from now on
    assert run.pid
    os.waitpid(run.pid, 0)
    (saved,) = run_folder.checkpoints(tmp_path / "run")
    assert checkpoint.load(saved).training_state()["completed"] > 0


def test_sighup_stays_ignored_under_nohup() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, previous)
