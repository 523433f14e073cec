"""Runs of train.py in processes of their own: by torchrun, or forked, which is quicker."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from smallgpt.checkpoints import checkpoint, run_folder
from tests.helpers.models import DIALOGUES

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "train.py"
SMALL: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "tensorboard_path": "",
    "block_size": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "max_steps": 12,
    "save_freq": 4,
    "eval_freq": 0,
    "train_batch": 8,
    "test_batch": 2,
    "lr": 0.01,
    "warmup_steps": 3,
    "decay_steps": 12,
    "max_new_tokens": 4,
    "keep_last": 0,
    "ddp_timeout": 20,
}


def write_run(folder: Path, **changes: Any) -> Path:
    """`run.yaml` and `text.txt` in `folder`; checkpoints go to `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("\n".join([DIALOGUES] * 8), encoding="utf-8")
    settings = SMALL | {"data_path": "text.txt", "checkpoint_root": "run"} | changes
    lines = [f"{key}: {value}\n" for key, value in settings.items()]
    (folder / "run.yaml").write_text("".join(lines), encoding="utf-8")
    return folder


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A command with its own process group, which is gone at the end of the block."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=python_environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for child in descendants(process.pid):  # torchrun puts each worker into a group of its own
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children(pid: int) -> list[int]:
    """The processes that a process has started, by /proc; torchrun's are its workers."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def torchrun_command(
    processes: int, *arguments: str | Path, options: Sequence[str] = (), program: Path = TRAIN
) -> list[str | Path]:
    """torchrun of this environment; on one machine unless `options` say otherwise."""
    here = [] if any("nnodes" in o for o in options) else [f"--master_port={free_port()}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return [*launcher, *here, *options, program, *arguments]


def finished(
    command: Sequence[str | Path], folder: Path, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with started(command, folder, **variables) as process:
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def rank_variables(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes on one machine."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "httpx",
        "torch._dynamo",
        "smallgpt.cli.main",
        "smallgpt.training.pretrain",
        "smallgpt.server.run",
        __name__,
    ]
)


def forked(
    folder: Path,
    *arguments: str,
    processes: int = 1,
    program: Path = TRAIN,
    torchrun: Sequence[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run train.py to its end in processes forked from one that has imported torch.

    They are told who they are as torchrun tells them, or started by its agent where there are
    options for it; the output is that of all.
    """
    environments: list[dict[str, str]] = [{}]
    command = [str(program), *arguments]
    if torchrun is not None:
        launcher = torchrun_command(processes, *arguments, options=torchrun, program=program)
        command = list(map(str, launcher))[3:]
    elif processes > 1:
        environments = rank_variables(processes)
    main = _run_program if torchrun is None else _run_torchrun
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        output = [Path(place, name) for name in ("stdout", "stderr")]
        started = []
        for variables in environments:
            process = _FORKS.Process(
                target=_become, args=(main, command, folder, variables, output)
            )
            process.start()
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            process.join()
        codes = [process.exitcode or 0 for process in started]
        out, err = (file.read_text("utf-8") if file.exists() else "" for file in output)
    return subprocess.CompletedProcess(command, max(codes, key=abs), out, err)


@dataclass
class Forked:
    """A process that is forked, not started, and what it says."""

    process: BaseProcess
    out: Path
    err: Path

    def address(self) -> str:
        """That a server says when it answers."""
        deadline = time.monotonic() + 60
        while not (self.out.exists() and self.out.read_text("utf-8").endswith("\n")):
            assert self.process.is_alive() and time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.01)
        return self.out.read_text("utf-8").split()[-1]

    def exit_code(self) -> int | None:
        """When it has ended."""
        self.process.join(60)
        return self.process.exitcode

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)


@contextmanager
def running(folder: Path, main: Callable[..., None], *words: str) -> Iterator[Forked]:
    """`main(*words)`, forked from a process that has imported torch, until the end of the block."""
    output = [folder / "stdout", folder / "stderr"]
    for file in output:
        file.unlink(missing_ok=True)
    process = _FORKS.Process(target=_become, args=(main, words, folder, {}, output))
    process.start()
    try:
        yield Forked(process, *output)
    finally:
        process.kill()
        process.join()
        process.close()


def _become(
    main: Callable[..., None],
    command: Sequence[str],
    folder: Path,
    variables: dict[str, str],
    output: Sequence[Path],
) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), output, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    os.chdir(folder)
    os.environ.update(variables)
    torch.set_num_threads(1)
    main(*command)


def _run_program(*command: str) -> None:
    sys.argv = list(command)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _run_torchrun(*arguments: str) -> None:
    """torchrun, but its agent forks the processes that it starts."""
    from torch.distributed import run

    read_arguments = run.config_from_args

    def forking(parsed: argparse.Namespace) -> tuple[Any, Any, list[str]]:
        config, _, _ = read_arguments(parsed)
        config.start_method = "fork"
        return config, _run_program, [parsed.training_script, *parsed.training_script_args]

    run.config_from_args = forking  # type: ignore[assignment]
    run.main(list(arguments))


def train(folder: Path, *overrides: str, processes: int = 1) -> Path:
    """Train `run.yaml` to its end, in so many processes, and return the newest checkpoint."""
    done = forked(folder, "run.yaml", *overrides, processes=processes)
    assert done.returncode == 0, done.stderr
    return run_folder.checkpoints(folder / "run")[-1]


def losses(root: Path, name: str = "loss", folder: str = "run") -> list[float]:
    """A figure of each line of metrics.jsonl that has it, of the run in `folder`."""
    lines = (root / folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [entry[name] for entry in map(json.loads, lines) if name in entry]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    left, right = (checkpoint.load(path, classifier=None).weights for path in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int = 3) -> None:
    """Wait until a run has written down so many steps."""
    log = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= steps):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


Run = Callable[..., subprocess.CompletedProcess[bytes]]


def python_environment() -> dict[str, str]:
    """Environment variables under which Python finds `smallgpt` and this file."""
    paths = str(REPOSITORY)
    # PYTHONUNBUFFERED would hide a forgotten flush.
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


def run_on_a_full_disk(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python in a process of its own whose standard output is a full disk."""
    with Path("/dev/full").open("wb") as full:
        return subprocess.run(
            [sys.executable, *arguments],
            env=python_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
