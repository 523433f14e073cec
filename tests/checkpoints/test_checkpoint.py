"""Checkpoints: what is saved comes back, and no accident loses or forges one."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import load, save
from smallgpt.checkpoints.run_folder import best, checkpoints, prune
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal
from tests.helpers.models import (
    CONFIG,
    STATE,
    is_model,
    random_model,
    reseal,
    same_weights,
    save_tiny,
    vocabulary,
)
from tests.helpers.processes import Run


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(root: Path, bias: bool) -> None:
    config = replace(CONFIG, bias=bias, temperature=0.25, data_path=["甲.txt", "b.txt"])
    model = random_model(5, vocab_size=40, bias=bias)
    path = save(root, 12, config, vocabulary(), model.state_dict(), STATE, {"validation_loss": 1.5})
    stored = load(path)
    assert path == root / "cpt12"
    assert (stored.step, stored.config) == (12, config)
    assert stored.tokenizer.characters == vocabulary().characters
    assert stored.manifest["validation_loss"] == 1.5
    assert same_weights(stored.weights, model)
    state = stored.training_state()
    assert torch.equal(state.pop("moments")["wte"], STATE["moments"]["wte"])
    assert state == {"step": 7, "order": [1, 2]}
    ids = torch.arange(20).view(1, 20)
    assert torch.equal(stored.model()(ids), model(ids))
    assert not stored.model().training
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o644"}


def test_half_precision_is_stored_and_read_as_float32(root: Path) -> None:
    model = random_model(vocab_size=40).to(torch.bfloat16)
    path = save(root, 1, CONFIG, vocabulary(), model.state_dict(), STATE, {})
    assert {w.dtype for w in load(path).weights.values()} == {torch.float32}
    assert same_weights(load(path).weights, model.float())
    file = path / huggingface.WEIGHTS_FILE
    tensors = {name: t.half() for name, t in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    reseal(path)
    assert {w.dtype for w in load(path).weights.values()} == {torch.float32}


def test_training_a_loaded_model_leaves_the_files_alone(saved: Path) -> None:
    model = load(saved).model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert is_model(saved, 1)


# Saving is all or nothing.


def fail_at(patch: pytest.MonkeyPatch, failing: int) -> Iterator[int]:
    """Make the nth file operation of a save fail, as on a full disk; returns their counter."""
    calls = itertools.count(1)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **options)

        return call

    operations: list[tuple[Any, str]] = [
        (torch, "save"),
        (huggingface, "write_tensors"),
        (os, "open"),
        (os, "fsync"),
    ]
    operations += [(Path, name) for name in ("rename", "mkdir", "write_text")]
    for owner, name in operations:
        patch.setattr(owner, name, guarded(getattr(owner, name)))
    return calls


@pytest.mark.parametrize("step", [2, 1])  # a new one, and one that replaces cpt1
def test_a_fault_at_any_moment_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    old = contents(save_tiny(root, 1))
    target, late = root / f"cpt{step}", 0
    for failing in range(1, 100):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, failing)
            try:
                save_tiny(root, step, seed=50)
                break
            except UserError as error:
                message = str(error)
        assert f"cpt{step} cannot be written: No space left on device\n  -> make room" in message
        assert "is intact" in message
        assert sorted(p.name for p in root.iterdir() if p.name.startswith(".")) == []
        if target.exists() and contents(target) != old:
            # Two operations come later than the new checkpoint: the folder's open and fsync.
            assert is_model(target, 50)
            late += 1
            shutil.rmtree(root)
            assert contents(save_tiny(root, 1)) == old
        assert checkpoints(root) == [root / "cpt1"]
        assert contents(root / "cpt1") == old
    assert next(calls) > 26, "hardly anything was made to fail"
    assert late == 2
    assert is_model(target, 50)


def test_where_nothing_can_be_saved(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 5)
        message = refusal(lambda: save_tiny(root, 1))
    assert message.endswith("make room or choose another checkpoint_root")
    assert list(root.iterdir()) == []
    (root / "file").touch()
    assert "cannot be written: " in refusal(lambda: save_tiny(root / "file", 1))


# Each accident ends a process of its own: a kill, or a limit of the system on the size of files.
ACCIDENTS = """
import os, resource, signal
from pathlib import Path
from tests.helpers.models import save_tiny
from smallgpt.checkpoints import huggingface
from smallgpt.utils.errors import UserError

def half_written(tensors, file):
    Path(file).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

for root in ("kill", "0", "2000", "200000"):  # the weights fit into the last, not the state
    child = os.fork()
    if child == 0:
        if root == "kill":
            huggingface.write_tensors = half_written
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(root), int(root)))
        try:
            save_tiny(Path(root), 2, seed=50)
        except UserError as error:
            print(str(error).splitlines()[0], flush=True)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) == (root == "kill")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
def test_processes_that_die_while_saving(tmp_path: Path, run: Run) -> None:
    roots = [tmp_path / "elsewhere" / name for name in ("kill", "0", "2000", "200000")]
    for root in roots:
        save_tiny(root, 1)
    done = run("-c", ACCIDENTS)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == [
        f"checkpoint {root.name}/cpt2 cannot be written: File too large" for root in roots[1:]
    ]
    assert [len(list(root.glob(".writing-*"))) for root in roots] == [1, 0, 0, 0]
    for root in roots:
        assert checkpoints(root) == [root / "cpt1"]
        save_tiny(root, 3)  # puts in order what the dead process left
        assert sorted(p.name for p in root.iterdir()) == ["cpt1", "cpt3"]
        assert is_model(root / "cpt1", 1)


# Which checkpoints a run has, and which are kept.


def test_the_checkpoints_of_a_run_and_the_best(root: Path) -> None:
    losses = {2: 1.0, 10: 0.5, 9: 3.0, 100: 2.0}
    for step, loss in losses.items():
        save_tiny(root, step, validation_loss=loss)
    (root / "cpt200").mkdir()  # incomplete
    (root / "cpt300").touch()
    (root / "notes").mkdir()
    assert [p.name for p in checkpoints(root)] == ["cpt2", "cpt9", "cpt10", "cpt100"]
    assert best(checkpoints(root)) == root / "cpt10"
    save_tiny(root, 101, validation_loss=math.nan)
    save_tiny(root, 102)
    (root / "cpt10" / "manifest.json").write_text("{", encoding="utf-8")
    assert best(checkpoints(root)) == root / "cpt2"
    assert best([root / "cpt101", root / "cpt102"]) == root / "cpt102"


@pytest.mark.parametrize(
    ("keep_last", "left"),
    [(0, [1, 2, 3, 4, 5]), (1, [2, 5]), (3, [2, 3, 4, 5]), (5, [1, 2, 3, 4, 5])],
)
def test_prune_keeps_the_newest_and_the_best(root: Path, keep_last: int, left: list[int]) -> None:
    for step, loss in enumerate([5.0, 1.0, 4.0, 3.0, 2.0], 1):
        save_tiny(root, step, validation_loss=loss)
    prune(root, keep_last)
    assert [p.name for p in root.iterdir() if p.name[0] == "."] == []
    assert checkpoints(root) == [root / f"cpt{step}" for step in left]


def test_one_that_is_half_deleted_is_no_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save_tiny(root, step, validation_loss=float(-step))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune(root, 1)
    assert checkpoints(root) == [root / "cpt2", root / "cpt3"]
