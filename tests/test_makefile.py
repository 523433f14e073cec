"""What `make` installs before it runs something, with stand-ins for Python and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import REPOSITORY

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("make"), reason="needs make"
)
# As `python3 -m venv DIRECTORY` and as the Python of that environment; it logs what pip is told.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$*" >> pip.log ;;
    "-m benchmarks"* | "-m tools"*) echo "$0 $*" ;;
    "-m smallgpt") echo "$*" >> smallgpt.log ;;
    "-c import sys, torch"*) exit "${NO_CARD:-0}" ;;
esac
"""


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it in `folder`, with the stand-in."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(REPOSITORY / name, folder)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "TORCH"))}
    return subprocess.run(
        ["make", f"PYTHON={python}", *arguments],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )


def install(folder: Path, *arguments: str) -> tuple[list[str], str]:
    """What pip was told, and what the user read."""
    done = make(folder, ".venv/.run", *arguments)
    assert done.stdout == ""
    return (folder / "pip.log").read_text().splitlines(), done.stderr


def test_the_requirements_file_alone_by_default(tmp_path: Path) -> None:
    told, said = install(tmp_path)
    assert [line.endswith(" -r requirements.txt") for line in told] == [True]
    assert "index-url" not in told[0]
    assert "GB to download" in said
    assert ("TORCH=cpu" in said) == (sys.platform == "linux")


def test_pytorchs_cpu_build_comes_before_the_rest(tmp_path: Path) -> None:
    told, said = install(tmp_path, "TORCH=cpu")
    wanted = "--no-deps --index-url https://download.pytorch.org/whl/cpu torch=="
    assert [wanted in line for line in told] == [True, False]
    assert told[1].endswith(" -r requirements.txt")
    assert "0.3 GB" in said


def test_gpu_check_installs_nothing_where_python_has_a_card(tmp_path: Path) -> None:
    done = make(tmp_path, "gpu-check", "OPTIONS=--only product")
    assert done.stdout == f"{tmp_path / 'python'} -m benchmarks.gpu_check --only product\n"
    assert not (tmp_path / "pip.log").exists()


def test_gpu_check_without_a_card_takes_the_environment(tmp_path: Path) -> None:
    done = make(tmp_path, "gpu-check", NO_CARD="1")
    assert done.stdout == ".venv/bin/python -m benchmarks.gpu_check\n"
    assert (tmp_path / "pip.log").exists()


def test_own_bot_needs_gguf_but_nothing_else_of_developers(tmp_path: Path) -> None:
    done = make(tmp_path, "own-bot", "OWN_BOT_KEYS=max_steps=2 lr=0.1")
    assert done.stdout == ".venv/bin/python -m tools.own_bot max_steps=2 lr=0.1\n"
    told = (tmp_path / "pip.log").read_text().splitlines()
    assert [line.split(" -q ")[1].split()[-1][:6] for line in told] == ["requir", "gguf=="]


def test_box_splits_again_where_it_was_stopped(tmp_path: Path) -> None:
    parts = tmp_path / "checkpoints" / "box" / "smilechat"
    parts.mkdir(parents=True)  # the first that a split makes
    assert make(tmp_path, "box").returncode == 0
    (parts / "train.txt").touch()
    assert make(tmp_path, "box").returncode == 0
    ran = [line.split()[2:4] for line in (tmp_path / "smallgpt.log").read_text().splitlines()]
    assert [words for words in ran if words[0] == "data"] == [
        *(["data", name] for name in ("split", "convert", "smalltalk", "convert", "smalltalk"))
    ]


def test_learn_without_feedback_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make(tmp_path, "learn", "FEEDBACK=marked.jsonl", "BASE=checkpoints/demo")
    assert failed.value.returncode == 2
    wanted = ".venv/bin/python -m smallgpt serve checkpoints/demo --feedback marked.jsonl"
    assert f"there is no marked.jsonl: run '{wanted}'" in failed.value.stderr
    assert not (tmp_path / "smallgpt.log").exists()
