"""What a finished run leaves: report.json, report.png, and the verdict on each test review."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.data.reviews import Reviews
from smallgpt.sentiment.scores import reliability
from smallgpt.sentiment.task import Verdicts
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

REPORT_FILE, PICTURE_FILE, VERDICTS_FILE = "report.json", "report.png", "test.csv"


def write(
    root: Path,
    result: dict[str, Any],
    verdicts: Verdicts,
    baseline: npt.NDArray[np.float64],
    reviews: Reviews,
) -> None:
    """Write all three into `root`; report.json last, so that where it is, all are.

    Args:
        baseline: its probabilities, (N, C).

    Raises:
        UserError: they cannot be written.
    """
    names, probabilities = reviews.names, verdicts.probabilities()
    try:
        with (root / VERDICTS_FILE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["label", "verdict", "reference", *(f"p_{n}" for n in names), "review"])
            for text, label, row, other in zip(
                reviews.texts, reviews.labels, probabilities, baseline.argmax(1), strict=True
            ):
                judged = [names[label], names[int(row.argmax())], names[other]]
                table.writerow([*judged, *(f"{p:.6f}" for p in row), text])
        _draw(root / PICTURE_FILE, result, verdicts, names)
        with atomic.file(root / REPORT_FILE) as work:
            work.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {root}: {error.strerror}") from None


@contextmanager
def picture(path: Path, width: float, columns: int = 1) -> Iterator[list[Any]]:
    """Axes side by side to draw on; saved at the end of the block. `width` in inches."""
    from matplotlib.figure import Figure  # only here, as it is slow to import

    figure = Figure(figsize=(width, 4), layout="constrained")
    yield list(figure.subplots(1, columns, squeeze=False)[0])
    figure.savefig(path, dpi=90)


def _draw(path: Path, result: dict[str, Any], verdicts: Verdicts, names: list[str]) -> None:
    """Validation over time, confusion matrix and reliability."""
    with picture(path, 13, 3) as (curve, confusion, calibration):
        history = result["validation"]
        curve.plot([h["step"] for h in history], [100 * h["validation_accuracy"] for h in history])
        curve.axvline(result["best"]["step"], linestyle=":", color="grey")
        curve.axhline(100 * result["reference"]["accuracy"], linestyle="--", color="grey")
        title = "validation accuracy (dashed: baseline's on the test)"
        curve.set(xlabel="step (dotted: the best)", ylabel="%", title=title)

        counts = np.array(result["test"]["confusion"])
        share = counts / np.maximum(1, counts.sum(1, keepdims=True))
        confusion.imshow(share, "Blues", vmin=0, vmax=1)
        if len(names) <= 12:
            for (row, column), count in np.ndenumerate(counts):
                confusion.text(column, row, f"{count:,}", ha="center", va="center")
            confusion.set_xticks(range(len(names)), _drawable(names))
            confusion.set_yticks(range(len(names)), _drawable(names))
        confusion.set(xlabel="judged as", ylabel="label", title="confusion")

        middle, confidence, accuracy, share = reliability(
            verdicts.probabilities(), verdicts.labels.numpy()
        )
        blues = [(0.1, 0.3, 0.7, 0.2 + 0.8 * s) for s in share / share.max()]  # darker: more
        calibration.bar(middle, accuracy, width=0.06, color=blues)
        calibration.plot([0, 1], [0, 1], linestyle=":", color="grey")
        calibration.plot(confidence, accuracy, "k.")
        calibration.set(xlabel="confidence", ylabel="share right", title="calibration")


def _drawable(names: list[str]) -> list[str]:
    """The names, or their numbers where the font of the picture lacks their characters."""
    from matplotlib import font_manager, ft2font

    font = ft2font.FT2Font(font_manager.findfont(font_manager.FontProperties()))
    has_all = all(font.get_char_index(ord(c)) for name in names for c in name)
    return names if has_all else [str(number) for number in range(len(names))]
