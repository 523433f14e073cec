"""The crash drill: training is killed at 30 random moments, and loses next to nothing."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint, run_folder
from tests.helpers.processes import (
    TRAIN,
    descendants,
    losses,
    same_weights,
    started,
    torchrun_command,
    train,
    write_run,
)

KILLS = 30
KILLS_OF_TWO = 4
SAVE_FREQ = 20
STEPS = 2000  # more than the kills leave time for
PLAN = {
    "n_embd": 64,
    "max_steps": STEPS,
    "decay_steps": STEPS,
    "save_freq": SAVE_FREQ,
    "eval_steps": 2,
    "keep_last": 2,
}
Process = subprocess.Popen[str]


@pytest.fixture
def chance() -> random.Random:
    """Moments are new in every drill; DRILL_SEED=… draws those of an earlier one."""
    seed = int(os.environ.get("DRILL_SEED") or random.randrange(10**6))
    print(f"\nDRILL_SEED={seed}")
    return random.Random(seed)


def last_step(root: Path) -> int:
    """The last step that metrics.jsonl tells of; a line cut short by the kill does not count."""
    file = root / "metrics.jsonl"
    tail = file.read_bytes()[-4000:] if file.exists() else b""
    for line in reversed(tail.splitlines()):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def changed(root: Path) -> int:
    """When metrics.jsonl was last written; a run does so as soon as its steps begin."""
    file = root / "metrics.jsonl"
    return file.stat().st_mtime_ns if file.exists() else 0


def work_folders(root: Path) -> set[Path]:
    """Where checkpoints are being written or deleted, or were when a run was killed."""
    return set(root.glob(".writing-*"))


def wait_for(condition: Callable[[], object], run: Process, pause: float = 0.005) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert run.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(pause)


def wait_for_a_moment(moment: str, run: Process, root: Path, chance: random.Random) -> None:
    if moment == "start-up":
        time.sleep(chance.uniform(0, 2.0))
        return
    before, leftovers = changed(root), work_folders(root)
    wait_for(lambda: changed(root) != before, run)
    target = last_step(root) + chance.randint(1, 3 * SAVE_FREQ)
    wait_for(lambda: last_step(root) >= target, run)
    if moment == "saving":
        wait_for(lambda: work_folders(root) - leftovers, run, pause=0)
    time.sleep(chance.uniform(0, 0.01))


def kill(moment: str, run: Process, root: Path, chance: random.Random) -> str:
    """Kill the run at a random time of the kind wanted; say what it was really doing."""
    before, leftovers = changed(root), work_folders(root)
    wait_for_a_moment(moment, run, root, chance)
    assert run.poll() is None, "the run ended before it was killed"
    run.kill()
    assert run.wait() == -signal.SIGKILL
    left = work_folders(root) - leftovers
    if any((folder / "new").exists() for folder in left):
        return "saving"
    if left:
        return "deleting an old one"
    return "start-up" if changed(root) == before else "stepping"


def step_saved(root: Path) -> int:
    """The step of the newest checkpoint, 0 without any; all of them load whole."""
    found = run_folder.checkpoints(root)
    for path in found:
        stored = checkpoint.load(path)
        assert stored.training_state()["completed"] == stored.step
        assert path.name == f"cpt{stored.step}"
    return stored.step if found else 0


def steps_lost(root: Path) -> int:
    """Steps that were taken and not saved: none from before the last time to save."""
    reached, saved = last_step(root), step_saved(root)
    assert saved <= reached
    # The line of a step is written before its checkpoint, that of the next one after it.
    assert saved >= (reached - 1) // SAVE_FREQ * SAVE_FREQ
    return reached - saved


def assert_as_undisturbed(killed: Path, straight: Path) -> None:
    """Not a bit, a line or a file is different."""
    roots = [folder / "run" for folder in (killed, straight)]
    assert same_weights(*(run_folder.checkpoints(root)[-1] for root in roots))
    steps = [losses(folder, "step") for folder in (killed, straight)]
    assert steps[0] == steps[1]
    for name in ("loss", "lr", "grad_norm", "validation_loss"):
        assert losses(killed, name) == losses(straight, name)
    assert len(losses(killed)) == max(steps[0])
    files = [sorted(p.name for p in root.iterdir()) for root in roots]
    assert files[0] == files[1]


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_killed_thirty_times_it_is_the_run_that_was_not_killed(
    tmp_path: Path, chance: random.Random
) -> None:
    folder = write_run(tmp_path / "killed", **PLAN)
    root = folder / "run"
    hits: collections.Counter[str] = collections.Counter()
    most_lost = 0
    command: list[str | Path] = [sys.executable, TRAIN, "run.yaml", "resume_from=auto"]
    for number in range(KILLS):
        moment = ("saving", "stepping", "start-up")[number % 3]
        saved_before = step_saved(root)
        with started(command, folder) as run:
            hit = kill(moment, run, root, chance)
        lost = steps_lost(root)
        assert step_saved(root) >= saved_before
        most_lost = max(most_lost, lost)
        hits[hit] += 1
        print(f"{number + 1:2}. at step {last_step(root):4}: {hit:20}{lost:3} steps lost")
    print(f"{dict(hits)}; at most {most_lost} steps lost, saved every {SAVE_FREQ}")
    train(folder, "resume_from=auto")
    straight = write_run(tmp_path / "straight", **PLAN)
    train(straight)
    assert_as_undisturbed(folder, straight)
    assert hits["saving"] >= 4
    assert hits["stepping"] >= 3
    assert hits["start-up"] >= 3


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_two_processes_killed_with_their_torchrun(tmp_path: Path, chance: random.Random) -> None:
    """As when the machine goes down."""
    plan = PLAN | {"max_steps": 400}
    folder = write_run(tmp_path / "killed", **plan)
    root = folder / "run"
    for _ in range(KILLS_OF_TWO):
        with started(torchrun_command(2, "run.yaml", "resume_from=auto"), folder) as run:
            wait_for_a_moment("stepping", run, root, chance)
            everyone = [run.pid, *descendants(run.pid)]
            chance.shuffle(everyone)
            for pid in everyone:
                os.kill(pid, signal.SIGKILL)
            assert run.wait() == -signal.SIGKILL
        print(f"both killed at step {last_step(root):3}: {steps_lost(root):2} steps lost")
    train(folder, "resume_from=auto", processes=2)
    straight = write_run(tmp_path / "straight", **plan)
    train(straight, processes=2)
    assert_as_undisturbed(folder, straight)
