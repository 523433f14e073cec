"""The pictures of a report: which font writes the labels, and what is seen of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from smallgpt.sentiment import pictures
from smallgpt.sentiment.report import reliability, score


def result(names: list[str], validations: int = 3) -> tuple[dict[str, Any], Any]:
    labels = np.arange(60) % len(names)
    probabilities = np.full((60, len(names)), 0.1 / len(names))
    probabilities[np.arange(60), labels] += 0.9
    scores = score(probabilities, labels, names)
    history = [{"step": 10 * n, "validation_accuracy": 0.5} for n in range(1, validations + 1)]
    return {
        "validation": history,
        "best": {"step": 10, "accuracy": 0.5},
        "test": scores,
        "reference": scores,
        "commonest": {"label": names[0], "accuracy": 1 / len(names)},
    }, reliability(probabilities, labels)


def drawn(
    monkeypatch: pytest.MonkeyPatch, folder: Path, names: list[str], validations: int = 3
) -> Figure:
    """The figure that was saved; no character may be missing in the fonts."""
    saved = []
    save = Figure.savefig

    def keeping(figure: Figure, *arguments: Any, **settings: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **settings)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(Figure, "savefig", keeping)
        pictures.draw(folder / "report.png", *result(names, validations))
    return saved[0]


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [f for f in font_manager.fontManager.ttflist if "mpl-data" in f.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    pictures.font_for.cache_clear()


def ticks(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[1].get_xticklabels()]


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_without_a_chinese_font_labels_are_numbers_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pictures.font_for("好评") is None, "a font that draws boxes was taken"
    assert ticks(drawn(monkeypatch, tmp_path, ["好评", "差评"])) == ["class 0", "class 1"]
    assert "0 is 好评, 1 is 差评" in capsys.readouterr().err


def test_a_font_with_the_characters_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greek stands for Chinese here: the default font has it."""
    assert ticks(drawn(monkeypatch, tmp_path, ["καλό", "$x$"])) == ["καλό", r"\$x\$"]
    assert capsys.readouterr().err == ""


def test_numbers_are_read_on_any_cell_and_one_validation_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve: Any
    confusion: Any
    calibration: Any
    curve, confusion, calibration = drawn(monkeypatch, tmp_path, ["a", "b"], validations=1).axes
    assert (confusion.get_xlabel(), calibration.get_ylabel()) == ("predicted", "accuracy")
    inks = {text.get_text(): text.get_color() for text in confusion.texts}
    assert inks == {"30": "white", "0": "black"}
    assert curve.lines[0].get_marker() == "o" and len(curve.lines[0].get_xdata()) == 1
    legend = [text.get_text() for text in curve.get_legend().get_texts()]
    assert "TF-IDF baseline, test" in legend and "always the most frequent label, test" in legend


def test_many_labels_and_long_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(
        len(tick) <= 12 for tick in ticks(drawn(monkeypatch, tmp_path, ["long" * 9, "b\nc"]))
    )
    drawn(monkeypatch, tmp_path, [f"name {n}" for n in range(20)])
