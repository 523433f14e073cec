"""Labelled texts: formats, encodings, bad input, and the split."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.data.reviews import Reviews, read_reviews, split_reviews
from smallgpt.data.tables import read_rows
from tests.helpers.commands import refusal

ROWS = [("1", "房间很干净"), ("0", "太吵，\n还有“蚊子”"), ("1", 'a,b "c"'), ("0", "差")]


def write(path: Path, rows: list[tuple[str, str]] = ROWS, delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["label", "review"])
        table.writerows(rows)
    return path


def read(
    path: Path, names: list[str] | None = None, label_map: dict[str, str] | None = None
) -> Reviews:
    return read_reviews(path, "review", "label", names, label_map)


def pairs(reviews: Reviews) -> list[tuple[str, str]]:
    return [
        (reviews.names[label], text)
        for label, text in zip(reviews.labels, reviews.texts, strict=True)
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")])
def test_tables_with_any_delimiter(tmp_path: Path, name: str, delimiter: str) -> None:
    reviews = read(write(tmp_path / name, delimiter=delimiter))
    assert pairs(reviews) == ROWS
    assert reviews.names == ["0", "1"]


def test_json_lines_and_compressed_files(tmp_path: Path) -> None:
    lines = [json.dumps({"review": text, "label": int(label)}) for label, text in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, ""]), "utf-8")
    assert pairs(read(tmp_path / "a.jsonl")) == ROWS
    packed = tmp_path / "a.csv.xz"
    packed.write_bytes(lzma.compress(write(tmp_path / "a.csv").read_bytes()))
    assert pairs(read(packed)) == ROWS


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig"])
def test_encodings(tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv")
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    assert pairs(read(path))[0] == ROWS[0]
    assert ("not UTF-8, read as GB18030" in capsys.readouterr().err) == (encoding == "gb18030")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_written_without_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], newline: str
) -> None:
    """A quotation mark in a text must not swallow the lines that follow."""
    texts = ["好", '"干净"？没打扫', '"老牌酒店', "太吵", "旧", '不错"', '都"好"', '"很好"']
    for name, delimiter in (("a.tsv", "\t"), ("a.csv", ",")):
        lines = [f"{n % 2}{delimiter}{text}" for n, text in enumerate(texts)]
        path = tmp_path / name
        path.write_bytes(newline.join([f"label{delimiter}review", *lines]).encode())
        assert read(path).texts == texts
        assert "quotation marks are read as characters" in capsys.readouterr().err
    # Here nothing is broken with quotes: rows of a TSV are lines, in a CSV it is said.
    texts = ['"老牌酒店', "太吵", '不错"']
    for name, delimiter in (("a.tsv", "\t"), ("a.csv", ",")):
        lines = [f"{n % 2}{delimiter}{text}" for n, text in enumerate(["差", *texts, "差"])]
        (tmp_path / name).write_text("\n".join([f"label{delimiter}review", *lines]), "utf-8")
        rows = [row.cells["review"] for row in read_rows(tmp_path / name)]
        assert rows == (["差", *texts, "差"] if name == "a.tsv" else [*rows[:2], "差"])
        said = "quotation marks are" if name == "a.tsv" else "line 3: a text in quotes holds the 2"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        'label,review\n0,"a, b"\n1,"太吵\n0,"差, 差"\n',
        'label,review\n0,"a, b"\n1,太吵\n1,"差, 差\n',
    ],
)
def test_a_quotation_mark_that_is_not_closed(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content, "utf-8")
    said = refusal(lambda: read(tmp_path / "a.csv"))
    line = 3 if "太吵\n0" in content else 4
    assert f"line {line}: a quotation mark is not closed, or within quotes not doubled" in said


def test_one_bad_byte_does_not_change_the_other_texts(tmp_path: Path) -> None:
    for count in (1, 1000):
        data = b"label,review\n" + "1,很好\n0,太吵\n".encode() * count + b"1,\xe5\xa5\n"
        (tmp_path / "a.csv").write_bytes(data)
        problem = f"line {2 * count + 2:,}: not UTF-8, as the rest is (byte 0xe5)"
        assert problem in refusal(lambda: read(tmp_path / "a.csv"))


def test_a_json_list(tmp_path: Path) -> None:
    records = [{"review": text, "label": int(label)} for label, text in [*ROWS, ("1", "哈\ud83d")]]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(records, indent=indent))
        assert pairs(read(path)) == [*ROWS, ("1", "哈\ufffd")]
    assert "record 2: the label '0' is unknown" in refusal(lambda: read(path, ["1", "2"]))
    path.write_text(json.dumps([*records, 3]))
    assert "record 6: not an object" in refusal(lambda: read(path))


def test_columns_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,label,x,review\n1,0,2,差\n3,1,4,好\n", "utf-8")
    assert [*next(read_rows(path, ["review"])).cells.values()] == list("102差")
    assert "another column 'x' is read as 'x.2'" in capsys.readouterr().err
    path.write_text("review,label,review\n好,1,差\n", "utf-8")
    assert "two columns 'review'" in refusal(lambda: read(path))


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), min_size=1
    )
)
def test_every_text_survives_a_table(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("t") / "a.csv", [("x", text) for text in texts])
    assert [row.cells["review"] for row in read_rows(path, ["review"])] == texts


def test_gaps_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [("1", ""), ("0", "  "), ("", "没有"), ("nan", "没有"), ("1", "NaN")]
    rows = [*ROWS, *gaps, ("1.0", "好")]
    reviews = read(write(tmp_path / "a.csv", rows))
    assert pairs(reviews) == [*ROWS, ("1", "好")]
    said = capsys.readouterr().err
    assert "3 rows without a text dropped" in said
    assert "2 rows without a label dropped" in said


def test_a_huge_review(tmp_path: Path) -> None:
    reviews = read(write(tmp_path / "a.csv", [*ROWS, ("1", "好" * 1_000_000)]))
    assert len(reviews.texts[-1]) == 1_000_000


STARS = [("1", "差"), ("2.0", "吵"), ("3", "还行"), ("4", "好"), ("5", "很好"), ("x", "？")]


def test_stars_become_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However a star is written, in the file or in the map."""
    path = write(tmp_path / "a.csv", STARS)
    classes = {"1.0": "差评", "2": "差评", " 4": "好评", "5": "好评"}
    reviews = read(path, label_map=classes)
    assert pairs(reviews) == [("差评", "差"), ("差评", "吵"), ("好评", "好"), ("好评", "很好")]
    assert "2 rows left out, as label_map does not name their labels (3, x)" in (
        capsys.readouterr().err
    )
    assert read(path, ["差评", "好评"], classes).names == ["差评", "好评"]
    assert read(path, label_map={"1": "0", "5": "1.0"}).names == ["0", "1"]


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (
            {"1": "a", "6": "b"},
            "has the label '6'\n  -> the labels in column 'label' are: 1 (1), 2",
        ),
        ({"1": "a", "1.0": "b"}, "the label '1' has two classes"),
        ({"1": "a", "5": "a"}, "1 different label"),
    ],
)
def test_a_map_that_does_not_fit(tmp_path: Path, label_map: dict[str, str], expected: str) -> None:
    path = write(tmp_path / "a.csv", STARS)
    assert expected in refusal(lambda: read(path, label_map=label_map))


def test_labels_are_ordered_as_numbers_or_words(tmp_path: Path) -> None:
    rows = [(label, "a") for label in ("10", "9", "坏", "好", "--1", "-1.0")]
    assert read(write(tmp_path / "a.csv", rows)).names == ["-1", "9", "10", "--1", "坏", "好"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "label,text\n1,a\n", "no column 'review'\n  -> the columns are: label, text"),
        ("a.csv", "", "is empty"),
        ("a.csv", "label,review\n", "0 different labels in column 'label'"),
        ("a.csv", "label,review\n1,a\n1,b\n", "1 different label in column 'label'"),
        ("a.csv", "label,review\n1,a\n0,b,c\n", "line 3: 3 cells for 2 columns"),
        ("a.csv", "review\n好\n", "no column 'label'"),
        ("a.csv", b"label,review\n1,\xff\xff\xff\n", "line 2: neither UTF-8 nor GB18030"),
        ("a.jsonl", '{"review": "a", "label": 1}\n{"review"\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "record 1: not an object"),
        ("a.jsonl", "[" * 100_000, "the list is broken after record 0"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert expected in refusal(lambda: read(path))


def test_other_bad_files(tmp_path: Path) -> None:
    assert "not found" in refusal(lambda: read(tmp_path / "none.csv"))
    assert "is a directory" in refusal(lambda: read(tmp_path))
    (tmp_path / "one.csv").write_text("label\n1,0\n", "utf-8")
    problem = refusal(lambda: read_reviews(tmp_path / "one.csv", "label", "label"))
    assert "line 2: 2 cells for 1 column\n" in problem
    path = write(tmp_path / "a.csv")
    assert "line 3: the label '0' is unknown" in refusal(lambda: read(path, ["1", "2"]))
    many = write(tmp_path / "many.csv", [(f"l{n}", "a") for n in range(1001)])
    assert "1,001 different labels" in refusal(lambda: read(many))


def many(count: int, copies: int = 1) -> Reviews:
    texts = [f"{n // copies}" for n in range(count)]
    labels = np.array([n // copies % 3 for n in range(count)])
    return Reviews(texts, labels, ["a", "b", "c"])


def test_split_is_complete_stratified_and_seeded() -> None:
    reviews = many(3000)
    split = split_reviews(reviews, 0.8, 0.1, seed=1)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts)) == list(range(3000))
    assert [len(part) for part in parts] == [2160, 240, 600]
    for part in parts:
        assert set(np.bincount(reviews.labels[part])) == {len(part) // 3}
    again, other = (split_reviews(reviews, 0.8, 0.1, seed) for seed in (1, 2))
    assert np.array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)


def test_identical_reviews_stay_together() -> None:
    reviews = many(600, copies=4)
    split = split_reviews(reviews, 0.7, 0.2, seed=3)
    texts = [
        {reviews.texts[i] for i in part} for part in (split.train, split.validation, split.test)
    ]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 distinct review has"), (2, "2 distinct reviews have")]
)
def test_too_few_reviews_of_a_label(count: int, said: str) -> None:
    reviews = Reviews(list("abcdefgh")[: 6 + count], np.array([0] * 6 + [1] * count), ["好", "坏"])
    problem = refusal(lambda: split_reviews(reviews, 0.8, 0.1, 0))
    assert f"only {said} the label '坏'\n" in problem
    assert "check label_column and text_column" in problem


@pytest.mark.parametrize(
    ("labels", "each", "said"),
    [
        (2, 5, ""),
        (20, 9, ""),
        (21, 9, "21 different labels in column 'label': is label_column the right column?"),
        (3, 4, "3 different labels in column 'label', most with fewer than 5 reviews: is label_c"),
    ],
)
def test_labels_that_may_be_of_a_wrong_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: int, each: int, said: str
) -> None:
    path = write(tmp_path / "a.csv", [(f"2024-{n}", "好") for n in range(labels)] * each)
    read(path)
    shown = capsys.readouterr().err
    assert f"warning: {path}: {said}" in shown if said else not shown
    read(path, [f"2024-{n}" for n in range(labels)])  # of a classifier that there is
    assert capsys.readouterr().err == ""
