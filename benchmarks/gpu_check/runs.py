"""Checks of whole runs: resumed ones, several processes, a driver that does not fit; quality."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.gpu_check.report import Figures, Row, must
from benchmarks.gpu_check.setting import Setting, own_root
from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import Config
from smallgpt.config_file import config_to_yaml
from smallgpt.training import pretrain
from smallgpt.training.metrics import METRICS_FILE

ROOT = Path(__file__).resolve().parent.parent.parent
_SCRIPT = "import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
HIDDEN_CARD = (
    "import sys, torch; torch.cuda.is_available = lambda: False; "
    f"torch.cuda.device_count = lambda: 0; {_SCRIPT}"
)
"""Runs a script as with a driver that is too old for this torch."""
NOTED = (
    f"import os, pathlib, sys; pathlib.Path(sys.argv.pop(1), str(os.getpid())).touch(); {_SCRIPT}"
)
"""Runs a script, with a file in a folder whose name is the number of its process."""
MOST_STEPS = 2000
"""Where training ends that nobody has stopped."""


def recorded(folder: str | Path, name: str = "loss") -> list[Any]:
    """A figure of each line of a run's metrics.jsonl that has it."""
    file = Path(folder, METRICS_FILE)
    entries = map(json.loads, file.read_text("utf-8").splitlines() if file.exists() else ())
    return [entry[name] for entry in entries if name in entry]


# -- resuming ---------------------------------------------------------------------------------


def measure_resume(setting: Setting) -> Figures:
    """Losses of two straight runs, and of one that goes on from the middle of the first."""
    steps = setting.resumed_steps
    config = replace(setting.small, max_steps=steps, save_freq=steps // 2, eval_freq=0, keep_last=0)
    with own_root(config) as first, own_root(config) as other, own_root(config) as resumed:
        pretrain.run(first)
        pretrain.run(other)
        middle = Path(first.checkpoint_root, f"cpt{steps // 2}")
        pretrain.run(replace(resumed, resume_from=str(middle)))
        straight = [recorded(run.checkpoint_root)[steps // 2 :] for run in (first, other)]
        return {"straight": straight, "resumed": recorded(resumed.checkpoint_root)}


def judge_resume(figures: Figures) -> list[Row]:
    """A resumed run is the run that was not interrupted, but for what a GPU leaves to chance."""
    (one, other), resumed = figures["straight"], figures["resumed"]
    if len(resumed) != len(one):
        return [must("steps after resuming", str(len(resumed)), str(len(one)), False)]
    first = abs(resumed[0] - one[0])
    chance, deviation = _apart(one, other), _apart(one, resumed)
    most = max(3 * chance, 1e-3)
    wanted = f"at most {most:.2g}: 3 × that of straight ones"
    return [
        must("first loss, resumed", f"{first:.2g} apart", "at most 0.001", first <= 1e-3),
        must("largest deviation later", f"{deviation:.2g}", wanted, deviation <= most),
    ]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


# -- several processes ------------------------------------------------------------------------


def measure_torchrun(setting: Setting) -> Figures:
    """Losses of one process and of two that share the card; how these end after SIGTERM."""
    steps = setting.ddp_steps
    config = replace(setting.small, dropout=0.0, dtype="float32", max_steps=steps, eval_freq=0)
    with own_root(config) as alone, own_root(config) as together:
        pretrain.run(alone)
        longer = replace(together, max_steps=MOST_STEPS, save_freq=MOST_STEPS)
        code, said = _two_processes(longer, setting)
        saved = run_folder.checkpoints(Path(together.checkpoint_root))
        return {
            "one": recorded(alone.checkpoint_root)[:steps],
            "two": recorded(together.checkpoint_root)[:steps],
            "exit_code": code,
            "saved": [checkpoint.load(path).step for path in saved],
            "said": said[-2000:],
        }


def _two_processes(config: Config, setting: Setting) -> tuple[int | None, str]:
    """Run train.py in two processes, and send SIGTERM to one of them after some steps.

    Returns:
        its exit code, as torchrun tells it (None: not at all); and what was said.
    """
    with TemporaryDirectory() as folder:
        file, said, workers = (Path(folder, name) for name in ("run.yaml", "stderr", "workers"))
        file.write_text(config_to_yaml(config), encoding="utf-8")
        workers.mkdir()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node=2", "--no-python"]
        worker = [sys.executable, "-c", NOTED, str(workers), str(ROOT / "train.py"), str(file)]
        with (
            said.open("w") as stderr,
            subprocess.Popen(
                [*launcher, *worker],
                env=os.environ | {"SMALLGPT_SHARE_GPU": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            ) as torchrun,
        ):
            try:
                _wait_for_steps(torchrun, config.checkpoint_root, setting.ddp_steps)
                with suppress(StopIteration, ProcessLookupError):
                    os.kill(next(_numbers(workers)), signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    torchrun.wait(setting.patience)
            finally:
                # torchrun gives each worker a process group of its own.
                for group in (torchrun.pid, *_numbers(workers)):
                    with suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)
        text = said.read_text("utf-8", errors="replace")
    code = re.search(r"exitcode\s*: (-?\d+)", text)
    return int(code[1]) if code else None, text


def _numbers(folder: Path) -> Iterator[int]:
    """Those of the processes that were noted there."""
    return (int(file.name) for file in folder.iterdir())


def _wait_for_steps(process: subprocess.Popen[bytes], root: str, steps: int) -> None:
    """Until a run has taken so many steps, or has ended."""
    file = Path(root, METRICS_FILE)
    while process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= steps:
            return
        time.sleep(0.1)


def judge_torchrun(figures: Figures) -> list[Row]:
    """Two processes train as one does, and save when they are told to stop."""
    one, two, code = figures["one"], figures["two"], figures["exit_code"]
    if len(one) != len(two):
        said = figures["said"].strip().splitlines()[-1:] or ["nothing"]
        return [must("steps of two processes", f"{len(two)}: {said[0]}", str(len(one)), False)]
    apart = _apart(one, two)
    saved = bool(figures["saved"]) and max(figures["saved"]) >= len(one)
    return [
        must("losses of two processes and one", f"{apart:.2g} apart", "0.001", apart <= 1e-3),
        must("SIGTERM: saved", "yes" if saved else "no", "yes", saved),
        must("SIGTERM: exit code", str(code), "143", code == 143),
    ]


# -- a driver that does not fit ---------------------------------------------------------------


def measure_driver(setting: Setting) -> Figures:
    """What train.py says where there is a card that torch cannot use."""
    visible = {k: v for k, v in os.environ.items() if not k.endswith("_VISIBLE_DEVICES")}
    with own_root(replace(setting.small, device="cuda", max_steps=1)) as config:
        file = Path(config.checkpoint_root, "run.yaml")
        file.write_text(config_to_yaml(config), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", HIDDEN_CARD, str(ROOT / "train.py"), str(file)],
            env=visible,
            capture_output=True,
            text=True,
            check=False,
        )
    return {"exit_code": done.returncode, "said": done.stderr[-2000:]}


def judge_driver(figures: Figures) -> list[Row]:
    """Training is refused with one clear line, and does not go to the CPU."""
    code, said = figures["exit_code"], figures["said"]
    refused = code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    first = next((line for line in said.splitlines() if line.startswith("error: ")), "no error")
    return [
        must(
            "an unusable card is refused",
            f"exit code {code}, {first[:60]}",
            "2 and a clear error",
            refused and "device: " in first,
        )
    ]


# -- quality ----------------------------------------------------------------------------------


def measure_quality(setting: Setting) -> Figures:
    """A short training of 90M by the clock: validation loss, and replies to read."""
    config = replace(
        setting.medium,
        max_minutes=setting.quality_minutes,
        warmup=0.05,
        decay=1.0,
        eval_freq=0,
        eval_steps=100,
    )
    with own_root(config) as config, patch.object(pretrain, "SAMPLE_REPLIES", 5):
        pretrain.run(config)
        root = config.checkpoint_root
        (replies,) = recorded(root, "replies")
        return {
            "steps": recorded(root, "step")[-1],
            "validation_loss": recorded(root, "validation_loss")[-1],
            "replies": replies,
            "vocabulary": config.vocab_size,
        }


def judge_quality(figures: Figures) -> list[Row]:
    """It has learnt more than how frequent characters are."""
    loss, blind = figures["validation_loss"], math.log(figures["vocabulary"])
    rows = [
        must(
            f"validation loss, {figures['steps']:,} steps",
            f"{loss:.4f} nats",
            f"below {blind / 2:.2f}, half of blind guessing",
            loss < blind / 2,
        )
    ]
    return rows + [Row(f"reply to {prompt}", reply) for prompt, reply in figures["replies"]]
