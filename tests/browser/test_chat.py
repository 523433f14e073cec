"""A conversation on the page, with a model that follows a script."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, expect

from smallgpt.server.service import Limits
from tests.browser.actions import button, messages, say, talk, tool
from tests.browser.conftest import Opener, Serve, Talker
from tests.helpers.server import eventually

LONG = "今天天气不错，早上好呀！"


def test_a_reply_is_shown_while_it_is_written(serve: Serve, opened: Opener) -> None:
    bot = Talker([LONG])
    page = opened(serve(bot).url)
    bot.hold(len(LONG) - 4)  # and one for the end
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", LONG[:5]])
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#announcer")).to_have_text("The model is writing.")
    expect(button(page, "Send")).to_be_hidden()
    bot.go_on()
    expect(messages(page)).to_have_text(["你好", LONG])
    expect(page.locator("#announcer")).to_have_text(f"The model: {LONG}")
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".note")).to_contain_text(f"{len(LONG)} characters · ")
    expect(page.locator(".note")).to_contain_text(" a second")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()


def test_what_came_before_the_stop_stays(serve: Serve, opened: Opener) -> None:
    bot = Talker([LONG, "好的"])
    served = serve(bot)
    page = opened(served.url)
    bot.hold(len(LONG) - 4)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", LONG[:5]])
    button(page, "Stop").click()
    expect(messages(page)).to_have_text(["你好", LONG[:5]])
    expect(page.locator(".note")).to_contain_text("Stopped.")
    bot.go_on()
    talk(page, "再见")
    expect(messages(page)).to_have_text(["你好", LONG[:5], "再见", "好的"])
    assert bot.heard()[-1] == f"你好\n{LONG[:5]}\n再见\n"


def test_stopped_before_anything_came(serve: Serve, opened: Opener) -> None:
    bot = Talker(["好"])
    page = opened(serve(bot).url)
    bot.hold(2)
    say(page, "你好")
    button(page, "Stop").click()
    expect(messages(page)).to_have_text(["你好"])
    bot.go_on()
    button(page, "Get a reply").click()
    expect(messages(page)).to_have_text(["你好", "好"])


def test_replies_have_versions(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一", "二", "三", "四"])
    page = opened(serve(bot).url)
    talk(page, "你好")
    tool(page, 1, "Another reply").click()
    expect(messages(page)).to_have_text(["你好", "二"])
    expect(page.locator(".versions")).to_contain_text("Version 2 of 2")
    expect(button(page, "Send")).to_be_visible()
    tool(page, 1, "Previous version").click()
    expect(messages(page)).to_have_text(["你好", "一"])
    expect(tool(page, 1, "Previous version")).to_be_focused()
    talk(page, "再来")
    assert bot.heard()[-1] == "你好\n一\n再来\n"
    expect(messages(page)).to_have_text(["你好", "一", "再来", "三"])
    tool(page, 1, "Next version").click()
    expect(messages(page)).to_have_text(["你好", "二"])
    page.reload()
    expect(messages(page)).to_have_text(["你好", "二"])
    tool(page, 1, "Previous version").click()
    expect(messages(page)).to_have_text(["你好", "一", "再来", "三"])


def test_an_edited_line_begins_a_branch(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一", "二", "三"])
    page = opened(serve(bot).url)
    talk(page, "你好", "早上好")
    tool(page, 0, "Edit the message").click()
    editor = page.get_by_role("textbox", name="Edit the message")
    expect(editor).to_be_focused()
    editor.fill("晚安")
    editor.press("Enter")
    expect(messages(page)).to_have_text(["晚安", "三"])
    assert bot.heard()[-1] == "晚安\n"
    expect(button(page, "Send")).to_be_visible()
    tool(page, 0, "Previous version").click()
    expect(messages(page)).to_have_text(["你好", "一", "早上好", "二"])
    tool(page, 0, "Next version").click()
    expect(messages(page)).to_have_text(["晚安", "三"])


def test_a_reply_can_be_corrected(serve: Serve, opened: Opener) -> None:
    bot = Talker(["错", "好"])
    page = opened(serve(bot).url)
    talk(page, "你好")
    tool(page, 1, "Edit the message").click()
    page.get_by_role("textbox", name="Edit the message").fill("你好呀")
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["你好", "你好呀"])
    talk(page, "再见")
    assert bot.heard() == ["你好\n", "你好\n你好呀\n再见\n"]


def test_an_edit_survives_what_happens_beside_it(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一", "二"])).url)
    talk(page, "你好")
    tool(page, 0, "Edit the message").click()
    editor = page.get_by_role("textbox", name="Edit the message")
    editor.fill("晚安")
    say(page, "在吗")
    expect(messages(page)).to_have_text(["一", "在吗", "二"])
    expect(editor).to_have_value("晚安")


def test_an_edit_is_given_up(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一"])).url)
    talk(page, "你好")
    for give_up in ("Escape", "Cancel"):
        tool(page, 0, "Edit the message").click()
        editor = page.get_by_role("textbox", name="Edit the message")
        editor.fill("晚安")
        if give_up == "Escape":
            editor.press("Escape")
        else:
            button(page, "Cancel").click()
        expect(messages(page)).to_have_text(["你好", "一"])
        expect(editor).to_have_count(0)


def test_a_message_is_deleted_with_what_follows(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一", "二", "三"])
    page = opened(serve(bot).url)
    talk(page, "你好", "早上好")
    tool(page, 2, "Delete this message and what follows").click()
    dialog = page.get_by_role("dialog", name="Delete this message and 1 after it?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(messages(page)).to_have_count(4)
    tool(page, 2, "Delete this message and what follows").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(messages(page)).to_have_text(["你好", "一"])
    page.reload()
    expect(messages(page)).to_have_text(["你好", "一"])
    talk(page, "晚安")
    assert bot.heard()[-1] == "你好\n一\n晚安\n"


def test_enter_chooses_a_word_in_an_input_method(serve: Serve, opened: Opener) -> None:
    bot = Talker(["好"])
    page = opened(serve(bot).url)
    field = page.get_by_role("textbox", name="Message")
    field.focus()
    devtools = page.context.new_cdp_session(page)
    composing = {"text": "nihao", "selectionStart": 5, "selectionEnd": 5}
    devtools.send("Input.imeSetComposition", composing)
    field.evaluate("(e) => e.addEventListener('keydown', (k) => { e.was = k.isComposing; })")
    for kind in ("rawKeyDown", "keyUp"):  # which the input method takes for itself
        devtools.send("Input.dispatchKeyEvent", {"type": kind, "key": "Enter", "code": "Enter"})
    assert field.evaluate("(e) => e.was") is True
    expect(field).to_have_value("nihao")
    expect(messages(page)).to_have_count(0)
    devtools.send("Input.insertText", {"text": "你好"})
    expect(field).to_have_value("你好")
    expect(messages(page)).to_have_count(0)
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_text(["你好", "好"])


def test_older_input_methods_say_229(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    field = page.get_by_role("textbox", name="Message")
    field.fill("ni")
    event = "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true})"
    field.evaluate(f"(field) => field.dispatchEvent({event})")
    expect(field).to_have_value("ni")
    expect(messages(page)).to_have_count(0)


def test_escape_leaves_an_input_method_and_not_the_editor(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["一"])).url)
    talk(page, "你好")
    tool(page, 0, "Edit the message").click()
    editor = page.get_by_role("textbox", name="Edit the message")
    editor.fill("wanan")
    event = "new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true})"
    editor.evaluate(f"(field) => field.dispatchEvent({event})")
    expect(editor).to_have_value("wanan")
    editor.press("Escape")
    expect(editor).to_have_count(0)


def test_shift_enter_begins_a_line(serve: Serve, opened: Opener) -> None:
    bot = Talker(["好"])
    page = opened(serve(bot).url)
    field = page.get_by_role("textbox", name="Message")
    field.fill("你好")
    field.press("Shift+Enter")
    field.press_sequentially("早上好")
    expect(field).to_have_value("你好\n早上好")
    field.press("Enter")
    expect(messages(page)).to_have_text(["你好\n早上好", "好"])
    assert bot.heard() == ["你好 早上好\n"]


def test_blank_messages_are_not_sent(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    say(page, " \n ")
    button(page, "Send").click()
    expect(messages(page)).to_have_count(0)


def test_a_suggestion_begins_the_conversation(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker(["好"])).url)
    button(page, "你好").click()
    expect(messages(page)).to_have_text(["你好", "好"])
    expect(page.get_by_role("heading", name="What shall we talk about?")).to_be_hidden()


NASTY = "<script>window.hacked = 1</script><img src=x onerror='hacked = 1'>&amp;{{1+1}}"


def test_what_the_model_writes_is_text(serve: Serve, opened: Opener) -> None:
    page = opened(serve(Talker([NASTY])).url)
    talk(page, "你好", NASTY)
    expect(messages(page)).to_have_text(["你好", NASTY, NASTY, NASTY])
    tool(page, 2, "Edit the message").click()
    page.get_by_role("textbox", name="Edit the message").press("Escape")
    button(page, "Rename").click()
    page.get_by_role("textbox", name="Title").fill(NASTY)
    button(page, "Save").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(NASTY)
    page.get_by_role("searchbox").fill("onerror")
    expect(page.locator("#list li")).to_have_count(1)
    button(page, "Delete this conversation").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img:not([src$='icon.svg']), main script").count() == 0


def sent(page: Page, text: str) -> dict[str, Any]:
    """Say something; the body of the request."""
    with page.expect_request("**/v1/chat/completions") as request:
        talk(page, text)
    body = json.loads(request.value.post_data or "")
    return {key: body[key] for key in body if key not in ("model", "stream", "stream_options")}


def test_settings_are_sent_and_kept(serve: Serve, opened: Opener) -> None:
    bot = Talker(["好"], temperature=0.25, max_new_tokens=30)
    page = opened(serve(bot).url)
    first = {"messages": [{"role": "user", "content": "你好"}]}
    assert sent(page, "你好") == first  # what is not set is the model's affair
    button(page, "Settings").click()
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.25")
    expect(page.get_by_label("Longest reply")).to_have_attribute("placeholder", "30")
    wanted = {
        "Temperature": ("temperature", 0.7),
        "top_p": ("top_p", 0.8),
        "top_k": ("top_k", 40),
        "Repetition penalty": ("repetition_penalty", 1.1),
        "Longest reply": ("max_tokens", 20),
        "Seed": ("seed", 7),
        "Best of": ("best_of", 1),
    }
    for label, (_, value) in wanted.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label("System message").fill("早上好")
    button(page, "Save").click()
    page.reload()
    expect(messages(page)).to_have_text(["System 早上好", "你好", "好"])
    body = sent(page, "再来")
    assert {name: body[name] for name, _ in wanted.values()} == dict(wanted.values())
    assert bot.heard()[-1] == "早上好\n你好\n好\n再来\n"
    button(page, "New conversation").click()
    assert sent(page, "在吗")["messages"] == [
        {"role": "system", "content": "早上好"},
        {"role": "user", "content": "在吗"},
    ]
    button(page, "Settings").click()
    button(page, "Reset").click()
    button(page, "Save").click()
    body = sent(page, "在")
    assert list(body) == ["messages"]
    assert body["messages"][0] == {"role": "user", "content": "在吗"}


def test_a_setting_out_of_range_is_refused(serve: Serve, opened: Opener) -> None:
    page = opened(serve().url)
    button(page, "Settings").click()
    page.get_by_label("top_p").fill("3")
    button(page, "Save").click()
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button(page, "Settings")).to_be_focused()
    assert list(sent(page, "你好")) == ["messages"]


def test_what_was_forgotten_is_marked(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三四"], block_size=32, max_new_tokens=8)
    page = opened(serve(bot).url)
    talk(page, "你好呀你好呀", "早上好早上好", "晚安晚安晚安", "天气不错天气")
    shown = messages(page).all_inner_texts()
    read = bot.heard()[-1].split("\n")[:-1]
    assert len(read) < len(shown) - 1
    assert shown[-1 - len(read) : -1] == read
    forgotten = page.locator(".forgotten .text").all_inner_texts()
    assert forgotten == shown[: -1 - len(read)]
    divider = page.locator(".divider")
    expect(divider).to_contain_text("it no longer reads what is above")
    above = page.locator(".message:has(~ .divider)")
    expect(above).to_have_count(len(forgotten))


def test_a_message_that_is_too_long_says_so(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一"], block_size=32, max_new_tokens=8)
    page = opened(serve(bot).url)
    talk(page, "好" * 40)
    cut = 40 - len(bot.heard()[0].strip())
    said = f"The model did not read the first {cut} characters of your message"
    expect(page.locator(".note")).to_contain_text(said)


def test_a_busy_server_is_tried_again(serve: Serve, opened: Opener) -> None:
    bot = Talker(["一二三", "好"])
    served = serve(bot, limits=Limits(slots=1, queue=1))
    first, second, third = (opened(served.url, expected="429") for _ in range(3))
    bot.hold(3)
    say(first, "你好")
    expect(messages(first)).to_have_text(["你好", "一"])
    say(second, "在吗")
    eventually(lambda: served.metric("smallgpt_requests_waiting") == 1)
    say(third, "早")
    expect(third.get_by_role("alert")).to_contain_text("The server is busy.")
    bot.go_on()
    expect(messages(first)).to_have_text(["你好", "一二三"])
    expect(messages(second)).to_have_text(["在吗", "好"])
    button(third, "Try again").click()
    expect(messages(third)).to_have_text(["早", "一二三"])
    expect(third.get_by_role("alert")).to_be_empty()


def test_the_view_follows_the_newest_line_unless_one_reads_above(
    serve: Serve, opened: Opener
) -> None:
    bot = Talker(["一\u3000" * 40])
    page = opened(serve(bot).url)
    talk(page, *["你好"] * 6)
    at_end = "(e) => e.scrollHeight - e.scrollTop - e.clientHeight < 2"
    scroll = page.locator("#scroll")
    assert scroll.evaluate(at_end)
    bot.hold(40)
    say(page, "在吗")
    expect(messages(page).last).to_have_text("一\u3000" * 20 + "一")  # nothing more comes now
    assert scroll.evaluate(at_end)
    scroll.evaluate("(e) => { e.scrollTop = 0; }")
    expect(button(page, "To the newest message")).to_be_visible()
    bot.go_on()
    expect(button(page, "Send")).to_be_visible()
    assert scroll.evaluate("(e) => e.scrollTop") == 0
    button(page, "To the newest message").click()
    assert scroll.evaluate(at_end)
