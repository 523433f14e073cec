"""The classifier: its network, its rows, and how it learns."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smallgpt.config import POOLINGS, SentimentConfig
from smallgpt.data.reviews import Reviews, Split
from smallgpt.model.classifier import Classifier
from smallgpt.model.loss import IGNORED
from smallgpt.runtime import Runtime
from smallgpt.sentiment import examples as sentiment_examples
from smallgpt.sentiment.examples import Examples, rows_of
from smallgpt.sentiment.task import Part, ReviewTask, Verdicts, judge
from smallgpt.tokenizer.characters import PAD, UNK
from smallgpt.training.trainer import Trainer
from tests.helpers.commands import refusal
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


def test_the_largest_review_is_the_one_with_most_positions() -> None:
    assert examples().largest == 4 * 26  # 96 characters in rows of 24 and two marks
    assert examples(use_mask=False).largest == 4 * TINY.block_size
    assert examples(texts=["好", "好" * 7, "不"]).largest == 9


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("use_mask", [True, False])
def test_each_review_has_the_mean_logits_of_its_rows_alone(
    use_mask: bool, bias: bool, pooling: str
) -> None:
    model = classifier(bias=bias, pooling=pooling)
    verdicts = judge(model, examples(use_mask), CPU, positions=90)
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


def trainer(**changes: Any) -> Trainer:
    settings = {"seed": 0, "train_batch": 3, "lr": 0.01, "warmup_steps": 1, "decay_steps": 100}
    shape = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
    chosen: dict[str, Any] = {**settings, **shape, "vocab_size": len(TOKENIZER), **changes}
    config = SentimentConfig(**chosen)
    model = classifier(pooling=config.pooling, dropout=config.dropout).train()
    soft_labels = SOFT_LABELS if config.reference_weight else None
    reviews, everything = Reviews(TEXTS, LABELS, ["0", "1"]), np.arange(len(TEXTS))
    split = Split(everything, everything, everything)
    return Trainer(
        config, CPU, ReviewTask(config, CPU, model, TOKENIZER, reviews, split, soft_labels)
    )


def verdicts_of(run: Trainer) -> Verdicts:
    task: Any = run.task
    verdicts = judge(task.model, task.examples, CPU, positions=99)
    assert verdicts is not None
    return verdicts


@pytest.mark.parametrize("use_mask", [True, False])
def test_frozen_blocks_stay_and_the_head_learns(use_mask: bool) -> None:
    one = trainer(frozen=True, use_mask=use_mask)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    for _ in range(5):
        one.step()
    learning = ("transformer.h.1.", "transformer.ln_f.", "score.")
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(learning), name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("use_mask", [True, False])
def test_kept_states_change_nothing(tmp_path: Path, use_mask: bool, pooling: str) -> None:
    changes: dict[str, Any] = {"frozen": True, "use_mask": use_mask, "pooling": pooling}
    frozen, whole = (trainer(checkpoint_root=str(tmp_path), **changes) for _ in range(2))
    task: Any = frozen.task
    task.keep_states()
    for _ in range(6):
        assert frozen.step().loss == pytest.approx(whole.step().loss, rel=1e-4)
    kept = task.validate(lambda: False)
    torch.testing.assert_close(kept.logits, verdicts_of(whole).logits, atol=1e-3, rtol=1e-3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_waits_for_the_device_but_the_last_logits(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """On the meta device, where nothing has contents: who asks for them, and would wait for a GPU,
    gets an error."""
    monkeypatch.setattr(sentiment_examples, "_fits", lambda size, device: True)
    one = trainer(frozen=frozen, max_positions=80, reference_weight=0.5)
    task: Any = one.task
    task.runtime = Runtime(torch.device("meta"), torch.float32, "for tests")
    task.model = one.model.to("meta")
    if frozen:
        task.keep_states()
    for part in task.parts(0, 1)[0]:
        task.loss(task.model, task.on_device(part)).backward()
    asked = itertools.count()
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        task.validate(lambda: next(asked) < 0)
    assert next(asked) == len(task.validation.rows_in_order(80)) + 1


def test_states_that_stay_on_the_device_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, kept = (trainer(frozen=True, checkpoint_root=str(tmp_path)) for _ in range(2))
    tasks: list[Any] = [file.task, kept.task]
    tasks[0].keep_states()
    monkeypatch.setattr(sentiment_examples, "_fits", lambda size, device: True)
    monkeypatch.setattr(sentiment_examples, "_mapped_file", None)
    tasks[1].keep_states()
    for _ in range(3):
        assert file.step() == kept.step()


def test_frozen_states_need_room(tmp_path: Path) -> None:
    task: Any = trainer().task
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    said = refusal(lambda: task.examples.keep_states(task.model, CPU, in_the_way, 99))
    assert "set frozen: False" in said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lm_weight": 0.5},
        {"character_dropout": 0.3, "reference_weight": 0.5},
        {"accumulate": 7, "frozen": True},
    ],
)
def test_accumulation_gives_the_same_weights(changes: dict[str, Any]) -> None:
    """Also where parts have unequal numbers of reviews or characters, or no review at all."""
    whole, parts = (
        trainer(lr=1e-4, **({"accumulate": 3} | changes | alone))
        for alone in ({"accumulate": 1}, {})
    )
    for _ in range(3):
        assert whole.step().loss == pytest.approx(parts.step().loss, rel=1e-5)
    torch.testing.assert_close(
        whole.model.state_dict(), parts.model.state_dict(), atol=1e-4, rtol=1e-3
    )


def gradients(run: Trainer, parts: Sequence[Part]) -> Tensor:
    """Of the losses of some parts together, all in one vector."""
    run.model.zero_grad()
    for part in parts:
        run.task.loss(run.network, run.task.on_device(part)).backward()
    learnt = [p for p in run.model.parameters() if p.requires_grad]
    return torch.cat([p.grad.flatten() for p in learnt if p.grad is not None])


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_mask": False, "frozen": True},
        {"lm_weight": 0.5, "accumulate": 2},
        {"character_dropout": 0.3, "reference_weight": 0.5},
    ],
)
def test_max_positions_splits_a_step_and_changes_nothing(
    changes: dict[str, Any], processes: int
) -> None:
    one = trainer(**(changes | {"train_batch": len(TEXTS), "max_positions": 80}))
    whole = trainer(**(changes | {"train_batch": len(TEXTS), "accumulate": 1}))
    (everything,), tokens = whole.task.parts(0, 1)
    count = one.config.accumulate * processes
    parts, same = one.task.parts(0, count)
    assert same == tokens and len(parts) >= max(3, count)
    for part in parts:
        assert part.batch.ids.numel() <= 80 or len(part.batch.labels) == 1
    assert max(part.batch.ids.numel() for part in parts) > 80  # a review is not split
    reviews = np.concatenate([part.batch.reviews for part in parts])
    assert reviews.tolist() == everything.batch.reviews.tolist()
    own = [gradients(one, parts[rank::processes]) for rank in range(processes)]
    expected = gradients(whole, [everything])
    assert (sum(own) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_classifier_meets_reviews_of_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler's last stage, which takes long and knows no sizes."""
    compile_module = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_module, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, run = trainer(), trainer(compile=True)
    plain.step()
    try:
        run.step()
        sizes, drawn = set(), np.random.default_rng(0)
        for _ in range(24):
            reviews = drawn.choice(len(TEXTS), drawn.integers(1, len(TEXTS)), replace=False)
            losses = []
            for one in (run, plain):
                assert isinstance(one.task, ReviewTask)
                batch = one.task.examples.batch(reviews)
                part = one.task.on_device(Part(batch, len(reviews), 1))
                losses.append(one.task.loss(one.network, part))
                losses[-1].backward()
            sizes.add(tuple(batch.ids.shape))
            assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
        assert run.compiles and len(sizes) > 12
        for positions in (40, 80, 500):
            judged = []
            for one in (run, plain):
                assert isinstance(one.task, ReviewTask)
                judged.append(judge(one.task.model, one.task.validation, CPU, positions))
            assert judged[0] and judged[1]
            torch.testing.assert_close(judged[0].logits, judged[1].logits)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 12
    finally:
        torch._dynamo.reset()


def test_what_is_judged_at_a_time_has_so_many_positions() -> None:
    data = examples()
    batches = data.rows_in_order(70)
    assert sorted(np.concatenate(batches)) == list(range(len(data.lengths)))
    sizes = [data.gather(rows)[0].numel() for rows in batches]
    assert max(sizes) <= 70 and len(sizes) < len(data.lengths)
    assert [len(rows) for rows in data.rows_in_order(1)] == [1] * len(data.lengths)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.2},
        {"frozen": True},
        {"lm_weight": 0.5},
        {"character_dropout": 0.3, "reference_weight": 0.5},
    ],
)
def test_a_restored_state_goes_on_bitwise(changes: dict[str, Any]) -> None:
    one = trainer(**changes)
    for _ in range(4):
        one.step()
    other = trainer(**changes)
    other.model.load_state_dict(one.model.state_dict())
    other.load_state(copy.deepcopy(one.state()), {})
    for _ in range(4):
        assert one.step() == other.step()


def test_it_learns_with_muon_too() -> None:
    one = trainer(optimizer="muon", lr=0.003, decay_steps=200)
    first = one.step().loss
    for _ in range(99):
        one.step()
    verdicts = verdicts_of(one)
    assert verdicts.accuracy == 1.0 and verdicts.validation_loss < 0.1 * first


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_is_the_cross_entropy_of_each_review(weight: float) -> None:
    one = trainer(train_batch=len(TEXTS), reference_weight=weight)
    verdicts = verdicts_of(one)
    log_p = verdicts.logits.log_softmax(1).numpy()
    right = np.eye(2)[LABELS]
    assert verdicts.validation_loss == pytest.approx(-(right * log_p).sum(1).mean(), rel=1e-4)
    targets = (1 - weight) * right + weight * SOFT_LABELS
    assert one.step().loss == pytest.approx(-(targets * log_p).sum(1).mean(), rel=1e-4)


def test_gaps_are_in_the_text_alone() -> None:
    batch = examples().batch(np.arange(len(TEXTS)))
    shown = torch.stack([batch.with_gaps(0.3, (seed,)).ids for seed in range(200)])
    gap = (shown == UNK) & (batch.ids != UNK)
    assert torch.equal(shown[~gap], batch.ids.expand_as(shown)[~gap])
    place = torch.arange(batch.ids.shape[1])
    text = (place > 0) & (place < batch.ends[:, None])
    assert not gap[:, ~text].any()
    assert gap[:, text & (batch.ids != UNK)].float().mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("use_mask", [True, False])
def test_parts_of_a_batch_are_batches_of_their_reviews(use_mask: bool) -> None:
    data = examples(use_mask)
    batch = data.batch([5, 2, 0, 7, 4])
    for some in ([0, 1, 2], [3], [3, 4]):
        part, alone = batch.part(np.array(some)), data.batch(batch.reviews[some])
        for name in ("ids", "ends", "texts", "labels"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        assert np.array_equal(part.rows, alone.rows)
        assert np.array_equal(part.reviews, alone.reviews)
