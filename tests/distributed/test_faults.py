"""Faults of disks, schedulers and neighbours: each has its stated outcome."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint, run_folder
from tests.helpers.processes import (
    TRAIN,
    forked,
    losses,
    same_weights,
    started,
    torchrun_command,
    train,
    wait_for_steps,
    write_run,
)

LONG = ["max_steps=100000", "decay_steps=100000"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 12 steps with checkpoints at 4, 8 and 12."""
    folder = write_run(tmp_path_factory.mktemp("straight"))
    train(folder)
    return folder


# -- disks ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB, real enough to be full."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"needs root to mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (4096, "4.1 kB free, but a checkpoint takes 93 kB\n  -> make room"),
        # Enough for the weights and the state, but not for the small files.
        (100_000, "cpt8 cannot be written: No space left on device\n  -> make room"),
    ],
)
def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(
    small_disk: Path, straight: Path, left: int, said: str
) -> None:
    folder = write_run(small_disk)
    filler = small_disk / "filler"
    train(folder, "max_steps=4")
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - left)))
    full = forked(folder, "run.yaml", "resume_from=auto")
    assert full.returncode == 2
    assert said in full.stderr
    assert "Traceback" not in full.stderr
    assert [p.name for p in run_folder.checkpoints(folder / "run")] == ["cpt4"]
    assert not list((folder / "run").glob(".writing-*"))
    filler.unlink()
    assert same_weights(train(folder, "resume_from=auto", "keep_last=1"), straight / "run/cpt12")
    assert losses(folder) == losses(straight)


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    folder = write_run(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = forked(folder, "run.yaml")
    assert done.returncode == 2
    assert "checkpoint_root: cannot write to run: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


# -- damage -----------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "resume_from"),
    [
        ("model.safetensors", flip, "auto"),
        ("training_state.pt", cut, "latest"),
        ("manifest.json", cut, "auto"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    straight: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    resume_from: str,
) -> None:
    folder = write_run(tmp_path)
    train(folder, "max_steps=8")
    damage(folder / "run" / "cpt8" / name)
    done = forked(folder, "run.yaml", f"resume_from={resume_from}")
    assert done.returncode == 0
    assert f"run/cpt8/{name} is damaged" in done.stderr
    assert "cpt8 is kept as run/damaged-cpt8; going on from run/cpt4" in done.stderr
    names = sorted(p.name for p in (folder / "run").iterdir() if p.is_dir())
    assert names == ["cpt12", "cpt4", "cpt8", "damaged-cpt8"]
    assert same_weights(folder / "run/cpt12", straight / "run/cpt12")
    assert losses(folder) == losses(straight)


def test_where_all_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    train(folder, "max_steps=8")
    for path in run_folder.checkpoints(folder / "run"):
        flip(path / "model.safetensors")
    before = sorted(folder.rglob("*"))
    done = forked(folder, "run.yaml", "resume_from=auto")
    assert done.returncode == 2
    assert "error: no checkpoint in run is whole" in done.stderr
    assert sorted(folder.rglob("*")) == before


def write_program(folder: Path, first: str) -> Path:
    """train.py, but something else comes first."""
    program = write_run(folder) / "program.py"
    start = "from smallgpt.cli.main import train\nfrom smallgpt.cli.arguments import run_script\n"
    program.write_text(f"{textwrap.dedent(first)}\n{start}run_script(train)", encoding="utf-8")
    return program


def test_the_clock_jumping_backwards_changes_nothing(straight: Path, tmp_path: Path) -> None:
    clock = """
        import time
        now, calls = time.time, [0]
        def back():  # an hour for every time it is asked
            calls[0] += 1
            return now() - 3600 * calls[0]
        time.time = back
    """
    folder, program = tmp_path, write_program(tmp_path, clock)
    for step in ("max_steps=8", "max_steps=12"):
        done = forked(folder, "run.yaml", "resume_from=auto", step, program=program)
        assert done.returncode == 0, done.stderr
        for age, path in enumerate(run_folder.checkpoints(folder / "run")):
            os.utime(path, (1e9 - age, 1e9 - age))  # the newest looks oldest
    assert same_weights(folder / "run/cpt12", straight / "run/cpt12")
    seconds = losses(folder, "seconds")
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


# -- schedulers and neighbours ----------------------------------------------------------------


def failing_program(folder: Path, rank: int, failure: str) -> Path:
    """train.py, but one process fails after step 6."""
    failing = f"""
        import os, signal
        from smallgpt.utils.errors import UserError
        from smallgpt.training.trainer import Trainer
        step = Trainer.launch
        def failing(self):
            if self.completed == 6 and os.environ["RANK"] == "{rank}":
                {failure}
            return step(self)
        Trainer.launch = failing
    """
    return write_program(folder, failing)


NO_INK = 'raise UserError("no more ink", "buy some")', "error: no more ink\n  -> buy some"


@pytest.mark.parametrize(
    ("rank", "failure", "shown"),
    [
        (1, 'raise RuntimeError("a cosmic ray")', "RuntimeError: a cosmic ray"),
        (1, *NO_INK),
        (0, *NO_INK),
    ],
)
def test_a_process_that_fails_ends_all_and_its_error_stands_on_top(
    tmp_path: Path, rank: int, failure: str, shown: str
) -> None:
    program = failing_program(tmp_path, rank, failure)
    arguments = ["run.yaml", "ddp_timeout=1000"]  # it ends long before
    done = forked(tmp_path, *arguments, processes=2, program=program, torchrun=[])
    assert done.returncode != 0
    ours, _, summary = done.stderr.partition("ChildFailedError")
    assert shown in ours
    assert "lost contact" not in done.stderr
    cause = summary.partition("Root Cause")[2]
    assert f"rank      : {rank} " in cause
    assert shown.partition("\n")[0] in cause


def test_a_loss_that_is_infinite_in_one_process_changes_the_model_in_none(tmp_path: Path) -> None:
    """Its gradient is finite, so that the others do not notice by themselves."""
    infinite = """
        import os
        from smallgpt.training import trainer
        from smallgpt.training.pretrain import DialogueTask
        loss = DialogueTask.loss
        seen = []
        def infinite(self, network, part):
            seen.append(part)
            # The first is the one with which DDP finds its order.
            at_step_7 = len(seen) == 8 and os.environ["RANK"] == "1"
            return loss(self, network, part) + (float("inf") if at_step_7 else 0)
        DialogueTask.loss = infinite
    """
    broken, straight = tmp_path / "broken", write_run(tmp_path / "straight")
    program = write_program(broken, infinite)
    done = forked(broken, "run.yaml", processes=2, program=program, torchrun=[])
    assert done.returncode != 0
    assert "error: step 7: the loss is inf" in done.stderr
    assert "saved as it was before step 7" in done.stderr
    train(straight, "max_steps=6", processes=2)
    assert same_weights(broken / "run" / "cpt6", straight / "run" / "cpt6")


def test_what_all_processes_refuse_is_told_once(tmp_path: Path) -> None:
    refused = ["run.yaml", "train_batch=7"]
    done = forked(write_run(tmp_path), *refused, processes=2, torchrun=[])
    assert done.returncode == 1
    ours = done.stderr.partition("torch.distributed.elastic")[0].partition("ChildFailedError")[0]
    assert ours.count("error: train_batch: 7 is not divisible by 2 processes") == 1
    assert "set train_batch to 6 or 8" in ours
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_others_name_a_process_that_is_gone(tmp_path: Path) -> None:
    program = failing_program(tmp_path, 1, "os._exit(9)")
    arguments = ["run.yaml", "train_batch=9", "ddp_timeout=8"]
    done = forked(tmp_path, *arguments, program=program, processes=3)
    assert done.returncode == 9
    gone = r"error: lost contact: rank 1 on \S+ \(127\.0\.0\.1\) does not answer\n  -> .*\n.*auto"
    assert len(re.findall(gone, done.stderr)) == 2, done.stderr


def test_torchrun_restarts_a_killed_worker_and_the_run_ends_as_undisturbed(
    tmp_path: Path,
) -> None:
    first_time = 'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"'
    killed, straight = tmp_path / "killed", write_run(tmp_path / "straight")
    program = failing_program(killed, 1, f"{first_time} and os.kill(os.getpid(), signal.SIGKILL)")
    options = ["--max-restarts=3"]
    done = forked(killed, "run.yaml", processes=2, program=program, torchrun=options)
    assert done.returncode == 0, done.stderr
    for once in ("going on from run/cpt4", "done: the model is"):
        assert done.stderr.count(once) == 1, done.stderr
    assert same_weights(killed / "run" / "cpt12", train(straight, processes=2))
    assert losses(killed) == losses(straight)


def sigterm_to_torchrun(folder: Path) -> str:
    """What a run of two processes says that is ended through its torchrun."""
    with started(torchrun_command(2, "run.yaml", *LONG), write_run(folder)) as run:
        wait_for_steps(folder, run)
        os.kill(run.pid, signal.SIGTERM)
        _, said = run.communicate(timeout=100)
    assert run.returncode != 0
    assert "go on with: torchrun --nproc_per_node=2 " in said
    return said


def sigterm_to_one_process(folder: Path) -> str:
    """What they say where one of them alone gets it."""
    program = failing_program(folder, 1, "os.kill(os.getpid(), signal.SIGTERM)")
    done = forked(folder, "run.yaml", *LONG, processes=2, program=program)
    assert done.returncode == 143
    return done.stderr


@pytest.mark.parametrize("stopped", [sigterm_to_torchrun, sigterm_to_one_process])
def test_sigterm_makes_all_processes_save_and_end(
    tmp_path: Path, stopped: Callable[[Path], str]
) -> None:
    said = stopped(tmp_path)
    assert said.count("stopped at step") == 1, said
    step = checkpoint.load(run_folder.checkpoints(tmp_path / "run")[-1]).step
    further = [*LONG, f"max_steps={step + 2}"]
    resumed = train(tmp_path, *further, "resume_from=latest", processes=2)
    other = write_run(tmp_path / "other")
    assert same_weights(resumed, train(other, *further, processes=2))


def test_two_runs_in_one_folder_and_the_lock_of_a_dead_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    with started([sys.executable, TRAIN, "run.yaml", *LONG, "save_freq=10"], folder) as first:
        wait_for_steps(folder, first, 13)  # the checkpoint of step 10 is written
        second = forked(folder, "run.yaml", *LONG, "resume_from=auto")
        assert second.returncode == 2
        assert "error: checkpoint_root: another run is at work in run" in second.stderr
        assert first.poll() is None
        first.kill()
        first.wait()
    assert (folder / "run" / ".lock").exists()
    step = checkpoint.load(run_folder.checkpoints(folder / "run")[-1]).step
    assert train(folder, *LONG, f"max_steps={step + 1}", "resume_from=auto").exists()
