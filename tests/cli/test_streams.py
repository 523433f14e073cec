"""Standard streams that are closed, full, or lose their reader: no traceback, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import REPOSITORY, python_environment, write_run

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such shell here")


def redirected(
    redirections: str, *arguments: str | Path, typed: str = "", folder: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """Python, its streams redirected by a shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, *map(str, arguments)],
        cwd=folder,
        input=typed,
        env=python_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


CLOSED = "error: the output cannot be written: Bad file descriptor\n  -> standard output is closed"


@pytest.mark.parametrize(
    ("redirections", "code", "said", "notes"),
    [
        ("<&-", 0, "", ">>> \n"),
        (">&-", 2, "", f">>> {CLOSED}"),
        ("2>/dev/full", 0, "晚安，做个好梦\n", ""),
    ],
)
def test_chat(trained: Path, redirections: str, code: int, said: str, notes: str) -> None:
    done = redirected(redirections, REPOSITORY / "chat.py", trained, typed="晚安\n")
    assert (done.returncode, done.stdout) == (code, said)
    assert done.stderr.startswith(notes) and "Traceback" not in done.stderr
    assert notes or not done.stderr


def test_a_text_on_standard_output_is_nothing_but_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("早\n好\n", "utf-8")
    convert = ["-m", "smallgpt", "data", "convert", "x.txt", "--output", "/dev/stdout"]
    done = redirected("", *convert, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "早\n好\n")
    assert "dialogues: 1\n" in done.stderr


def test_training_goes_on_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    folder = write_run(tmp_path, max_steps=2, decay_steps=4)
    done = redirected("<&- >&- 2>/dev/full", REPOSITORY / "train.py", "run.yaml", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "run" / "cpt2" / "manifest.json").exists()


def test_results_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    done = redirected(">&-", "-m", "smallgpt", "config")
    assert done.returncode == 2
    assert done.stderr.startswith(CLOSED)
