"""`make sentiment-full`, the whole path to a classifier, on a tiny network and few reviews."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import SentimentConfig
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, python_environment
from tests.helpers.reviews import write_reviews

TINY = (
    "n_layer=1 n_head=2 n_embd=16 ngram_rows=64 ngram_embd=8 max_steps=2 eval_freq=1 "
    "device=cpu dtype=float32"
)


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    files = ("HOTELS=hotels.csv", "DOMAINS=others.csv", "CHATS=chats.txt", "SEEDS=1")
    return subprocess.run(
        ["make", "sentiment-full", *files, f"FULL_KEYS={TINY}"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={k: v for k, v in python_environment().items() if not k.startswith("MAKE")},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where `make sentiment-full` can run."""
    for name in ("Makefile", "train.py", "sentimentalTrain.py", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".run").touch()
    write_reviews(tmp_path / "hotels.csv", 80)
    write_reviews(tmp_path / "others.csv", 40)
    (tmp_path / "chats.txt").write_text(DIALOGUES, "utf-8")
    return tmp_path


def test_the_whole_path(folder: Path) -> None:
    done = make(folder)
    assert done.returncode == 0, done.stderr
    assert "| mask |" in done.stdout and "| baseline |" in done.stdout
    runs = folder / "checkpoints" / "sentiment_full"
    (domains,) = run_folder.checkpoints(runs / "domains")[-1:]
    (hotels,) = run_folder.checkpoints(runs / "hotels" / "mask" / "seed0")[-1:]
    assert checkpoint.load(domains, classifier=True).labels == ["0", "1"]
    config = checkpoint.load(hotels, classifier=True).config
    assert isinstance(config, SentimentConfig)
    assert config.base_model == "checkpoints/sentiment_full/domains"
    (final,) = run_folder.checkpoints(runs / "final")[-1:]
    assert checkpoint.load(final, classifier=True).step > 0


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(folder: Path) -> None:
    done, again = make(folder), make(folder)
    assert done.returncode == again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert "nothing to do" in again.stderr
