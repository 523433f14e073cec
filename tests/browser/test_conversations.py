"""The list of conversations, and where they are kept: this browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.actions import button, messages, say, talk, tool
from tests.browser.conftest import Opener, Serve, Talker


def titles(page: Page) -> Locator:
    return page.locator("#list .title")


def confirm(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()


def test_several_conversations(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一", "二", "三"])).url)
    talk(page, "早上好")
    button(page, "New conversation").click()
    expect(messages(page)).to_have_count(0)
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    talk(page, "晚安")
    expect(titles(page)).to_have_text(["晚安", "早上好"])
    page.get_by_role("button", name="早上好").click()
    expect(messages(page)).to_have_text(["早上好", "一"])
    expect(page.get_by_role("heading", level=1)).to_have_text("早上好")
    talk(page, "在吗")
    expect(titles(page)).to_have_text(["早上好", "晚安"])  # the latest first
    page.reload()
    expect(messages(page)).to_have_text(["早上好", "一", "在吗", "三"])
    expect(page.locator("#list [aria-current]")).to_have_text("早上好")


def test_a_reply_goes_on_while_another_conversation_is_open(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三四", "好"])
    page = opened(serve(bot).url)
    bot.hold(3)
    say(page, "早上好")
    expect(messages(page)).to_have_text(["早上好", "一二"])
    button(page, "New conversation").click()
    expect(button(page, "Send")).to_be_visible()
    bot.go_on()
    talk(page, "晚安")
    page.get_by_role("button", name="早上好").click()
    expect(messages(page)).to_have_text(["早上好", "一二三四"])


def test_rename(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    talk(page, "早上好")
    button(page, "Rename").click()
    title = page.get_by_role("textbox", name="Title")
    expect(title).to_have_value("早上好")
    title.fill("我的")
    title.press("Enter")
    expect(titles(page)).to_have_text(["我的"])
    expect(page.get_by_role("heading", level=1)).to_have_text("我的")
    expect(button(page, "Rename")).to_be_focused()
    page.reload()
    expect(titles(page)).to_have_text(["我的"])


def test_search_in_titles_and_messages(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一", "二"])).url)
    talk(page, "早上好")
    button(page, "New conversation").click()
    talk(page, "Abc")
    search = page.get_by_role("searchbox", name="Search conversations")
    search.fill("aBC")
    expect(titles(page)).to_have_text(["Abc"])
    search.fill("一")
    expect(page.locator("#list li")).to_have_text(["早上好一"])  # and where it was found
    search.fill("没有")
    expect(page.get_by_text("No conversation has these words.")).to_be_visible()
    search.fill("")
    expect(titles(page)).to_have_count(2)


def test_delete(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一", "二"])).url)
    talk(page, "早上好")
    button(page, "New conversation").click()
    talk(page, "晚安")
    button(page, "Delete this conversation").click()
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_count(2)
    expect(button(page, "Delete this conversation")).to_be_focused()
    button(page, "Delete this conversation").click()
    confirm(page)
    expect(titles(page)).to_have_text(["早上好"])
    expect(messages(page)).to_have_count(0)
    page.reload()
    expect(titles(page)).to_have_text(["早上好"])


def test_a_conversation_deleted_while_its_reply_is_written(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三四", "好"])
    page = opened(serve(bot).url)
    bot.hold(3)
    say(page, "早上好")
    expect(messages(page)).to_have_text(["早上好", "一二"])
    button(page, "Delete this conversation").click()
    confirm(page)
    bot.go_on()
    talk(page, "晚安")
    expect(titles(page)).to_have_text(["晚安"])


def exported(page: Page, name: str, format_: str) -> str:
    button(page, name).click()
    page.get_by_role("radio", name=format_).check()
    with page.expect_download() as download:
        page.get_by_role("dialog").get_by_role("button", name="Export").click()
    return Path(download.value.path()).read_text("utf-8")


def test_export_and_import(serve: Serve, opened: Opener, tmp_path: Path) -> None:
    url = serve(Talker(["一", "二", "三"])).url
    page = opened(url)
    talk(page, "早上好")
    tool(page, 1, "Another reply").click()
    expect(messages(page)).to_have_text(["早上好", "二"])
    button(page, "New conversation").click()
    talk(page, "晚安")
    one = [{"role": "user", "content": "晚安"}, {"role": "assistant", "content": "三"}]
    assert json.loads(exported(page, "Export this conversation", "JSON")) == [
        {"title": "晚安", "messages": one}
    ]
    as_text = exported(page, "Export", "Text to train on")
    assert as_text == "晚安\n三\n\n早上好\n二\n"
    as_json = exported(page, "Export", "JSON")
    for name, content in (("a.txt", as_text), ("a.json", as_json)):
        other = opened(url)
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        with other.expect_file_chooser() as chooser:
            button(other, "Import").click()
        chooser.value.set_files(file)
        expect(other.get_by_text("2 conversations imported.")).to_be_visible()
        expect(titles(other)).to_have_text(["晚安", "早上好"])
        expect(messages(other)).to_have_text(["晚安", "三"])
        other.reload()
        expect(titles(other)).to_have_text(["晚安", "早上好"])
        assert exported(other, "Export", "Text to train on") == as_text
    button(other, "New conversation").click()
    talk(other, "好")  # and one goes on in what was imported
    other.get_by_role("button", name="早上好").click()
    talk(other, "再见")
    expect(messages(other)).to_have_count(4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}', "a.json: neither messages in OpenAI"),
        (b"\x80\xff\xff\x00", "a.json is not a text file"),
        (b"", "a.json: there is no conversation in it"),
    ],
)
def test_a_file_that_cannot_be_imported(
    serve: Serve, opened: Opener, content: bytes, said: str
) -> None:
    page = opened(serve().url)
    file = {"name": "a.json", "mimeType": "application/json", "buffer": content}
    page.locator("#import-file").set_input_files(file)  # type: ignore[arg-type]
    expect(page.locator("#notices")).to_contain_text(said)
    expect(titles(page)).to_have_count(0)


def test_a_thousand_conversations(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    dialogues = "\n\n".join(f"你好{n}\n好" for n in range(1000))
    file = {"name": "a.txt", "mimeType": "text/plain", "buffer": dialogues.encode()}
    page.locator("#import-file").set_input_files(file)  # type: ignore[arg-type]
    expect(page.get_by_text("1000 conversations imported.")).to_be_visible()
    expect(titles(page)).to_have_count(1000)
    page.reload()
    expect(titles(page).nth(0)).to_have_text("你好0")
    expect(titles(page).nth(999)).to_have_text("你好999")


def test_nothing_to_export(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    button(page, "Export").click()
    page.get_by_role("dialog").get_by_role("button", name="Export").click()
    expect(page.locator("#notices")).to_contain_text("no conversation of two or more messages")


def test_two_tabs_share_the_conversations(serve: Serve, opened: Opener) -> None:
    url = serve(Talker(["一", "二", "三", "四"])).url
    first = opened(url)
    second = opened(url, within=first.context)
    talk(first, "早上好")
    expect(titles(second)).to_have_text(["早上好"])
    talk(second, "晚安")
    expect(titles(first)).to_have_text(["晚安", "早上好"])
    # Both go on with the same one, and neither loses what the other says.
    second.get_by_role("button", name="早上好").click()
    expect(messages(second)).to_have_text(["早上好", "一"])
    talk(second, "在吗")
    expect(messages(first)).to_have_text(["早上好", "一", "在吗", "三"])
    talk(first, "在")
    expect(messages(second)).to_have_count(6)
    first.reload()
    expect(titles(first)).to_have_text(["早上好", "晚安"])
    expect(messages(first)).to_have_count(6)
    # What one deletes, the other does not bring back.
    tool(first, 4, "Delete this message and what follows").click()
    confirm(first)
    expect(messages(second)).to_have_count(4)
    button(first, "Delete this conversation").click()
    confirm(first)
    expect(titles(second)).to_have_text(["晚安"])
    expect(messages(second)).to_have_count(0)


def test_a_tab_that_heard_nothing_loses_nothing(serve: Serve, opened: Opener) -> None:
    """Storage events come late: here a tab saves before it hears of the other's message."""
    page = opened(serve(Talker(["一", "二"])).url)
    talk(page, "早上好")
    page.evaluate(
        """async () => {
          const { add, path } = await import('/page/talk.js');
          const key = Object.keys(localStorage).find((k) => k.includes('conversation'));
          const talk = JSON.parse(localStorage.getItem(key));
          add(talk, '', 'user', '另一个');
          localStorage.setItem(key, JSON.stringify(talk));  // no event in the same tab
        }"""
    )
    talk(page, "在吗")
    expect(messages(page)).to_have_text(["早上好", "一", "在吗", "二"])
    tool(page, 0, "Next version").click()
    expect(messages(page)).to_have_text(["另一个"])


def test_full_storage_is_said_and_nothing_shown_is_lost(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一"])).url)
    page.evaluate(
        """() => {
          for (let n = 0, size = 1 << 20; size >= 1; n += 1) {
            try {
              localStorage.setItem(`other.${n}`, 'x'.repeat(size));
            } catch {
              size /= 2;
            }
          }
        }"""
    )
    talk(page, "早上好")
    expect(page.locator("#notices")).to_contain_text("This browser has no room left")
    expect(messages(page)).to_have_text(["早上好", "一"])
    assert exported(page, "Export", "Text to train on") == "早上好\n一\n"
    page.evaluate("for (const key of Object.keys(localStorage)) localStorage.removeItem(key)")
    talk(page, "在吗")
    page.reload()
    expect(messages(page)).to_have_text(["早上好", "一", "在吗", "一"])


def test_what_cannot_be_read_is_left_alone(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    later = {"version": 99, "id": "later", "talks": []}
    entries = {"smallgpt.conversation.later": json.dumps(later), "smallgpt.conversation.bad": "{"}
    page.evaluate("(x) => Object.entries(x).forEach((e) => localStorage.setItem(...e))", entries)
    page.reload()
    expect(page.get_by_text("2 saved conversations cannot be read")).to_be_visible()
    talk(page, "早上好")
    kept = page.evaluate("(x) => Object.keys(x).map((k) => localStorage.getItem(k))", entries)
    assert kept == list(entries.values())
