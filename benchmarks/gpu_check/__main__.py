"""Check training, chat and fine-tuning on one NVIDIA card, in less than 9 minutes on an H100.

    python3 -m benchmarks.gpu_check
    python3 -m benchmarks.gpu_check --only train300M --only profile --json figures.json

It prints a table: check, what, measured, wanted, verdict. The exit code is 1 where a check of
correctness or of memory fails. Two things leave it at 0: a speed that misses its target, which is
marked, and a check that was not run or took too long, which is named at the end. Without a card it
says so and ends with 0. Memory is capped at 14.5 GB. Each check has a process and a temporary
folder of its own, so that none ends or poisons another; `--json` is rewritten after each. The
matrix product is always measured, as the utilisation is a share of it.

Beside this checkout it needs torch 2.11 or newer with CUDA (what needs a newer one is told and not
run), numpy, tokenizers, safetensors, typer, typing_extensions, tqdm, scikit-learn, scipy, PyYAML,
filelock, and pydantic with pydantic_core, annotated-types and typing-inspection. Where there is no
package index, carry wheels along:

    python3 -m pip install --no-index --no-deps --target /tmp/site *.whl
    PYTHONPATH=/tmp/site python3 -m benchmarks.gpu_check
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from benchmarks.gpu_check import report
from benchmarks.gpu_check.checks import CHECKS, Checker
from benchmarks.gpu_check.report import FAILED, NOT_RUN, Figures, Row, must, not_run
from benchmarks.gpu_check.setting import Setting, shipped
from benchmarks.measure import Contestant, benchmark_text
from smallgpt.cli.arguments import run_script
from smallgpt.runtime import choose_device
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    triton = "none"
    with suppress(metadata.PackageNotFoundError):
        triton = metadata.version("triton")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        card = "unknown: no nvidia-smi"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "triton": triton,
        "card, memory, driver": card.partition("\n")[0],
    }


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """For processes started within it: it is gone at the end, even if they are killed."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # stays for the others
    with (
        TemporaryDirectory(prefix="gpu_check-", ignore_cleanup_errors=True) as folder,
        patch.dict(os.environ, TMPDIR=folder, TORCHINDUCTOR_CACHE_DIR=cache),
    ):
        yield


def check(name: str, setting: Setting, seconds: float) -> tuple[Figures, list[Row]]:
    """Measure one and judge it; an error or a crash is a row that fails.

    Args:
        seconds: left for all checks.
    """
    needed = CHECKS[name].seconds
    if seconds < needed:
        return {}, [not_run(name, f"{max(0, seconds):.0f} s are left, it takes about {needed}")]
    most = min(3 * needed, seconds)
    try:
        with _own_temporary_folder(), Contestant(Checker, setting) as checker:
            figures = checker.call("measure", name, seconds=most)
        return figures, CHECKS[name].judge(figures)
    except TimeoutError:
        return {}, [not_run(name, f"not done in {most:.0f} s, it takes about {needed}")]
    except (UserError, RuntimeError) as error:
        note(str(error))
        problem = error.problem if isinstance(error, UserError) else str(error).splitlines()[-1]
        return {"error": str(error)}, [must(name, problem, "no error", False)]


def run(names: Sequence[str], setting: Setting, seconds: float, file: Path | None) -> bool:
    """Check one after the other, and print the table; whether none has failed."""
    began = time.monotonic()
    result: dict[str, Any] = {"versions": versions(), "checks": {}}
    for what, version in result["versions"].items():
        print(f"{what}: {version}", flush=True)
    print(report.line("check", "what", "measured", "wanted", "verdict"), flush=True)
    failed, missing = False, []
    for name in names:
        started = time.monotonic()
        note(f"{name}: about {CHECKS[name].seconds} s")
        figures, rows = check(name, setting, began + seconds - started)
        if name == "product":
            setting = replace(setting, peak=figures.get("flops_per_second", setting.peak))
        if any(row.verdict == NOT_RUN for row in rows):
            missing.append(name)
        for row in rows:
            failed |= row.verdict == FAILED
            print(report.line(name, *asdict(row).values()), flush=True)
        took = time.monotonic() - started
        all_rows = [asdict(row) for row in rows]
        result["checks"][name] = {"seconds": took, "rows": all_rows, "figures": figures}
        if file:
            report.write(file, result)
    named = f" ({', '.join(missing)})" if missing else ""
    print(f"not run: {counted(len(missing), 'check')}{named}")
    return not failed


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Check this: {', '.join(CHECKS)}.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Text of dialogues.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="For all checks together.")] = 9.0,
) -> None:
    """Print a table of what was checked on the NVIDIA card."""
    unknown = set(only or ()) - CHECKS.keys()
    if unknown:
        raise UserError(f"--only: {min(unknown)!r} is unknown", f"use one of {', '.join(CHECKS)}")
    if choose_device("cuda").type != "cuda":
        note("no NVIDIA card that torch can use is here: nothing was checked")
        return
    began = time.monotonic()
    setting = shipped(benchmark_text(data).resolve())
    names = [name for name in CHECKS if not only or name in only or name == "product"]
    if not run(names, setting, 60 * minutes - (time.monotonic() - began), json_file):
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
