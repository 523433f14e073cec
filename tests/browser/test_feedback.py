"""What people think of replies: marked, corrected, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from smallgpt.server.feedback import FeedbackFile
from tests.browser.actions import (
    WOULD,
    button,
    correct,
    editor,
    messages,
    said,
    talk,
    tool,
)
from tests.browser.checks import fits_and_is_accessible
from tests.browser.conftest import Opener, Serve, Talker

THANKS = "Saved on the server. Thank you."
MARK = "Edited by you, and saved on the server."
FULL = "The feedback cannot be written: No space left on device."


@pytest.fixture
def file(tmp_path: Path) -> FeedbackFile:
    return FeedbackFile(tmp_path / "feedback.jsonl")


def records(file: FeedbackFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.path.read_text("utf-8").splitlines()]


def test_verdicts_go_to_the_server(serve: Serve, opened: Opener, file: FeedbackFile) -> None:
    page = opened(serve(Talker(["一", "二"]), feedback=file).url)
    talk(page, "你好")
    tool(page, 1, "Good reply").click()
    expect(tool(page, 1, "Good reply")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text(THANKS)).to_be_visible()
    tool(page, 1, "Another reply").click()
    expect(messages(page)).to_have_text(["你好", "二"])
    tool(page, 1, "Bad reply").click()
    expect(tool(page, 1, "Bad reply")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(tool(page, 1, "Bad reply")).to_have_attribute("aria-pressed", "true")
    assert [(one["verdict"], one["messages"]) for one in records(file)] == [
        ("up", said("你好", "一")),
        ("down", said("你好", "二")),
    ]


def test_nothing_is_asked_for_without_a_file(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["错", "好"])).url)
    talk(page, "你好")
    expect(tool(page, 1, "Another reply")).to_be_visible()
    for name in ("Good reply", WOULD):
        expect(tool(page, 1, name)).to_have_count(0)
    expect(button(page, "What is kept")).to_be_hidden()
    tool(page, 1, "Edit the message").click()
    expect(page.get_by_text("kept on the server")).to_be_hidden()
    page.get_by_role("textbox", name="Edit the message").fill("你好呀")
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["你好", "你好呀"])
    expect(page.locator(".note")).to_have_text("Edited by you.")
    (watch,) = opened.watches
    assert not [url for url in watch.requests if url.endswith("/v1/feedback")]


@pytest.mark.parametrize("key", ["Enter", "Control+Enter", "Meta+Enter"])
def test_a_correction_takes_the_replys_place(
    serve: Serve, opened: Opener, file: FeedbackFile, key: str
) -> None:
    bot = Talker(["一", "错", "好"])
    page = opened(serve(bot, feedback=file).url)
    talk(page, "你好", "早上好")
    correct(page, 3, "  早上好呀 ", key)
    expect(messages(page)).to_have_text(["你好", "一", "早上好", "早上好呀"])
    expect(tool(page, 3, WOULD)).to_be_focused()
    expect(page.get_by_text(THANKS)).to_be_visible()
    (record,) = records(file)
    assert record.pop("time") > 1_700_000_000
    assert record == {
        "model": "tiny",
        "messages": said("你好", "一", "早上好", "错"),
        "correction": "早上好呀",
    }
    talk(page, "再见")
    assert bot.heard()[-1] == "你好\n一\n早上好\n早上好呀\n再见\n"
    page.reload()
    expect(messages(page)).to_have_text(["你好", "一", "早上好", "早上好呀", "再见", "好"])
    expect(page.locator(".edited .note")).to_have_text(MARK)
    for number, thumbs in ((1, 1), (3, 0), (5, 1)):
        expect(tool(page, number, WOULD)).to_have_count(1)
        expect(tool(page, number, "Good reply")).to_have_count(thumbs)
    tool(page, 3, "Previous version").click()  # the model's, as it was
    expect(messages(page)).to_have_text(["你好", "一", "早上好", "错"])
    expect(page.locator(".edited")).to_have_count(0)
    tool(page, 3, "Bad reply").click()
    expect(tool(page, 3, "Bad reply")).to_have_attribute("aria-pressed", "true")
    assert [one.get("verdict") for one in records(file)] == [None, "down"]


def test_a_correction_is_corrected(serve: Serve, opened: Opener, file: FeedbackFile) -> None:
    """What the model said is on record each time, even where its version was deleted."""
    page = opened(serve(Talker(["错"]), feedback=file).url)
    talk(page, "你好")
    correct(page, 1, "早")
    expect(messages(page)).to_have_text(["你好", "早"])
    tool(page, 1, "Previous version").click()
    tool(page, 1, "Delete this message and what follows").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(messages(page)).to_have_text(["你好", "早"])
    page.reload()
    correct(page, 1, "早上好")
    expect(messages(page)).to_have_text(["你好", "早上好"])
    expect(page.locator(".versions")).to_contain_text("Version 2 of 2")
    for same in ("错", "早上好"):
        correct(page, 1, same)
        expect(page.get_by_role("alert").filter(has_text="nothing has changed")).to_be_visible()
        editor(page).press("Escape")
    assert [(one["messages"], one["correction"]) for one in records(file)] == [
        (said("你好", "错"), "早"),
        (said("你好", "错"), "早上好"),
    ]


def test_a_correction_is_given_up(serve: Serve, opened: Opener, file: FeedbackFile) -> None:
    page = opened(serve(Talker(["一"]), feedback=file).url)
    talk(page, "你好")
    for give_up in ("Escape", "Cancel"):
        tool(page, 1, WOULD).click()
        editor(page).fill("晚安")
        if give_up == "Escape":
            editor(page).press("Escape")
        else:
            button(page, "Cancel").click()
        expect(messages(page)).to_have_text(["你好", "一"])
        expect(tool(page, 1, WOULD)).to_be_focused()
    assert records(file) == []


@pytest.mark.parametrize("text", ["一", " 一\n", " "])
def test_what_is_no_correction_is_not_sent(
    serve: Serve, opened: Opener, file: FeedbackFile, text: str
) -> None:
    page = opened(serve(Talker(["一"]), feedback=file).url)
    talk(page, "你好")
    correct(page, 1, text)
    expect(editor(page)).to_be_focused()
    unchanged = page.get_by_role("alert").filter(has_text="nothing has changed")
    expect(unchanged).to_have_count(1 if text.strip() else 0)
    editor(page).fill("二")
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["你好", "二"])
    expect(unchanged).to_have_count(0)
    assert [one["correction"] for one in records(file)] == ["二"]


def test_a_full_disk_keeps_the_text(
    serve: Serve, opened: Opener, file: FeedbackFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened(serve(Talker(["错"]), feedback=file).url, expected="507")
    talk(page, "你好")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file, "append", full)
        correct(page, 1, "早")
        expect(page.get_by_role("alert").filter(has_text=FULL)).to_be_visible()
        expect(editor(page)).to_have_value("早")
        expect(editor(page)).to_be_focused()
        assert records(file) == []
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["你好", "早"])
    expect(page.get_by_text(FULL)).to_have_count(0)
    assert [one["correction"] for one in records(file)] == ["早"]


@pytest.fixture
def held() -> Iterator[list[Route]]:
    """Requests that wait."""
    routes = list[Route]()
    yield routes
    assert not routes


def test_it_is_sent_once_whatever_one_does_meanwhile(
    serve: Serve, opened: Opener, file: FeedbackFile, held: list[Route]
) -> None:
    page = opened(serve(Talker(["错"]), feedback=file).url)
    talk(page, "你好")
    page.route("**/v1/feedback", lambda route: held.append(route))
    correct(page, 1, "早")
    expect(button(page, "Save")).to_be_disabled()
    editor(page).press("Enter")
    button(page, "New conversation").click()
    expect(messages(page)).to_have_count(0)
    (waiting,) = held
    held.clear()
    waiting.continue_()
    expect(page.get_by_text(THANKS)).to_be_visible()
    expect(messages(page)).to_have_count(0)
    page.locator("#list button").click()
    expect(messages(page)).to_have_text(["你好", "早"])
    assert [one["correction"] for one in records(file)] == ["早"]


def test_a_reply_to_nothing_is_only_edited(
    serve: Serve, opened: Opener, file: FeedbackFile
) -> None:
    page = opened(serve(feedback=file).url)
    imported = [{"role": "assistant", "content": "早"}, {"role": "user", "content": "你好"}]
    talks = {
        "name": "a.json",
        "mimeType": "application/json",
        "buffer": json.dumps(imported).encode(),
    }
    page.locator("#import-file").set_input_files(talks)  # type: ignore[arg-type]
    expect(messages(page)).to_have_text(["早", "你好"])
    expect(tool(page, 0, WOULD)).to_have_count(0)
    tool(page, 0, "Edit the message").click()
    page.get_by_role("textbox", name="Edit the message").fill("晚安")
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["晚安"])
    assert records(file) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_the_narrowest_phone(
    serve: Serve, opened: Opener, file: FeedbackFile, scheme: str
) -> None:
    """320 pixels: what WCAG calls reflow."""
    size = {"width": 320, "height": 640}
    url = serve(Talker(["错", "好"]), feedback=file).url
    page = opened(url, viewport=size, color_scheme=scheme, has_touch=True)

    def fits(name: str) -> None:
        fits_and_is_accessible(page, name)
        inside = "(all) => all.every((e) => e.getBoundingClientRect().right <= innerWidth)"
        assert page.locator("button:visible, textarea:visible").evaluate_all(inside), name

    talk(page, "你好")
    tool(page, 1, "Another reply").click()
    expect(messages(page)).to_have_text(["你好", "好"])
    fits("thumbs")
    tool(page, 1, WOULD).click()
    editor(page).fill("好")
    editor(page).press("Enter")
    expect(page.get_by_role("alert").filter(has_text="nothing has changed")).to_be_visible()
    fits("refused")
    editor(page).fill("早上好" * 30)
    editor(page).press("Enter")
    expect(page.locator(".note")).to_have_text(MARK)
    fits("edited")
    button(page, "What is kept").click()
    expect(page.get_by_role("dialog", name="What is kept")).to_be_visible()
    fits("kept")


@pytest.mark.parametrize(
    ("locale", "more", "words"),
    [
        ("en-US", "What is kept", ["the time", "on the server", "delete", "repeat"]),
        ("zh-CN", "保存哪些内容", ["时间", "服务器", "删除", "复述"]),
    ],
)
def test_it_is_told_what_is_kept(
    serve: Serve, opened: Opener, file: FeedbackFile, locale: str, more: str, words: list[str]
) -> None:
    page = opened(serve(feedback=file).url, locale=locale)
    button(page, more).click()
    dialog = page.get_by_role("dialog", name=more)
    for paragraph, word in zip(dialog.locator("p").all(), words, strict=True):
        expect(paragraph).to_contain_text(word)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button(page, more)).to_be_focused()
