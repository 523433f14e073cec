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
from pathlib import Path

import pytest
from processes import TRAIN, losses, same_weights, started, train, write_run

from smallgpt import checkpoint

KILLS = 30
SAVE_FREQ = 20
STEPS = 4000
SEED = 20261124
PLAN = {
    "n_embd": 64,
    "max_steps": STEPS,
    "decay_steps": STEPS,
    "save_freq": SAVE_FREQ,
    "eval_steps": 2,
    "keep_last": 2,
}


def last_step(root: Path) -> int:
    """The last step that metrics.jsonl tells of; a line cut short by the kill does not count."""
    file = root / "metrics.jsonl"
    steps = [0]
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            continue
    return max(steps)


def is_saving(root: Path) -> bool:
    return root.is_dir() and any(p.name.startswith(".writing-") for p in root.iterdir())


def kill_in(moment: str, run: subprocess.Popen[str], root: Path, chance: random.Random) -> str:
    """Kill the run at a random time of the kind wanted; say what it was doing."""
    before = last_step(root)
    if moment == "start-up":
        time.sleep(chance.uniform(0.1, 2.5))
    else:
        deadline = time.monotonic() + 60
        while last_step(root) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.7))
        while moment == "saving" and not is_saving(root) and time.monotonic() < deadline:
            pass
        time.sleep(chance.uniform(0, 0.004) if moment == "saving" else 0)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    if is_saving(root):
        return "saving"
    return "start-up" if last_step(root) == before else "stepping"


def check_what_is_left(root: Path) -> int:
    """Every checkpoint loads whole; the step of the newest, 0 without any."""
    found = checkpoint.checkpoints(root)
    for path in found:
        stored = checkpoint.load(path)
        assert stored.training_state()["completed"] == stored.step
    return checkpoint.load(found[-1]).step if found else 0


@pytest.mark.drill
@pytest.mark.timeout(1500)
def test_killed_thirty_times_it_is_the_run_that_was_not_killed(tmp_path: Path) -> None:
    straight = write_run(tmp_path / "straight", **PLAN)
    whole = train(straight)
    folder, chance = write_run(tmp_path / "killed", **PLAN), random.Random(SEED)
    root = folder / "run"
    hits: collections.Counter[str] = collections.Counter()
    most_lost = 0
    command: list[str | Path] = [sys.executable, TRAIN, "run.yaml", "resume_from=auto"]
    for number in range(KILLS):
        moment = ("saving", "stepping", "start-up")[number % 3]
        saved_before = check_what_is_left(root)
        with started(command, folder) as run:
            hit = kill_in(moment, run, root, chance)
        reached, saved = last_step(root), check_what_is_left(root)
        assert saved >= saved_before
        lost = max(0, reached - saved)
        assert lost <= SAVE_FREQ
        most_lost = max(most_lost, lost)
        hits[hit] += 1
        print(f"{number + 1:2}. {hit:9} at step {reached:4}, goes on from {saved:4}")
    last = train(folder, "resume_from=auto")
    assert same_weights(last, whole)
    assert losses(folder, "step") == losses(straight, "step")
    assert losses(folder) == losses(straight)
    assert not [p.name for p in root.iterdir() if p.name.startswith(".w") or "replaced" in p.name]
    print(f"{dict(hits)}; at most {most_lost} steps lost, saved every {SAVE_FREQ}; seed {SEED}")
    assert hits["saving"] >= 3
    assert hits["stepping"] >= 3
