"""The page as a whole: what it loads, how it looks, and who can use it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from smallgpt.chat.chatbot import Source
from smallgpt.server import app
from smallgpt.server.classifier import ClassifierThread
from tests.browser.actions import button, messages, say, talk, tool
from tests.browser.checks import fits_and_is_accessible
from tests.browser.conftest import Opener, Serve, Talker

PHONE, DESKTOP = {"width": 375, "height": 740}, {"width": 1280, "height": 800}


def test_only_the_pages_own_files_are_loaded(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    talk(page, "你好")
    (watch,) = opened.watches
    loaded = {urlsplit(url).path for url in watch.requests}
    assets = {f"/page/{file.name}" for file in app.PAGE.iterdir() if file.name != "index.html"}
    assert {path for path in loaded if path.startswith("/page/")} == assets  # none is left over
    api = {"/health", "/v1/models", "/v1/models/tiny", "/v1/chat/completions"}
    assert loaded - assets == {"/", *api}


def test_text_is_only_ever_inserted_as_text() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function"
    for file in app.PAGE.glob("*.js"):
        assert not re.search(ways, file.read_text("utf-8")), file.name


def test_every_word_that_is_said_is_there_and_no_other() -> None:
    source = "".join(file.read_text("utf-8") for file in app.PAGE.glob("*.*"))
    words = (app.PAGE / "words.js").read_text("utf-8")
    keys = re.findall(r"^  (\w+): \[", words, re.MULTILINE)
    uses = source.replace(words, "")
    for key in keys:  # `${key}More` is said where the key is
        assert re.search(rf"\b{key.removesuffix('More')}\b", uses), key
    said = r"""data-(?:word|label|placeholder)="(\w+)"|\bt\('(\w+)'"""
    assert {key for pair in re.findall(said, uses) for key in pair if key} <= set(keys)


@pytest.mark.parametrize(
    ("locale", "language", "chat"),
    [
        ("en-US", "en", "Chat"),
        ("zh-CN", "zh-CN", "聊天"),
        ("zh-TW", "zh-CN", "聊天"),
        ("fr-FR", "en", "Chat"),
    ],
)
def test_the_browsers_language_decides(
    serve: Serve, opened: Opener, locale: str, language: str, chat: str
) -> None:
    page = opened(serve().url, locale=locale)
    expect(page.locator("html")).to_have_attribute("lang", language)
    expect(page.get_by_role("link", name=chat, exact=True)).to_be_visible()


def test_another_language_can_be_chosen(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三"])
    page = opened(serve(bot).url)
    bot.hold(2)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    page.get_by_label("Language").select_option("中文")
    expect(page.get_by_role("link", name="聊天", exact=True)).to_be_visible()
    expect(page).to_have_title("聊天 · Small GPT")
    bot.go_on()
    expect(messages(page)).to_have_text(["你好", "一二三"])
    expect(page.locator(".note")).to_contain_text("3 字")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")


def test_chinese_is_marked_as_such(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["早上好"])).url)
    talk(page, "abc")
    assert messages(page).evaluate_all("(all) => all.map((e) => e.lang)") == ["", "zh-CN"]


def views(page: Page, phone: bool) -> list[str]:
    """Go through all views and dialogs with something in them; yields each one's name."""
    done = []

    def go(name: str) -> None:
        if phone:
            button(page, "Open the sidebar").click()
        page.get_by_role("link", name=name, exact=True).click()

    def check(name: str) -> None:
        fits_and_is_accessible(page, name)
        done.append(name)

    expect(button(page, "你好")).to_be_visible()
    check("welcome")
    talk(page, "你好呀你好呀", "早上好早上好" * 3, "a" * 200, "天气不错")
    expect(page.locator(".divider")).to_be_visible()
    tool(page, 1, "Another reply").hover()
    check("chat")
    tool(page, 0, "Edit the message").click()
    check("edit")
    page.keyboard.press("Escape")
    button(page, "Settings").click()
    check("settings")
    page.keyboard.press("Escape")
    button(page, "Delete this conversation").click()
    check("delete")
    page.keyboard.press("Escape")
    button(page, "Export this conversation").click()
    check("export")
    page.keyboard.press("Escape")
    if phone:
        button(page, "Open the sidebar").click()
        check("drawer")
        page.keyboard.press("Escape")
    go("Sentiment")
    page.get_by_role("textbox", name="Text to judge").fill("今天好好好" * 30 + "b" * 100)
    button(page, "Judge").click()
    expect(page.locator("#verdicts li.verdict")).to_have_count(1)
    table = "id,评论,another\n" + "1,今天好好好好好好好好好好好,很长很长很长很长很长很长很长\n" * 5
    file = {"name": "a.csv", "mimeType": "text/csv", "buffer": table.encode()}
    page.locator("#file").set_input_files(file)  # type: ignore[arg-type]
    button(page, "Judge all").click()
    expect(button(page, "Download the table with verdicts")).to_be_visible()
    check("sentiment")
    go("Model")
    page.get_by_text("The curve as a table").first.click()
    check("model")
    return done


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_view_fits_and_is_accessible(
    serve: Serve,
    opened: Opener,
    classifier: ClassifierThread,
    trained: Path,
    size: dict[str, int],
    scheme: str,
) -> None:
    bot = Talker(["一二三四"], block_size=32, max_new_tokens=8)
    bot.source = Source(trained, 123_456, "float32", "cpu")
    url = serve(bot, classifier=classifier).url
    phone = size is PHONE
    page = opened(url, viewport=size, color_scheme=scheme, has_touch=phone)
    dark = page.evaluate(
        "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0] < 128"
    )
    assert dark == (scheme == "dark")
    assert len(views(page, phone)) == (9 if phone else 8)


def test_the_drawer_on_a_phone(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一"])).url, viewport=PHONE)
    expect(page.get_by_role("link", name="Model")).to_be_hidden()
    menu = button(page, "Open the sidebar")
    expect(menu).to_have_attribute("aria-expanded", "false")
    menu.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Model")).to_be_visible()
    expect(button(page, "Close the sidebar")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Model")).to_be_hidden()
    expect(menu).to_be_focused()
    menu.click()
    page.locator("#backdrop").click(position={"x": 360, "y": 400})
    expect(page.get_by_role("link", name="Model")).to_be_hidden()
    menu.click()
    page.get_by_role("link", name="Model").click()
    expect(page.get_by_role("heading", name="Model", level=1)).to_be_visible()
    expect(page.get_by_role("link", name="Chat")).to_be_hidden()


def test_a_talk_with_the_keyboard_alone(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一", "二"])).url)

    def reach(name: str) -> None:
        """Tab to it; the focus is seen all the way."""
        focused = "document.activeElement"
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"{focused} === document.body"):
                continue  # between the last and the first
            said = page.evaluate(f"{focused}.getAttribute('aria-label') ?? {focused}.innerText")
            assert page.evaluate(
                f"getComputedStyle({focused}).outlineStyle !== 'none' || "
                f"getComputedStyle({focused}.closest('form') ?? {focused}).outlineStyle !== 'none'"
            ), said
            if said.strip() == name:
                return
        raise AssertionError(f"{name} cannot be reached")

    reach("Skip to the content")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reach("Message")
    page.keyboard.insert_text("你好")
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_text(["你好", "一"])
    expect(button(page, "Send")).to_be_visible()
    reach("Another reply")
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_text(["你好", "二"])
    reach("Edit the message")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    reach("Settings")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(button(page, "Settings")).to_be_focused()
    reach("Model")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Model", level=1)).to_be_visible()


def test_the_model_card(
    serve: Serve, opened: Opener, classifier: ClassifierThread, trained: Path
) -> None:
    bot = Talker(["一"])
    bot.source = Source(trained, 4_873_216, "bfloat16", "cpu")
    page = opened(serve(bot, classifier=classifier).url, path="/#model")
    card = page.get_by_role("article").first
    expect(card.get_by_role("heading", name="tiny")).to_be_visible()
    facts = {
        "Parameters": "4.87M",
        "Precision": "bfloat16",
        "Device": "cpu",
        "Context": "256 tokens",
        "Vocabulary": f"{len(bot.tokenizer)} characters",
        "Trained for": "120 steps",
    }
    for name, value in facts.items():
        expect(card.locator("dl div", has_text=name)).to_have_text(f"{name}{value}")
    curve = card.get_by_role("img", name="Loss in training")
    expect(curve).to_be_visible()
    assert len(curve.locator("polyline.training").get_attribute("points") or "") > 100
    expect(card.locator("figure > p")).to_contain_text("After 120 steps the training loss is ")
    card.get_by_text("The curve as a table").click()
    expect(card.get_by_role("row").nth(1)).to_be_visible()
    labels = page.get_by_role("article").nth(1).locator("dl div", has_text="Labels")
    expect(labels).to_have_text("Labels" + " · ".join(classifier.predictor.names))


def test_no_curve_without_a_record(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url, path="/#model")
    expect(page.get_by_text("There is no record of the training.")).to_be_visible()


def test_less_motion_for_those_who_want_it(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三"])
    page = opened(serve(bot).url, reduced_motion="reduce")
    bot.hold(2)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    caret = "getComputedStyle(document.querySelector('.writing .text'), '::after').animationName"
    assert page.evaluate(caret) == "none"
