"""Embeddings of pieces that learn from each other through their characters."""

import pytest
import torch
from torch import nn

from smallgpt.training.composed_embeddings import compose_embedding, share_updates

PIECES = ["学", "习", "学习", "好", "好好学习", "好好"]


def holds() -> torch.Tensor:
    """How often each piece holds each character, written out: (V, C)."""
    pieces = ["", "", "", *PIECES]
    return torch.tensor([[float(piece.count(c)) for c in "学习好"] for piece in pieces])


def test_a_step_is_that_of_rows_that_are_composed() -> None:
    torch.manual_seed(0)
    start, aim = torch.randn(9, 4), torch.randn(9, 4)
    embedding = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([embedding], lr=0.1, weight_decay=0.0)
    share_updates(optimizer, embedding, PIECES)
    own, of_characters = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(3, 4))
    independent = torch.optim.AdamW([own, of_characters], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        for some, rows in ((optimizer, embedding), (independent, own + holds() @ of_characters)):
            some.zero_grad()
            ((rows - aim) ** 4).sum().backward()
            some.step()
        torch.testing.assert_close(embedding, own + holds() @ of_characters, rtol=1e-4, atol=1e-5)


def test_what_an_optimizer_skips_changes_nothing() -> None:
    embedding = nn.Parameter(torch.randn(9, 4))
    optimizer = torch.optim.AdamW([embedding], lr=0.1, weight_decay=0.0, fused=True)
    share_updates(optimizer, embedding, PIECES)
    before = embedding.detach().clone()
    embedding.sum().backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(embedding, before)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    assert not torch.equal(embedding, before)


def test_an_overflow_is_counted_once() -> None:
    """In float16 a gradient that is not finite halves the scale of the loss, once."""
    embedding = nn.Parameter(torch.randn(9, 4))
    optimizer = torch.optim.AdamW([embedding], lr=0.1)
    share_updates(optimizer, embedding, PIECES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(embedding.sum() * factor).backward()
        scaler.unscale_(optimizer)
        optimizer.step()  # the trainer's: the hooks run in steps that are skipped, too
        scaler.update()
    assert scaler.get_scale() == 512.0


def test_fresh_rows_with_the_same_characters_are_alike() -> None:
    torch.manual_seed(0)
    fresh = torch.randn(11, 20_000) * 0.02
    rows = fresh.clone()
    compose_embedding(rows, PIECES)  # two rows behind the vocabulary
    assert torch.equal(rows[[0, 1, 2, 9, 10]], fresh[[0, 1, 2, 9, 10]])
    assert rows[3:9].std(1).tolist() == pytest.approx([0.02] * 6, rel=0.05)
    likeness = torch.corrcoef(rows[3:9])
    assert likeness[0, 2] == pytest.approx(0.49 / 2**0.5, abs=0.03)  # 学 and 学习
    assert likeness[0, 3] == pytest.approx(0, abs=0.03)  # 学 and 好
