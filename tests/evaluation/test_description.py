"""What `inspect` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint
from smallgpt.evaluation.description import describe_checkpoint
from smallgpt.utils.errors import UserError
from smallgpt.utils.words import size


def test_describe(trained: Path, trained_copy: Path) -> None:
    said = describe_checkpoint(trained)
    stored = checkpoint.load(trained)
    total = sum(p.numel() for p in stored.model().parameters()) - 32 * 32
    assert said.startswith(f"{trained}: whole, all checksums right\n  step: 120\n")
    assert f"parameters: {total:,} (and 1,024 for positions)" in said
    assert "2 layers, 4 heads, 32 wide, context 32" in said
    loss = stored.manifest["validation_loss"]
    assert f"validation_loss: {loss:.4g}\n" in said and f"{loss:.5g}" not in said
    assert f"model.safetensors: {size((trained / 'model.safetensors').stat().st_size)}\n" in said
    assert "".join(stored.tokenizer.characters[:20]) in said

    state = trained_copy / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"training_state\.pt is damaged"):
        describe_checkpoint(trained_copy)
