"""What may be given to a classifier in Python, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallgpt
from smallgpt.sentiment import predictor
from tests.helpers.commands import refusal

TEXTS = ["今天好好", "错错错"]


class Column:
    """What a column of a table is here: it can be gone through, and has no truth value."""

    def __iter__(self) -> Any:
        return iter(TEXTS)

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


def test_whatever_holds_texts_is_judged(classified: Path) -> None:
    judge = smallgpt.load(classified, kind="classifier")
    arrays = (np.array(TEXTS), np.array(TEXTS, object))
    for texts in (*arrays, tuple(TEXTS), Column(), (text for text in TEXTS)):
        assert judge.predict(texts) == judge.predict(TEXTS), texts


def test_one_text_and_none(classified: Path) -> None:
    judge = smallgpt.load(classified, kind="classifier")
    assert judge.predict("今天好好") == judge.predict(["今天好好"])
    assert [text for text, _ in judge.predict_each("今天好好")] == ["今天好好"]
    assert judge.predict([]) == judge.predict(np.array([], str)) == []


def test_blank_texts_are_noted(classified: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = smallgpt.load(classified, kind="classifier")
    capsys.readouterr()
    for texts, said in ((["", "好", "\u3000\n"], "2 texts"), ([""], "1 text"), ("", "1 text")):
        assert len(judge.predict(texts)) == max(1, len(texts))
        assert capsys.readouterr().err == f"{said} without a word: the verdict means nothing\n"
    judge.predict(["好"])
    assert capsys.readouterr().err == ""


class Table:
    """Going through a table gives the names of its columns."""

    columns = ("review",)

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (None, "None is not a list of texts"),
        (3, "3 is not a list"),
        (b"abc", "a bytes is not a list"),
        ({"review": "好"}, "a dict is not a list"),
        (Table(), "a Table is not a list"),
        (["好", None], "texts[1] is None"),
        (["好", float("nan")], "texts[1] is nan"),
        ([["好"]], "texts[0] is ['好']"),
        (np.array([["好"]]), "texts[0] is array"),
    ],
)
def test_what_is_no_text_is_refused(classified: Path, texts: Any, said: str) -> None:
    judge = smallgpt.load(classified, kind="classifier")
    assert said in refusal(lambda: judge.predict(texts))
    assert said in refusal(lambda: list(judge.predict_each(texts)))


def test_an_unknown_device(classified: Path) -> None:
    assert "'gpu' is not a device" in refusal(lambda: predictor.load(classified, "gpu"))
