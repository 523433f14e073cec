"""log p(reply | context), against a plain forward pass of each reply by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.model import scoring
from smallgpt.model.gpt import GPT
from smallgpt.model.scoring import log_probabilities
from tests.helpers.models import NGRAMS, SMALL, fresh

MODELS = {"plain": fresh(SMALL), "with n-grams": fresh(NGRAMS)}


def plainly(model: GPT, context: Sequence[int], reply: Sequence[int]) -> float:
    ids = [*context, *reply]
    with torch.no_grad():
        log_p = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return sum(log_p[at - 1, ids[at]].item() for at in range(len(context), len(ids)))


ids = st.integers(0, SMALL.vocab_size - 1)


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(ids, min_size=1, max_size=12),
    st.lists(st.lists(ids, min_size=1, max_size=13), max_size=7),
)
def test_each_reply_scores_as_by_itself(
    name: str, context: list[int], replies: list[list[int]]
) -> None:
    """Of any lengths, up to the last position that the model has."""
    model = MODELS[name]
    scored = log_probabilities(model, context, replies)
    assert scored.tolist() == pytest.approx([plainly(model, context, reply) for reply in replies])


@pytest.mark.parametrize("positions", [1, 20, 50])
def test_batches_of_any_size(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "POSITIONS", positions)
    model, context = MODELS["plain"], [1, 5, 7]
    replies = [list(range(1, length + 1)) for length in (9, 2, 1, 5, 5, 3, 9, 6)]
    scored = log_probabilities(model, context, replies)
    assert scored.tolist() == pytest.approx([plainly(model, context, reply) for reply in replies])


def test_under_autocast() -> None:
    model = fresh(SMALL).float()
    replies = [[3, 4, 5], [9], [2] * 8]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = log_probabilities(model, [1, 2, 3], replies)
    assert scored.dtype == torch.float32
    expected = [plainly(model, [1, 2, 3], reply) for reply in replies]
    assert scored.tolist() == pytest.approx(expected, rel=0.03)
