"""How long a run is: by steps, passes, minutes and patience; and what is said at its end."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import Config
from smallgpt.config_file import load_config
from smallgpt.training import pretrain, trainer
from smallgpt.training.schedule import Schedule
from tests.helpers.processes import TRAIN, forked, same_weights, write_run


def train(folder: Path, *overrides: str) -> Path:
    root = f"checkpoint_root={folder / 'run'}"
    paths = [root, f"data_path={folder / 'text.txt'}"]
    return pretrain.run(load_config(folder / "run.yaml", [*paths, *overrides]), "train.py run.yaml")


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    plan = Schedule(Config(lr=1.0, min_lr=0.1, warmup_steps=10, decay_steps=110), 500)
    assert plan.learning_rate(0) == pytest.approx(0.1)
    assert plan.learning_rate(9) == pytest.approx(1.0)
    assert plan.learning_rate(60) == pytest.approx(0.55)  # half-way down
    assert plan.learning_rate(110) == plan.learning_rate(10_000) == 0.1
    falling = [plan.learning_rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("last_step", [1, 7, 110, 999])
def test_warmup_and_decay_may_be_shares_of_the_run(last_step: int) -> None:
    shares = Config(lr=1.0, min_lr=0.1, warmup=0.1, decay=0.8, warmup_steps=5000, decay_steps=9)
    plan = Schedule(shares, last_step)
    warmup, decay = round(0.1 * last_step), round(0.8 * last_step)
    steps = Config(lr=1.0, min_lr=0.1, warmup_steps=warmup, decay_steps=max(1, decay))
    wanted = Schedule(steps, last_step)
    for step in range(last_step):
        assert plan.learning_rate(step) == wanted.learning_rate(step)


# -- minutes ----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let each step of training take so many seconds."""

    def each_step_takes(seconds: float) -> None:
        ticks = iter(range(10**9))
        monkeypatch.setattr(
            "smallgpt.training.trainer.time.perf_counter", lambda: seconds * next(ticks)
        )

    return each_step_takes


def test_max_minutes_chooses_the_steps_that_fit(
    tmp_path: Path, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {"warmup": 0.5, "decay": 1.0, "min_lr": 0.0, "lr": 0.01}
    write_run(tmp_path, max_steps=400, save_freq=1000, max_minutes=0.5, **shares)
    clock(1.0)
    # Three steps are skipped, ten seconds measured, and of the other 17 seconds 3 % are kept back.
    assert train(tmp_path).name == "cpt29"
    said = capsys.readouterr().err
    assert "a step takes 1.00 s, so training ends at step 29 instead of 400" in said
    assert "enough for 29 of 400 steps: for a better model give it about max_minutes=7\n" in said
    rates = [line["lr"] for line in metrics(tmp_path) if "lr" in line]
    whole = Schedule(load_config(tmp_path / "run.yaml"), 29)
    assert rates[13:] == [whole.learning_rate(step) for step in range(13, 29)]
    train(tmp_path, "resume_from=latest")
    assert "to train on, raise max_minutes, or type max_steps\n" in capsys.readouterr().err


def test_a_resumed_run_keeps_the_number_of_steps(
    tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, straight = tmp_path / "parts", tmp_path / "straight"
    for folder in (parts, straight):
        write_run(folder, max_steps=400, save_freq=1000, max_minutes=0.5, warmup=0.5, decay=1.0)
    clock(1.0)
    expected = train(straight)
    stopping_at(20, monkeypatch)
    with pytest.raises(SystemExit):
        train(parts)
    clock(5.0)
    resumed = train(parts, "resume_from=latest")
    assert resumed.name == expected.name == "cpt29"
    assert same_weights(resumed, expected)
    # Other minutes are measured anew: 29 steps took 65 seconds, 8 more 40, and 135 are left.
    longer = train(parts, "resume_from=latest", "max_minutes=4")
    assert longer.name == "cpt63"


def test_a_run_stopped_before_it_chose_measures_again(
    tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, max_steps=400, save_freq=1000, max_minutes=0.5)
    clock(1.0)
    stopping_at(5, monkeypatch)
    with pytest.raises(SystemExit):
        train(tmp_path)
    assert train(tmp_path, "resume_from=latest").name == "cpt29"


def test_all_processes_agree_on_the_number_of_steps(tmp_path: Path) -> None:
    """Each has a clock of its own: one's steps take a second, the other's two."""
    write_run(tmp_path, max_steps=400, save_freq=1000, max_minutes=0.5)
    (tmp_path / "program.py").write_text(
        "import itertools, os, runpy, sys\n"
        "from smallgpt.training import trainer\n"
        "ticks = itertools.count(step=1 + int(os.environ['RANK']))\n"
        "trainer.time.perf_counter = lambda: float(next(ticks))\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    done = forked(tmp_path, "run.yaml", processes=2, program=tmp_path / "program.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("so training ends at step 29 instead of 400") == 1
    assert [path.name for path in run_folder.checkpoints(tmp_path / "run")] == ["cpt29"]


def test_a_fast_machine_ends_at_max_steps(
    tmp_path: Path, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, max_steps=110, save_freq=1000, max_minutes=0.5)
    clock(0.001)
    assert train(tmp_path).name == "cpt110"
    said = capsys.readouterr().err
    assert "a step takes 0.00 s, so training ends at step 110\n" in said
    assert "for a better model" not in said


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def stopping_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM in the step of a number, once."""
    real = trainer.Trainer.launch

    def launch(self: trainer.Trainer) -> trainer.LaunchedStep:
        if self.completed + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(trainer.Trainer, "launch", real)
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "launch", launch)


# -- what is typed ----------------------------------------------------------------------------


def test_what_is_typed_replaces_what_the_file_says_of_the_same(tmp_path: Path) -> None:
    """A typed length replaces all lengths of the file, typed steps its shares, and the reverse."""
    file = {"max_epoch": 3, "min_steps": 300, "max_minutes": 5, "warmup": 0.1, "decay": 1.0}
    write_run(tmp_path, max_steps=1000, **file)

    def chosen(*typed: str) -> dict[str, Any]:
        settings = load_config(tmp_path / "run.yaml", typed)
        keys = ("max_steps", *file, "warmup_steps", "decay_steps")
        return {key: value for key in keys if (value := getattr(settings, key)) is not None}

    steps = {"warmup_steps": 3, "decay_steps": 12}
    in_file = {"max_steps": 1000, **file, **steps}
    shares = {"warmup": 0.1, "decay": 1.0}
    assert chosen() == in_file
    assert chosen("max_steps=7") == {"max_steps": 7, **shares, **steps}
    assert chosen("max_epoch=9") == {"max_epoch": 9, **shares, **steps}
    assert chosen("max_steps=7", "max_minutes=1") == {
        "max_steps": 7,
        "max_minutes": 1.0,
        **shares,
        **steps,
    }
    assert chosen("max_minutes=1") == in_file | {"max_minutes": 1.0}
    assert chosen("min_steps=5") == in_file | {"min_steps": 5}
    without_warmup = {key: value for key, value in in_file.items() if key != "warmup"}
    assert chosen("warmup_steps=0") == without_warmup | {"warmup_steps": 0}


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({"max_epoch": 3, "min_steps": 300}, 300),
        ({"max_epoch": 300, "min_steps": 300}, 600),
        ({"max_epoch": 3, "min_steps": 300, "max_steps": 50}, 50),
        ({"min_steps": 300, "max_steps": 500}, 500),
    ],
)
def test_min_steps_is_the_least_number_of_steps(changes: dict[str, Any], last: int) -> None:
    assert Config(**changes).last_step(steps_per_epoch=2.0) == last


# -- patience, and what is said at the end ----------------------------------------------------


def test_training_that_only_memorises_stops_and_the_best_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memorising = ["max_steps=400", "decay=1.0", "lr=0.02", "train_batch=32", "n_embd=64"]
    write_run(tmp_path, eval_freq=5, patience=4, keep_last=1, save_freq=1000)
    # Few and all different, so that learning them does not help with the others.
    dialogues = [
        f"问{a}{b}题\n{b}{a}是答案"
        for a, b in zip("天地玄黄宇宙洪荒", "日月盈昃辰宿列张", strict=True)
    ]
    (tmp_path / "text.txt").write_text("\n\n".join(dialogues), encoding="utf-8")
    newest = train(tmp_path, *memorising)
    said = capsys.readouterr().err
    kept = run_folder.checkpoints(tmp_path / "run")
    best = run_folder.best(kept)
    steps = [checkpoint.load(path).manifest["step"] for path in (best, newest)]
    assert kept == [best, newest]
    assert steps[1] == steps[0] + 4 * 5 < 400
    assert f"stopped at step {steps[1]}: 4 validations without a better one (patience)" in said
    assert f"the best by validation is {best.name}\n" in said
    assert f"python chat.py {best}\n" in said
    assert train(tmp_path, *memorising, "resume_from=latest") == newest
    assert "to train on, raise patience" in capsys.readouterr().err
    train(tmp_path, *memorising, f"max_steps={steps[0]}", "resume_from=latest")
    assert "to train on, raise max_steps" in capsys.readouterr().err


def test_a_short_warmup_and_a_model_that_guesses_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warnings(*changes: str) -> list[str]:
        train(tmp_path, *changes)
        return re.findall("^warning: .*", capsys.readouterr().err, re.MULTILINE)

    write_run(tmp_path, max_steps=8, decay_steps=100, save_freq=1000)
    assert warnings("warmup_steps=4", f"checkpoint_root={tmp_path / 'a'}") == []
    rising, blind = warnings("warmup_steps=50", "lr=5.0", "grad_clip=0")
    assert rising.startswith("warning: the learning rate was still rising for 50 of 8 steps: lower")
    assert re.match(
        r"warning: validation perplexity [\d,.e+]+, blind guessing has \d+: train", blind
    )
    # Where it was better before, training longer is no advice.
    root = f"checkpoint_root={tmp_path / 'b'}"
    _, blind = warnings("warmup_steps=50", "lr=50.0", "grad_clip=0", "eval_freq=1", root)
    assert "e+" in blind and len(blind) < 150  # a diverged perplexity has many digits
    assert blind.endswith(
        "lower lr, or take more dialogues, or a base_model trained on text like them"
    )
