"""The classifier: its network, its rows, and its training step."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smallgpt import runtime
from smallgpt.config import POOLINGS, SentimentConfig
from smallgpt.model.classifier import Classifier, mean_by_text
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime
from smallgpt.sentiment.examples import Examples, rows_of
from smallgpt.sentiment.trainer import ClassifierTrainer, FrozenStates, judge
from smallgpt.tokenizer.characters import PAD, UNK
from tests.helpers.models import TINY, random_model, vocabulary

TEXTS = ["好", "不错呀" * 4, "我的天气不好吗？" * 12, "早上ab", "", "晚安" * 15, "好" * 30, "é"]
LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1])
TOKENIZER = vocabulary().with_marks()
SOFT_LABELS = np.linspace([0.1, 0.9], [0.9, 0.1], len(TEXTS), dtype=np.float32)
CPU = Runtime(torch.device("cpu"), torch.float32, "for tests")


def examples(use_mask: bool = True, texts: list[str] = TEXTS) -> Examples:
    return Examples(texts, LABELS[: len(texts)], TOKENIZER, TINY.block_size, use_mask)


def classifier(seed: int = 0, pooling: str = "last", **changes: Any) -> Classifier:
    config = replace(TINY, vocab_size=len(TOKENIZER), **changes)
    model = Classifier(config, 2, pooling).eval()
    model.transformer = random_model(seed, vocab_size=len(TOKENIZER), **changes)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight)
    return model


def plain_logits(model: Classifier, ids: list[int], end: int) -> Tensor:
    """One row by itself: the whole last block, then the state at one position, and the mean."""
    gpt = model.transformer
    x = gpt.wte(torch.tensor([ids])) + gpt.wpe(torch.arange(len(ids)))
    for block in gpt.h:
        x = block(x)
    x = gpt.ln_f(x)[0]
    return model.score(torch.cat([x[end], x[: end + 1].mean(0)]) if model.with_mean else x[end])


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("use_mask", [True, False])
def test_each_review_has_the_mean_logits_of_its_rows_alone(
    use_mask: bool, bias: bool, pooling: str
) -> None:
    model = classifier(bias=bias, pooling=pooling)
    verdicts = judge(model, examples(use_mask), CPU, batch_size=3)
    assert verdicts is not None
    for text, logits in zip(TEXTS, verdicts.logits, strict=True):
        rows = rows_of(TOKENIZER.encode(text), TOKENIZER.start, TINY.block_size)
        alone = []
        for row in rows:
            padded = row if use_mask else row + [PAD] * (TINY.block_size - len(row))
            alone.append(plain_logits(model, padded, len(padded) - 1))
        torch.testing.assert_close(logits, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_language_model_loss_is_that_of_the_characters(pooling: str) -> None:
    model, data = classifier(pooling=pooling), examples()
    batch = data.batch(range(len(TEXTS)))
    logits, loss = model(batch.ids, batch.ends, batch.targets())
    torch.testing.assert_close(logits, model(batch.ids, batch.ends), atol=1e-5, rtol=1e-4)
    expected, characters = 0.0, 0
    for text in TEXTS:
        for row in rows_of(TOKENIZER.encode(text), TOKENIZER.start, TINY.block_size):
            log_p = model.transformer(torch.tensor([row]))[0].log_softmax(-1)
            expected -= sum(float(log_p[i, row[i + 1]]) for i in range(len(row) - 2))
            characters += len(row) - 2
    assert int((batch.targets() != IGNORED).sum()) == characters
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@given(st.lists(st.integers(3, 20), max_size=200), st.integers(8, 40))
def test_pieces_are_the_text_and_as_equal_as_can_be(ids: list[int], block_size: int) -> None:
    rows = rows_of(ids, 90, block_size)
    assert all(row[0] == 90 and row[-1] == 91 and len(row) <= block_size for row in rows)
    assert [i for row in rows for i in row[1:-1]] == ids
    assert len(rows) == max(1, -(-len(ids) // (block_size - 2)))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_an_epoch_has_every_review_once_in_batches_of_like_length() -> None:
    texts = ["好" * (n % 25) for n in range(400)]
    data = Examples(texts, np.zeros(400, np.int64), TOKENIZER, 32, True)
    batches = data.epoch(8, (1, 2))
    assert sorted(np.concatenate(batches)) == list(range(400))
    assert [len(batch) for batch in batches] == [8] * 50
    computed = sum(data.batch(batch).ids.numel() for batch in batches)
    assert computed < 1.1 * data.lengths.sum()
    again, other = data.epoch(8, (1, 2)), data.epoch(8, (1, 3))
    assert all(map(np.array_equal, batches, again))
    assert not all(map(np.array_equal, batches, other))


def trainer(tmp_path: Path, seed: int = 0, **changes: Any) -> ClassifierTrainer:
    settings = {"train_batch": 3, "lr": 0.01, "warmup_steps": 1, "decay_steps": 100, "seed": seed}
    shape = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
    chosen: dict[str, Any] = {**settings, **shape, "vocab_size": len(TOKENIZER), **changes}
    config = SentimentConfig(**chosen)
    model = classifier(pooling=config.pooling, dropout=config.dropout).train()
    soft_labels = SOFT_LABELS if config.reference_weight else None
    return ClassifierTrainer(config, CPU, model, examples(config.use_mask), tmp_path, soft_labels)


@pytest.mark.parametrize("use_mask", [True, False])
def test_frozen_blocks_stay_and_the_head_learns(tmp_path: Path, use_mask: bool) -> None:
    one = trainer(tmp_path, frozen=True, use_mask=use_mask)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    for _ in range(5):
        one.step()
    learning = ("transformer.h.1.", "transformer.ln_f.", "score.")
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(learning), name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("use_mask", [True, False])
def test_kept_states_change_nothing(tmp_path: Path, use_mask: bool, pooling: str) -> None:
    frozen = trainer(tmp_path, frozen=True, use_mask=use_mask, pooling=pooling)
    whole = trainer(tmp_path, frozen=True, use_mask=use_mask, pooling=pooling)
    whole.frozen = None
    for _ in range(6):
        assert frozen.step().loss == pytest.approx(whole.step().loss, rel=1e-4)
    states = FrozenStates(frozen.model, frozen.examples, CPU, tmp_path)
    kept = judge(frozen.model, frozen.examples, CPU, 2, states)
    computed = judge(whole.model, whole.examples, CPU, 5)
    assert kept and computed
    torch.testing.assert_close(kept.logits, computed.logits, atol=1e-3, rtol=1e-3)
    assert not list(tmp_path.iterdir())


def test_frozen_states_need_room(tmp_path: Path) -> None:
    from tests.helpers.commands import refusal

    one = trainer(tmp_path)
    gone = tmp_path / "gone"
    assert "set frozen: False" in refusal(lambda: FrozenStates(one.model, one.examples, CPU, gone))


def test_accumulation_gives_the_same_weights(tmp_path: Path) -> None:
    whole, parts = (trainer(tmp_path, lr=1e-4, accumulate=n) for n in (1, 3))
    for _ in range(3):
        assert whole.step().loss == pytest.approx(parts.step().loss, rel=1e-5)
    torch.testing.assert_close(
        whole.model.state_dict(), parts.model.state_dict(), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.2},
        {"frozen": True},
        {"lm_weight": 0.5},
        {"character_dropout": 0.3, "reference_weight": 0.5},
    ],
)
def test_a_restored_state_goes_on_bitwise(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = trainer(tmp_path, **changes)
    for _ in range(4):
        one.step()
    other = trainer(tmp_path, **changes)
    other.model.load_state_dict(one.model.state_dict())
    other.load_state(copy.deepcopy(one.state()))
    for _ in range(4):
        assert one.step() == other.step()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(tmp_path: Path, optimizer: str) -> None:
    one = trainer(tmp_path, optimizer=optimizer, lr=0.003, decay_steps=200)
    first = one.step().loss
    for _ in range(199):
        one.step()
    verdicts = judge(one.model, one.examples, CPU, 8)
    assert verdicts and verdicts.accuracy == 1.0 and verdicts.loss < 0.1 * first


def test_logits_of_pieces_are_averaged() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    means = mean_by_text(logits, torch.tensor([0, 0, 1]), 2)
    assert means.tolist() == [[2.0, 1.0], [5.0, 5.0]]


def test_loss_is_the_cross_entropy_of_each_review(tmp_path: Path) -> None:
    one = trainer(tmp_path, train_batch=len(TEXTS))
    verdicts = judge(one.model, one.examples, runtime.Runtime(CPU.device, CPU.dtype, ""), 4)
    assert verdicts and one.step().loss == pytest.approx(verdicts.loss, rel=1e-4)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_loss_against_the_reference_is_taken_for_each_review(
    tmp_path: Path, weight: float
) -> None:
    one = trainer(tmp_path, train_batch=len(TEXTS), reference_weight=weight)
    verdicts = judge(one.model, one.examples, CPU, 4)
    assert verdicts is not None
    log_p = verdicts.logits.log_softmax(1).numpy()
    targets = (1 - weight) * np.eye(2)[LABELS] + weight * SOFT_LABELS
    assert one.step().loss == pytest.approx(-(targets * log_p).sum(1).mean(), rel=1e-4)


def test_gaps_are_in_the_text_alone(tmp_path: Path) -> None:
    one = trainer(tmp_path, character_dropout=0.3)
    batch = one.examples.batch(np.arange(len(TEXTS)))
    torch.manual_seed(0)
    shown = torch.stack([one._with_gaps(batch) for _ in range(200)])
    gap = (shown == UNK) & (batch.ids != UNK)
    assert torch.equal(shown[~gap], batch.ids.expand_as(shown)[~gap])
    place = torch.arange(batch.ids.shape[1])
    text = (place > 0) & (place < batch.ends[:, None])
    assert not gap[:, ~text].any()
    assert gap[:, text & (batch.ids != UNK)].float().mean() == pytest.approx(0.3, abs=0.01)
