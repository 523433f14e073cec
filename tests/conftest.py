"""What several tests share: a tiny trained checkpoint, models with a script, commands."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import torch

from smallgpt.model import native
from smallgpt.utils.c_library import compiled
from tests.helpers.models import DIALOGUES, save_tiny
from tests.helpers.processes import Run, python_environment, write_run
from tests.helpers.reviews import classifier_config

# A shell that starts the tests in the background has Ctrl-C ignored, by our children as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same on every machine; `make gpu-check` is for a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# No timing decides a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# Checkpoints of untrained models: quickly made, and told apart by the seed of their weights.


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for checkpoints, written without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "checkpoints"


@pytest.fixture
def saved(root: Path) -> Path:
    """The checkpoint of `random_model(1)`."""
    return save_tiny(root, 1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All temporary files, of programs that tests start too, go to a folder that pytest removes."""
    multiprocessing.util.get_temp_dir()  # elsewhere: it is removed later than pytest's
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        compiled(native.SOURCE, native.PURPOSE)  # or the first program that chats would say so
        yield folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text.txt`, `run.yaml` and the run's `checkpoints/`: cpt60 and cpt120."""
    from smallgpt.config_file import load_config
    from smallgpt.training import pretrain

    folder = tmp_path_factory.mktemp("run")
    write_run(
        folder,
        data_path=str(folder / "text.txt"),
        checkpoint_root=str(folder / "checkpoints"),
        n_head=4,
        n_embd=32,
        max_steps=120,
        save_freq=60,
        train_batch=4,
        warmup_steps=10,
        decay_steps=120,
        max_new_tokens=12,
        temperature=0.0,
    )
    (folder / "text.txt").write_text(DIALOGUES, encoding="utf-8")
    pretrain.run(load_config(folder / "run.yaml"))
    return folder


@pytest.fixture(scope="session")
def trained(trained_run: Path) -> Path:
    """A trained checkpoint directory; not to be changed."""
    return trained_run / "checkpoints" / "cpt120"


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    """A trained checkpoint directory of this test's own, alone in its folder."""
    return Path(shutil.copytree(trained, tmp_path / "copy" / "cpt120"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python in a process of its own, in an empty folder, with our modules at hand.

    The result holds bytes: what a program writes is compared exactly.
    """

    def run(
        *arguments: str | Path, typed: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            input=typed,
            cwd=folder,
            env=python_environment() | dict(env or {}),
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="session", params=[True, False], ids=["mask", "no mask"])
def classified(
    request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The best checkpoint of a run; not to be changed."""
    from smallgpt.sentiment import recipe

    folder = tmp_path_factory.mktemp("sentiment")
    return recipe.run(classifier_config(folder, trained, use_mask=request.param))
