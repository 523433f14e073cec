"""How good the verdicts are on reviews that nobody learnt from: figures and files."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from smallgpt.data.reviews import IntArray, Reviews
from smallgpt.sentiment import pictures
from smallgpt.sentiment.task import Verdicts
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

FloatArray = npt.NDArray[np.floating[Any]]
REPORT_FILE, PICTURE_FILE, VERDICTS_FILE = "report.json", "report.png", "test.csv"
BINS = 15
"""Of the calibration error, by confidence."""


def score(probabilities: FloatArray, labels: IntArray, names: list[str]) -> dict[str, Any]:
    """All figures of a test, as plain values; of probabilities, (N, C), and right labels, (N,).

    Returns:
        accuracy and its 95 % interval (Wilson, 1927, which is sound for few reviews and near 100 %,
        too); by class precision, recall, F1 and support; macro_f1; roc_auc (of the second of two
        classes, else one against the rest, mean of the classes; None where a class is missing);
        the expected calibration error, how far confidence is from accuracy (arXiv:1706.04599);
        confusion (rows: right label, columns: ours).
    """
    verdicts, numbers = probabilities.argmax(1), range(len(names))
    right = verdicts == labels
    interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
    by_class = metrics.precision_recall_fscore_support(
        labels, verdicts, labels=numbers, zero_division=0
    )
    roc_auc = None
    if len(np.unique(labels)) == len(names):
        ranked = numbers if len(names) > 2 else [1]
        areas = [metrics.roc_auc_score(labels == n, probabilities[:, n]) for n in ranked]
        roc_auc = float(np.mean(areas))
    _, confidence, accuracy, share = reliability(probabilities, labels)
    return {
        "reviews": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_95": [float(interval.low), float(interval.high)],
        "classes": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "reviews": int(n)}
            for name, p, r, f, n in zip(names, *by_class, strict=True)
        },
        "macro_f1": float(by_class[2].mean()),
        "roc_auc": roc_auc,
        "calibration_error": float((share * np.abs(confidence - accuracy)).sum()),
        "confusion": metrics.confusion_matrix(labels, verdicts, labels=numbers).tolist(),
    }


def reliability(
    probabilities: FloatArray, labels: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The middle, mean confidence, accuracy and share of the reviews, of each bin that has some;
    the bins, of equal width, are those of the probability of the verdict."""
    confidence = probabilities.max(1).astype(np.float64)
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    used, bin_of, count = np.unique(bin_of, return_inverse=True, return_counts=True)
    mean_confidence = np.bincount(bin_of, confidence) / count
    accuracy = np.bincount(bin_of, probabilities.argmax(1) == labels) / count
    return (used + 0.5) / BINS, mean_confidence, accuracy, count / len(labels)


def describe(scores: dict[str, Any]) -> str:
    """The figures as a few lines for the terminal."""
    low, high = scores["accuracy_95"]
    auc = "not defined" if scores["roc_auc"] is None else f"{scores['roc_auc']:.4f}"
    width = max(5, *(len(name) for name in scores["classes"]))
    lines = [
        f"accuracy {100 * scores['accuracy']:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f}) "
        f"of {scores['reviews']:,} reviews",
        f"ROC-AUC {auc}, calibration error {scores['calibration_error']:.4f}",
        f"{'label':>{width}}  precision  recall     F1  reviews   predicted "
        + " ".join(f"{name:>6}" for name in scores["classes"]),
    ]
    for (name, figures), judged in zip(scores["classes"].items(), scores["confusion"], strict=True):
        lines.append(
            f"{name:>{width}}  {figures['precision']:9.4f}  {figures['recall']:6.4f} "
            f"{figures['f1']:6.4f}  {figures['reviews']:7,}             "
            + " ".join(f"{count:>6,}" for count in judged)
        )
    return "\n".join(lines)


def write(
    root: Path,
    result: dict[str, Any],
    verdicts: Verdicts,
    baseline: npt.NDArray[np.float64],
    reviews: Reviews,
) -> None:
    """Write report.json, report.png and the verdict on each test review into the folder `root`;
    report.json last, so that where it is, all are. `baseline`: its probabilities, (N, C).

    Raises:
        UserError: they cannot be written.
    """
    names, probabilities = reviews.names, verdicts.probabilities()
    try:
        # As Excel reads it, see judging.py.
        with (root / VERDICTS_FILE).open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file)
            table.writerow(["label", "verdict", "baseline", *(f"p_{n}" for n in names), "review"])
            for text, label, row, other in zip(
                reviews.texts, reviews.labels, probabilities, baseline.argmax(1), strict=True
            ):
                judged = [names[label], names[int(row.argmax())], names[other]]
                table.writerow([*judged, *(f"{p:.6f}" for p in row), text])
        pictures.draw(root / PICTURE_FILE, result, reliability(probabilities, reviews.labels))
        with atomic.file(root / REPORT_FILE) as work:
            work.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {root}: {error.strerror}") from None
