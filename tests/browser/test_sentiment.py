"""Texts and tables, judged by a classifier that was trained here."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from smallgpt.sentiment import predictor
from smallgpt.server.classifier import ClassifierThread
from tests.browser.actions import button
from tests.browser.conftest import Opener, Serve

TEXTS = ["今天好好好", "你错错错了", "我睡睡睡"]


def sentiment(page: Page) -> Page:
    """The view."""
    page.get_by_role("link", name="Sentiment").click()
    expect(page.get_by_role("heading", name="Sentiment", level=1)).to_be_visible()
    return page


def judge(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Text to judge").fill(text)
    button(page, "Judge").click()
    expect(page.locator("#texts-said")).to_contain_text("judged")


def test_no_view_without_a_classifier(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url, path="/#sentiment")
    expect(page.get_by_role("link", name="Model")).to_be_visible()
    expect(page.get_by_role("link", name="Sentiment")).to_be_hidden()
    expect(page.get_by_role("textbox", name="Message")).to_be_visible()


def test_verdicts_with_all_probabilities(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    page.get_by_label("One text a line").check()
    judge(page, "\n".join([TEXTS[0], "", TEXTS[1]]))
    expect(page.locator("#verdicts > li")).to_have_count(2)
    for number, expected in enumerate(classifier.predictor.predict(TEXTS[:2])):
        bars = page.locator("#verdicts > li").nth(number).locator(".bars li")
        ranked = sorted(expected.probabilities.items(), key=lambda pair: -pair[1])
        expect(bars).to_have_text([f"{name}{100 * p:.1f}%" for name, p in ranked])
        expect(bars.first).to_have_class("strong")
        widths = bars.locator(".fill").evaluate_all("(all) => all.map((e) => e.style.width)")
        assert [float(width.strip("%")) for width in widths] == pytest.approx(
            [100 * p for _, p in ranked], abs=0.1
        )


def test_characters_are_marked_by_weight(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    with page.expect_response("**/v1/classify") as answer:
        judge(page, TEXTS[0])
    weights = answer.value.json()["data"][0]["explanation"]
    text = page.locator("#verdicts .text")
    expect(text).to_have_text(TEXTS[0])
    strongest = max(weights, key=lambda one: abs(one["weight"]))
    kind = "for" if strongest["weight"] > 0 else "against"
    mark = text.locator(f"mark.{kind}[data-weight='4']").first
    sign = "+" if strongest["weight"] > 0 else "−"
    said = f"{strongest['text']}: {sign}{abs(strongest['weight']):.2f}"
    expect(mark).to_have_attribute("title", said)
    # Neither colour nor a mouse is needed: lines differ, and the strongest are named.
    line = "getComputedStyle(e).textDecorationStyle"
    styles = page.locator("#legend mark").evaluate_all(f"(all) => all.map((e) => {line})")
    assert styles == ["solid", "dotted"]
    expect(page.locator("#legend")).to_be_visible()
    expect(page.locator(".strongest")).to_contain_text(said.replace(": ", " "))
    page.get_by_label("Mark what decided").uncheck()
    judge(page, TEXTS[0])
    expect(page.locator("#verdicts mark")).to_have_count(0)
    expect(page.locator("#legend")).to_be_hidden()


def test_many_lines_are_judged_in_several_requests(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    page.get_by_label("One text a line").check()
    page.get_by_label("Mark what decided").uncheck()
    judge(page, "\n".join(f"{n} {TEXTS[n % 3]}" for n in range(40)))
    expect(page.locator("#verdicts .text").nth(39)).to_have_text(f"39 {TEXTS[0]}")


def test_long_texts_are_judged_without_marks(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    page.get_by_label("One text a line").check()
    texts = [TEXTS[0], "好" * 4097, "错" * 5000, TEXTS[1]]
    judge(page, "\n".join(texts))
    expect(page.locator("#verdicts .text")).to_have_text(texts)
    marks = page.locator("#verdicts > li").evaluate_all(
        "(all) => all.map((item) => item.querySelectorAll('.strongest').length)"
    )
    assert marks == [1, 0, 0, 1]
    expect(page.get_by_text("judged without marks")).to_be_visible()
    page.get_by_role("textbox", name="Text to judge").fill("好" * 32_769)
    button(page, "Judge").click()
    expect(page.get_by_text("A text has more than 32,768 characters")).to_be_visible()


def test_no_text(serve: Serve, opened: Opener, classifier: ClassifierThread) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    button(page, "Judge").click()
    expect(page.get_by_text("Type or paste a text first.")).to_be_visible()


def rows_of(path: Path | str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(Path(path).read_text("utf-8-sig"), newline="")))


def drop(page: Page, name: str, data: bytes) -> None:
    """Drop a file on the frame, as from a file manager."""
    script = """([name, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type: 'text/csv' }));
      return transfer;
    }"""
    transfer = page.evaluate_handle(script, [name, list(data)])
    for event in ("dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": transfer})


TABLE = (
    'id,verdict,评论\r\n1,x,"今天好,好好"\r\n2,=1+1,\r\n3,"a ""b""","错错\n错错"\r\n4,,睡睡睡\r\n'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_table_is_scored(
    serve: Serve, opened: Opener, classifier: ClassifierThread, encoding: str
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    drop(page, "酒店.csv", TABLE.encode(encoding))
    expect(page.get_by_text("酒店.csv · 4 rows")).to_be_visible()
    column = page.get_by_label("Column with the texts")
    expect(column).to_be_focused()
    assert column.evaluate("(e) => e.selectedOptions[0].text") == "评论"
    button(page, "Judge all").click()
    said = "3 texts judged. 1 row without text has no verdict."
    expect(page.get_by_text(said)).to_be_visible()
    with page.expect_download() as download:
        button(page, "Download the table with verdicts").click()
    assert download.value.suggested_filename == "酒店.scored.csv"
    header, *scored = rows_of(download.value.path())
    names = classifier.predictor.names
    added = ["verdict.2", "probability", *(f"p({name})" for name in names)]
    assert header == ["id", "verdict", "评论", *added]
    before = list(csv.reader(io.StringIO(TABLE, newline="")))
    assert [row[:3] for row in scored] == before[1:]
    texts = [row[2] for row in before[1:] if row[2]]
    expected: list[list[Any]] = [
        [one.label, one.probability, *one.probabilities.values()]
        for one in classifier.predictor.predict(texts)
    ]
    expected.insert(1, ["", "", "", "", ""])
    for row, wanted in zip(scored, expected, strict=True):
        assert row[3] == wanted[0]
        if wanted[0]:
            assert list(map(float, row[4:])) == pytest.approx(wanted[1:], abs=6e-5)
        else:
            assert row[4:] == wanted[1:]


def test_another_column_and_no_header(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    text = "\n".join(f"{text}\t{n}" for n, text in enumerate(TEXTS))
    with page.expect_file_chooser() as chooser:
        button(page, "Choose a file").click()
    file = {"name": "a.tsv", "mimeType": "text/plain", "buffer": text.encode()}
    chooser.value.set_files(file)  # type: ignore[arg-type]
    page.get_by_label("The first row names the columns").uncheck()
    expect(page.get_by_text("a.tsv · 3 rows")).to_be_visible()
    page.get_by_label("Column with the texts").select_option("Column 1")
    button(page, "Judge all").click()
    expect(page.get_by_text("3 texts judged.")).to_be_visible()
    with page.expect_download() as download:
        button(page, "Download the table with verdicts").click()
    lines = Path(download.value.path()).read_text("utf-8-sig").split("\n")
    assert lines[0].startswith("Column 1\tColumn 2\tverdict\tprobability\tp(")
    labels = [one.label for one in classifier.predictor.predict(TEXTS)]
    assert [line.split("\t")[:3] for line in lines[1:4]] == [
        [text, str(n), labels[n]] for n, text in enumerate(TEXTS)
    ]


def test_progress_and_stop(serve: Serve, opened: Opener, classifier: ClassifierThread) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    page.route("**/v1/classify", lambda route: None)  # no answer, until it is broken off
    page.route("**/v1/classify", lambda route: route.continue_(), times=1)
    rows = "".join(f"{n},{TEXTS[n % 3]}\n" for n in range(200))
    drop(page, "a.csv", f"n,text\n{rows}".encode())
    button(page, "Judge all").click()
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "64")
    expect(page.get_by_text(re.compile(r"^64 of 200 · [\d,]+ a second$"))).to_be_visible()
    button(page, "Stop").click()
    expect(page.get_by_text("Stopped after 64 of 200.")).to_be_visible()
    with page.expect_download() as download:
        button(page, "Download the table with verdicts").click()
    _, *scored = rows_of(download.value.path())
    assert [row[2] != "" for row in scored] == [True] * 64 + [False] * 136


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "a.csv: the table is empty"), (b"\x80\xff\xff\x00", "a.csv is not a text file")],
)
def test_a_file_that_is_no_table(
    serve: Serve, opened: Opener, classifier: ClassifierThread, data: bytes, said: str
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    drop(page, "a.csv", data)
    expect(page.locator("#table-trouble")).to_contain_text(said)


def test_a_long_cell_is_cut_and_counted(
    serve: Serve, opened: Opener, classifier: ClassifierThread
) -> None:
    page = sentiment(opened(serve(classifier=classifier).url))
    drop(page, "a.csv", f"n,text\n1,{'好' * 40_000}\n2,好\n".encode())
    button(page, "Judge all").click()
    said = "2 texts judged. Of 1 row only the first 32,768 characters were judged."
    expect(page.get_by_text(said)).to_be_visible()


def test_cells_are_text(serve: Serve, opened: Opener, classifier_path: Path) -> None:
    nasty = "<img src=x onerror='window.hacked=1'>"
    judge_ = predictor.load(classifier_path, "cpu")
    thread = ClassifierThread(nasty, classifier_path, judge_, 64)
    page = sentiment(opened(serve(classifier=thread).url))
    judge(page, nasty)
    expect(page.locator("#verdicts .text")).to_have_text(nasty)
    drop(page, f"{nasty}.csv", f"{nasty},{nasty}\n{nasty},{nasty}\n".encode())
    expect(page.locator("#table-body td")).to_have_text([nasty, nasty])
    page.get_by_role("link", name="Model").click()
    expect(page.get_by_role("heading", name=nasty)).to_be_visible()
    assert page.evaluate("window.hacked") is None
