"""How good the verdicts are on reviews that nobody learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from smallgpt.data.reviews import IntArray

FloatArray = npt.NDArray[np.floating[Any]]
BINS = 15
"""Of the calibration error, by confidence."""


def score(probabilities: FloatArray, labels: IntArray, names: list[str]) -> dict[str, Any]:
    """All figures of a test, as plain values.

    Args:
        probabilities: (N, C).
        labels: the right numbers, (N,).
        names: of the labels, (C,).

    Returns:
        accuracy and its 95 % interval; by class precision, recall, F1 and support; macro_f1;
        roc_auc (of the second of two classes, else one against the rest, mean of the classes; None
        where a class is missing); calibration_error; confusion (rows: right label, columns: ours).
    """
    verdicts, numbers = probabilities.argmax(1), list(range(len(names)))
    right = verdicts == labels
    by_class = metrics.precision_recall_fscore_support(
        labels, verdicts, labels=numbers, zero_division=0
    )
    return {
        "reviews": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_95": list(accuracy_interval(right)),
        "classes": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "reviews": int(n)}
            for name, p, r, f, n in zip(names, *by_class, strict=True)
        },
        "macro_f1": float(by_class[2].mean()),
        "roc_auc": _roc_auc(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
        "confusion": metrics.confusion_matrix(labels, verdicts, labels=numbers).tolist(),
    }


def _roc_auc(probabilities: FloatArray, labels: IntArray) -> float | None:
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    normed = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    return float(metrics.roc_auc_score(labels, normed, multi_class="ovr"))


def accuracy_interval(right: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927), which is sound for few reviews and near 100 %, too.

    Args:
        right: whether each review was judged right, (N,).
    """
    interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def calibration_error(probabilities: FloatArray, labels: IntArray) -> float:
    """Expected calibration error: how far confidence is from accuracy (arXiv:1706.04599).

    Mean over reviews, in `BINS` bins of equal width by the probability of the verdict.
    """
    _, confidence, accuracy, share = reliability(probabilities, labels)
    return float((share * np.abs(confidence - accuracy)).sum())


def reliability(
    probabilities: FloatArray, labels: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """By bin that is not empty: its middle, mean confidence, accuracy and share of the reviews."""
    confidence = probabilities.max(1).astype(np.float64)
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    used, bin_of, count = np.unique(bin_of, return_inverse=True, return_counts=True)
    mean_confidence = np.bincount(bin_of, confidence) / count
    accuracy = np.bincount(bin_of, probabilities.argmax(1) == labels) / count
    return (used + 0.5) / BINS, mean_confidence, accuracy, count / len(labels)


def paired_p_value(first: FloatArray, second: FloatArray) -> float:
    """Whether two classifiers differ on the same reviews: sign-flip permutation test, two-sided.

    Args:
        first, second: how often each review was judged right (0 to 1; mean over seeds), (N,).
    """
    difference = first - second
    difference = difference[difference != 0]
    if len(difference) < 2:
        return 1.0
    test = stats.permutation_test(
        (difference,),
        lambda values, axis: values.sum(axis).round(9),  # equal but for rounding is equal
        permutation_type="samples",
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def describe(scores: dict[str, Any]) -> str:
    """The figures as a few lines for the terminal."""
    low, high = scores["accuracy_95"]
    auc = "not defined" if scores["roc_auc"] is None else f"{scores['roc_auc']:.4f}"
    width = max(5, *(len(name) for name in scores["classes"]))
    lines = [
        f"accuracy {100 * scores['accuracy']:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f}) "
        f"of {scores['reviews']:,} reviews",
        f"ROC-AUC {auc}, calibration error {scores['calibration_error']:.4f}",
        f"{'label':>{width}}  precision  recall     F1  reviews   judged as "
        + " ".join(f"{name:>6}" for name in scores["classes"]),
    ]
    for (name, figures), judged in zip(scores["classes"].items(), scores["confusion"], strict=True):
        lines.append(
            f"{name:>{width}}  {figures['precision']:9.4f}  {figures['recall']:6.4f} "
            f"{figures['f1']:6.4f}  {figures['reviews']:7,}             "
            + " ".join(f"{count:>6,}" for count in judged)
        )
    return "\n".join(lines)
