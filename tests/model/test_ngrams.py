"""Embeddings of pairs and triples of characters, against a plain computation of the same thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config import Config
from smallgpt.model.gpt import GPT
from smallgpt.model.parameters import parameter_groups
from tests.helpers.commands import refusal
from tests.helpers.models import (
    NGRAMS,
    fresh,
    random_ids,
    random_model,
    save_with_pairs,
)


def signed(number: int) -> int:
    """As 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63


def plain_embedding(model: GPT, ids: list[int]) -> Tensor:
    """What the first block is given, position by position. (T, E)"""
    weights, config = model.state_dict(), model.config
    rows = []
    for place, token in enumerate(ids):
        x = weights["wte.weight"][token] + weights["wpe.weight"][place]
        number = token
        for back in range(1, config.ngram_order):
            earlier = ids[place - back] + 1 if place >= back else 0
            number = signed(number * 1_000_003 + earlier)
            row = (signed(number * 2_654_435_761) >> 20) % config.ngram_rows
            table = weights[f"ngrams.tables.{back - 1}.weight"]
            x = x + weights[f"ngrams.projections.{back - 1}.weight"] @ table[row]
        rows.append(x)
    return torch.stack(rows)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_embedding_equals_a_plain_computation(order: int) -> None:
    model = fresh(replace(NGRAMS, ngram_order=order))
    ids = random_ids(3, 20)
    for row, x in zip(ids.tolist(), model.embed(ids), strict=True):
        torch.testing.assert_close(x, plain_embedding(model, row))


def test_pairs_spread_over_the_rows() -> None:
    torch.manual_seed(0)
    model = GPT(replace(NGRAMS, ngram_order=2, ngram_rows=4096)).eval()
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    x = model.embed(pairs)[:, 1] - model.wte(pairs[:, 1]) - model.wpe.weight[1]
    # 1,600 pairs in 4,096 rows by chance: 1,326 rows are expected to be taken.
    assert len(torch.unique(x.round(decimals=6), dim=0)) > 1250


def test_some_are_left_out_in_training_only() -> None:
    model, ids = fresh(replace(NGRAMS, ngram_dropout=0.5)), random_ids(1, 24)
    torch.testing.assert_close(model.embed(ids)[0], plain_embedding(model, ids[0].tolist()))
    model.train()
    assert not torch.allclose(model.embed(ids), model.embed(ids))


def test_tables_do_not_decay() -> None:
    embeddings, in_layers, vectors = (
        {name for name, _ in group} for group in parameter_groups(GPT(NGRAMS))
    )
    assert {"ngrams.tables.0.weight", "ngrams.tables.1.weight"} <= vectors
    assert "ngrams.projections.0.weight" in in_layers
    assert embeddings == {"wte.weight", "wpe.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_and_what_others_say(tmp_path: Path, bias: bool) -> None:
    from transformers import AutoConfig

    model = random_model(0, ngram_order=3, ngram_rows=50, bias=bias)
    assert isinstance(model.config, Config)
    path = save_with_pairs(tmp_path, bias)
    again = checkpoint.load(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.weights[name], tensor), name
    ids = torch.tensor([[5, 9, 4, 1]])
    torch.testing.assert_close(again.model()(ids), model(ids))
    with pytest.raises(ValueError, match="smallgpt"):
        AutoConfig.from_pretrained(path)
    said = refusal(lambda: legacy_pth.write(again, tmp_path / "x.pth"))
    assert "ngram_order is 3" in said
