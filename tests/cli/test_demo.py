"""`make demo` on a fresh clone, as a newcomer types it: minutes, so `make test-slow` runs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PYTHONPATH"))},
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "small-gpt"
    done = shell(f"git clone -q {REPOSITORY} {folder}", REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


def test_demo_from_nothing_to_replies(clone: Path) -> None:
    done = shell("printf '早上好呀\\n你叫什么名字\\nexit\\n' | make -s demo", clone)
    assert done.returncode == 0, done.stderr
    replies = done.stdout.splitlines()
    assert len(replies) == 2
    assert all(replies)
    metrics = (clone / "checkpoints" / "demo" / "metrics.jsonl").read_bytes()
    again = shell("echo 晚安 | make demo", clone)
    assert len(again.stdout.splitlines()) == 1
    assert (clone / "checkpoints" / "demo" / "metrics.jsonl").read_bytes() == metrics  # not again


def test_demo_model_passes_its_examination(clone: Path) -> None:
    """It takes all its steps: how many of them fit into five minutes is up to the machine."""
    run = "config/demo.yaml max_steps=1200 checkpoint_root=whole"
    trained = shell(f".venv/bin/python train.py {run}", clone)
    assert trained.returncode == 0, trained.stderr
    talk = f"printf '早上好呀\\n你叫什么名字\\n' | .venv/bin/python chat.py {run}"
    good_morning, name = shell(talk, clone).stdout.splitlines()
    assert "好" in good_morning or "早" in good_morning
    assert "小积" in name
    done = shell(".venv/bin/python -m smallgpt evaluate whole --smalltalk", clone)
    share = re.search(r"([\d.]+) %  fitting in all", done.stdout)
    assert share, done.stderr
    assert float(share[1]) >= 90


def test_package_installs(clone: Path, tmp_path: Path) -> None:
    installed = shell(".venv/bin/python -m pip install -q --no-deps .", clone)
    assert installed.returncode == 0, installed.stderr
    smallgpt = clone / ".venv" / "bin" / "smallgpt"
    done = shell(f"{smallgpt} data smalltalk --dialogues 2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n\n")) == 2
    # The model is in the package.
    chat = shell(f"printf '早上好\\nexit\\n' | {smallgpt} chat", tmp_path)
    assert chat.returncode == 0 and len(chat.stdout.splitlines()) == 1, chat.stderr
    # The configs are in the package, and the advice names commands that are there.
    assert "-m smallgpt data smalltalk --output" in shell(f"{smallgpt} train demo", tmp_path).stderr
    assert "-m smallgpt train demo" in shell(f"{smallgpt} chat demo", tmp_path).stderr
    wrong = shell(f"{smallgpt} sentiment train demo", tmp_path).stderr
    assert "type: python -m smallgpt train demo" in wrong
