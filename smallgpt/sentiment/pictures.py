"""Pictures of a test: how it was reached, which labels are confused, and how sure to be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.utils.errors import note

FloatArray = npt.NDArray[np.floating[Any]]
MOST_NAMED = 12
"""Classes whose names and numbers of reviews fit into the picture."""
MOST_BESIDE = 30
"""Characters of all names together that fit below the picture without being turned."""
FONT = "DejaVu Sans"  # matplotlib has it always
_CHINESE = (  # those made for the screen, before all others that have the characters
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
)
_LINES = {  # part of report.json: name, style and colour of its line
    "test": ("the best model, test", "-", "C2"),
    "reference": ("TF-IDF baseline, test", "--", "C1"),
    "commonest": ("always the most frequent label, test", ":", "C3"),
}


@contextmanager
def picture(path: Path, width: float, columns: int = 1, texts: str = "") -> Iterator[list[Any]]:
    """Axes side by side to draw on; saved at the end of the block. `width` in inches; `texts` is
    what is to be written in it besides English."""
    # A font without a regular weight is good enough.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib  # only here, as it is slow to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": [FONT, font_for(texts) or FONT]}):
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        figure.savefig(path, dpi=90)


def draw(path: Path, result: dict[str, Any], bins: tuple[FloatArray, ...]) -> None:
    """Validation over time, confusion matrix and reliability.

    Args:
        result: what report.json is to hold.
        bins: see `report.reliability`.
    """
    names = list(result["test"]["classes"])
    ticks, predicted = [_shortened(name) for name in names], "predicted"
    if font_for("".join(names)) is None:
        ticks = [f"class {number}" for number in range(len(names))]
        predicted = "predicted (numbers: order in report.json)"
        if len(names) <= MOST_NAMED:
            order = ", ".join(f"{number} is {name}" for number, name in enumerate(names))
            note(f"{path.name} shows numbers, as no font here has the labels' characters: {order}")
    with picture(path, 13, 3, "".join(names)) as (curve, confusion, calibration):
        _draw_accuracy(curve, result)
        _draw_confusion(confusion, np.array(result["test"]["confusion"]), ticks)
        confusion.set(xlabel=predicted, ylabel="label", title="confusion: reviews of the test")
        _draw_calibration(calibration, bins)


def _draw_accuracy(curve: Any, result: dict[str, Any]) -> None:
    history = result["validation"]
    validated = [100 * h["validation_accuracy"] for h in history]
    curve.plot([h["step"] for h in history], validated, "o-", markersize=4, label="validation")
    best = result["best"]
    curve.plot(best["step"], 100 * best["accuracy"], "k*", markersize=10, label="the best model")
    for part, (name, style, colour) in _LINES.items():
        curve.axhline(100 * result[part]["accuracy"], linestyle=style, color=colour, label=name)
    curve.set(xlabel="step", ylabel="%", title="accuracy", xlim=(0, 1.05 * history[-1]["step"]))
    curve.legend(fontsize="small")


def _draw_confusion(confusion: Any, counts: npt.NDArray[Any], ticks: list[str]) -> None:
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    confusion.imshow(share, "Blues", vmin=0, vmax=1)
    if len(ticks) <= MOST_NAMED:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if share[row, column] > 0.5 else "black"
            confusion.text(column, row, f"{count:,}", color=ink, ha="center", va="center")
        turned = 90 if sum(map(len, ticks)) > MOST_BESIDE else 0
        confusion.set_xticks(range(len(ticks)), ticks, rotation=turned)
        confusion.set_yticks(range(len(ticks)), ticks)


def _draw_calibration(calibration: Any, bins: tuple[FloatArray, ...]) -> None:
    middle, confidence, accuracy, share = bins
    blues = [(0.1, 0.3, 0.7, 0.2 + 0.8 * s) for s in share / share.max()]  # darker: more
    calibration.bar(middle, accuracy, width=0.06, color=blues)
    calibration.plot([0, 1], [0, 1], linestyle=":", color="grey")
    calibration.plot(confidence, accuracy, "k.")
    calibration.set(xlabel="confidence", ylabel="accuracy", title="calibration")


def _shortened(name: str) -> str:
    name = " ".join(name.split()).replace("$", r"\$")
    return name if len(name) <= 12 else f"{name[:11]}…"


@cache
def font_for(texts: str) -> str | None:
    """A font with which to draw `texts` besides English; None where none is installed."""
    from matplotlib import font_manager, ft2font

    if not texts.isascii():  # matplotlib remembers which fonts were installed when it first ran
        known = {font.fname for font in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - known:
            with suppress(OSError, RuntimeError):
                font_manager.fontManager.addfont(path)
    installed = sorted(font_manager.fontManager.ttflist, key=lambda f: abs(int(f.weight) - 400))
    path_of = {font.name: font.fname for font in reversed(installed) if font.style == "normal"}
    needed = {*texts, *"AB01"}
    for name in dict.fromkeys([FONT, *_CHINESE, *sorted(path_of)]):
        with suppress(OSError, RuntimeError, KeyError):
            font = ft2font.FT2Font(path_of[name])
            glyphs = {font.get_char_index(ord(character)) for character in needed} - {0}
            # A font of last resort draws all characters of a script as the same box.
            if font.scalable and len(glyphs) == len(needed):
                return name
    return None
