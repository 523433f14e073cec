"""Damaged and forged checkpoints: refused in words, and nothing in them runs."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import load, save
from smallgpt.utils.errors import UserError
from tests.helpers.commands import Evil, refusal
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


def test_any_flipped_bit_is_found(saved: Path) -> None:
    for file in sorted(saved.iterdir()):
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 0x80  # leaves ASCII: no longer UTF-8
            file.write_bytes(damaged)
            # Before anything is made of the contents.
            assert f"{file} is damaged" in refusal(lambda: load(saved).training_state())
        file.write_bytes(whole)
    assert is_model(saved, 1)


def test_missing_and_truncated_files(root: Path, saved: Path) -> None:
    save_tiny(root, 3)
    for file in sorted(saved.iterdir()):
        whole = file.read_bytes()
        if file.name != "manifest.json":
            file.write_bytes(whole[: len(whole) // 2])
            message = refusal(lambda: load(saved).training_state())
            assert f"{file} is damaged" in message
            assert f"another one is {root / 'cpt3'}" in message
        file.unlink()
        assert file.name in refusal(lambda: load(saved).training_state())
        file.write_bytes(whole)
    assert is_model(saved, 1)
    (saved / "training_state.pt").unlink()
    stored = load(saved)
    assert same_weights(stored.weights, random_model(1, vocab_size=40))
    assert "can chat, not resume" in refusal(stored.training_state)


def test_a_disk_that_cannot_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hashlib.sha256", broken)
    assert "cannot be read: Input/output error" in refusal(lambda: load(saved))


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_forged_file_makes_load_stumble(saved: Path, data: st.DataObject) -> None:
    """Whatever stands in a file, with right checksums: it loads, or a UserError tells why not."""
    names = ["config.json", "config.yaml", "tokenizer.json", "model.safetensors", "manifest.json"]
    file = saved / data.draw(st.sampled_from(names))
    whole = file.read_bytes()
    start = data.draw(st.integers(0, min(len(whole), 3000)))
    length = data.draw(st.integers(0, 12))
    new = data.draw(
        st.binary(max_size=6)
        | st.sampled_from([b"null", b"[]", b"{}", b'"', b"1e999", b"-1", b": ", b"\n", b"\x80"])
    )
    try:
        file.write_bytes(whole[:start] + new + whole[start + length :])
        if file.name != "manifest.json":
            reseal(saved)
        try:
            load(saved)
        except UserError as error:
            assert str(saved) in str(error)
    finally:
        file.write_bytes(whole)
        reseal(saved)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"model_type": "llama"}', "a model of type 'llama', not gpt2"),
        ("config.json", "\udcff", "config.json cannot be read"),
        ("config.yaml", "\udcff", "config.yaml is not text in UTF-8"),
        ("tokenizer.json", "\udcff", "tokenizer.json"),
        ("config.json", "[" * 100_000, "config.json cannot be read"),
        ("config.yaml", "[" * 10_000, "config.yaml is not valid YAML"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json"),
        ("manifest.json", "[" * 100_000, "manifest.json is damaged"),
        ("config.json", "[]", "config.json cannot be read: it is not an object"),
        ("config.json", "{}", "a model of type None, not gpt2"),
        ("config.yaml", "[1, 2]", "config.yaml is not a config"),
        ("config.yaml", "n_layers: 2", "did you mean `n_layer`?"),
        ("tokenizer.json", "{}", "tokenizer.json is not a vocabulary"),
        ("manifest.json", "[]", "manifest.json is damaged"),
        ("manifest.json", '{"step": "1", "sha256": {}}', "manifest.json is damaged"),
        ("manifest.json", '{"step": 1, "sha256": {}}', "checksum is not the one it was saved with"),
        ("manifest.json", '{"step": 1, "sha256": {"model.safetensors": 5}}', "is damaged"),
    ],
)
def test_forged_descriptions(saved: Path, name: str, text: str, message: str) -> None:
    (saved / name).write_text(text, "utf-8", errors="surrogateescape")
    if name != "manifest.json":
        reseal(saved)
    assert message in refusal(lambda: load(saved))


FC, BIAS = "transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({FC: torch.ones(2, 2, 2)}), "c_fc.weight has shape (2, 2, 2)"),
        (lambda t: t.update(extra=torch.ones(1)), "unknown tensors (extra …)"),
        # Biases that this model does not have are not dropped in silence.
        (lambda t: t[BIAS].add_(1), f"unknown tensors ({BIAS} …)"),
    ],
)
def test_weights_of_another_architecture(
    root: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    weights = random_model(1, vocab_size=40, bias=False).state_dict()
    path = save(root, 1, replace(CONFIG, bias=False), vocabulary(), weights, STATE, {})
    file = path / huggingface.WEIGHTS_FILE
    tensors = {name: t.clone() for name, t in safetensors.torch.load_file(file).items()}
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    reseal(path)
    assert message in refusal(lambda: load(path))


# Nothing in a checkpoint runs.


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(saved: Path, tmp_path: Path, how: str) -> None:
    marker = tmp_path / "it ran"
    file = saved / "training_state.pt"
    state = {"step": 1, "order": Evil(marker)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=how == "torch.save")
    assert "is damaged: its checksum" in refusal(lambda: load(saved).training_state())
    reseal(saved)
    message = refusal(lambda: load(saved).training_state())
    assert "is refused: it is not a file of tensors and plain values only" in message
    assert "run a stranger's code" in message
    shutil.copy(file, saved / huggingface.WEIGHTS_FILE)
    reseal(saved)
    assert "model.safetensors is missing or damaged" in refusal(lambda: load(saved))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # the order would have been carried out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"text", [1, 2], "packed"])
def test_a_training_state_that_is_none(saved: Path, content: bytes | list[int] | str) -> None:
    file = saved / "training_state.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, list):
        torch.save(content, file)
    else:  # the same entries, compressed: such entries could unpack to any size
        shutil.unpack_archive(file, saved / "unpacked", "zip")
        shutil.make_archive(str(file), "zip", saved / "unpacked")
        file.with_name(f"{file.name}.zip").rename(file)
    reseal(saved)
    assert f"{file} is refused" in refusal(lambda: load(saved).training_state())
