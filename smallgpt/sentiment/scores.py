"""How good the verdicts on reviews are that nobody learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from smallgpt.data.reviews import IntArray

FloatArray = npt.NDArray[np.floating[Any]]

BINS = 15
"""Of the calibration error, by confidence."""
RESAMPLES = 2000


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
    verdicts = probabilities.argmax(1)
    numbers = list(range(len(names)))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, verdicts, labels=numbers, zero_division=0
    )
    right = verdicts == labels
    low, high = bootstrap_interval(right)
    return {
        "reviews": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_95": [low, high],
        "classes": {
            name: {
                "precision": float(precision[n]),
                "recall": float(recall[n]),
                "f1": float(f1[n]),
                "reviews": int(support[n]),
            }
            for n, name in enumerate(names)
        },
        "macro_f1": float(f1.mean()),
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


def bootstrap_interval(right: npt.NDArray[np.bool_], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share: percentiles over resamples of the reviews (Efron, 1979).

    Resampling yes/no values with replacement is drawing from a binomial distribution.
    """
    drawn = np.random.default_rng(seed).binomial(len(right), right.mean(), RESAMPLES) / len(right)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


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
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    used = count > 0
    middle = ((np.arange(BINS) + 0.5) / BINS)[used]
    mean_confidence = np.bincount(bin_of, confidence, BINS)[used] / count[used]
    accuracy = np.bincount(bin_of, right, BINS)[used] / count[used]
    return middle, mean_confidence, accuracy, count[used] / len(labels)


def paired_p_value(first: FloatArray, second: FloatArray, seed: int = 0) -> float:
    """Whether two classifiers differ on the same reviews: sign-flip permutation test, two-sided.

    Args:
        first, second: how often each review was judged right (0 to 1; mean over seeds), (N,).
    """
    difference = first - second
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    generator = np.random.default_rng(seed)
    flips = 10_000
    signs = generator.integers(0, 2, (flips, len(difference)), np.int8) * 2 - 1
    as_large = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9
    return float((as_large.sum() + 1) / (flips + 1))


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
