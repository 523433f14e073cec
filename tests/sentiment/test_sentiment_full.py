"""`make sentiment-full`, the whole path to a classifier, on a tiny network and few reviews."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import SentimentConfig
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, python_environment
from tests.helpers.reviews import write_reviews

TINY = (
    "n_layer=1 n_head=2 n_embd=16 ngram_rows=64 ngram_embd=8 max_steps=2 eval_freq=1 "
    "device=cpu dtype=float32"
)


def full_path(folder: Path) -> tuple[str, str]:
    """Do what `make sentiment-full` does, but Python in this process; its output and messages."""
    files = ("HOTELS=hotels.csv", "DOMAINS=others.csv", "CHATS=chats.txt", "SEEDS=1")
    listed = subprocess.run(
        ["make", "-n", "sentiment-full", *files, f"FULL_KEYS={TINY}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in python_environment().items() if not k.startswith("MAKE")},
    )
    out = err = ""
    for line in listed.stdout.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        if words[0] != ".venv/bin/python":
            subprocess.run(line, shell=True, cwd=folder, check=True)
            continue
        done = python_here(folder, *words[1:])
        assert done.exit_code == 0, done.output
        out += done.stdout
        err += done.stderr
    return out, err


def test_the_whole_path_and_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    for name in ("Makefile", "train.py", "sentimentalTrain.py", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".run"):
        (tmp_path / ".venv" / name).touch()
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    write_reviews(tmp_path / "hotels.csv", 80)
    write_reviews(tmp_path / "others.csv", 40)
    (tmp_path / "chats.txt").write_text(DIALOGUES, "utf-8")
    out, _ = full_path(tmp_path)
    assert "| mask |" in out and "| baseline |" in out
    runs = tmp_path / "checkpoints" / "sentiment_full"
    (domains,) = run_folder.checkpoints(runs / "domains")[-1:]
    (hotels,) = run_folder.checkpoints(runs / "hotels" / "mask" / "seed0")[-1:]
    assert checkpoint.load(domains, classifier=True).labels == ["0", "1"]
    config = checkpoint.load(hotels, classifier=True).config
    assert isinstance(config, SentimentConfig)
    assert config.base_model == "checkpoints/sentiment_full/domains"
    (final,) = run_folder.checkpoints(runs / "final")[-1:]
    assert checkpoint.load(final, classifier=True).step > 0
    again, messages = full_path(tmp_path)
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert "nothing to do" in messages
