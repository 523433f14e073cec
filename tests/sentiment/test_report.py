"""The figures of a test, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from smallgpt.sentiment.ablation import paired_p_value
from smallgpt.sentiment.report import describe, score


def example(classes: int, reviews: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, reviews)
    logits = generator.normal(size=(reviews, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_are_those_counted_by_hand(classes: int) -> None:
    probabilities, labels = example(classes)
    names = [f"name {n}" for n in range(classes)]
    result = score(probabilities, labels, names)
    verdicts = probabilities.argmax(1)
    assert result["accuracy"] == (verdicts == labels).mean()
    confusion = [
        [int(((labels == a) & (verdicts == b)).sum()) for b in range(classes)]
        for a in range(classes)
    ]
    assert result["confusion"] == confusion
    for n, name in enumerate(names):
        hit = confusion[n][n]
        precision, recall = hit / sum(row[n] for row in confusion), hit / sum(confusion[n])
        assert result["classes"][name] == pytest.approx(
            {
                "precision": precision,
                "recall": recall,
                "f1": 2 * precision * recall / (precision + recall),
                "reviews": sum(confusion[n]),
            }
        )
    assert result["macro_f1"] == pytest.approx(metrics.f1_score(labels, verdicts, average="macro"))
    assert f"{100 * result['accuracy']:.2f} %" in describe(result)


def test_roc_auc_is_the_share_of_pairs_in_order() -> None:
    probabilities, labels = example(2)
    good, bad = probabilities[labels == 1, 1], probabilities[labels == 0, 1]
    expected = (good[:, None] > bad[None, :]).mean()
    assert score(probabilities, labels, ["0", "1"])["roc_auc"] == pytest.approx(expected)


def test_one_class_in_the_test_has_no_roc_auc() -> None:
    probabilities, labels = example(2)
    result = score(probabilities, np.ones_like(labels), ["0", "1"])
    assert result["roc_auc"] is None
    assert "ROC-AUC not defined" in describe(result)


def test_calibration_error() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    sure = np.tile([0.8, 0.2], (100, 1))
    assert score(sure, labels, ["0", "1"])["calibration_error"] == pytest.approx(0.0)
    too_sure = np.tile([1.0, 0.0], (100, 1))
    assert score(too_sure, labels, ["0", "1"])["calibration_error"] == pytest.approx(0.2)


def test_the_interval_is_wilsons() -> None:
    def interval(reviews: int, wrong: int) -> list[float]:
        labels = (np.arange(reviews) < wrong).astype(int)
        return score(np.tile([0.8, 0.2], (reviews, 1)), labels, ["0", "1"])["accuracy_95"]

    width = 1.96 * np.sqrt(0.9 * 0.1 / 10_000)  # the normal one, as there are many reviews
    assert interval(10_000, 1000) == pytest.approx([0.9 - width, 0.9 + width], abs=6e-4)
    z2 = 1.959964**2  # by hand for all of 30 right: n / (n + z²) to 1
    assert interval(30, 0) == pytest.approx([30 / (30 + z2), 1.0], abs=1e-6)


def test_paired_p_value() -> None:
    first = (np.random.default_rng(0).random(500) < 0.9).astype(float)
    assert paired_p_value(first, first) == 1.0
    assert paired_p_value(first, np.zeros(500)) < 0.001
    one, other = np.zeros(100), np.zeros(100)
    one[0] = 1  # a single review of difference says nothing
    assert paired_p_value(one, other) == 1.0
    # McNemar's exact test on 12 against 4 reviews: p = 0.0768, the same for thirds that add up.
    one[:12], other[12:16] = 1, 1
    for share in (1, 1 / 3):
        assert paired_p_value(share * one, share * other) == pytest.approx(0.0768, abs=0.01)
