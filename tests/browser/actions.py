"""What people do on the page, found by the names that a screen reader says."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

WOULD = "I would have said …"
"""The button below a reply that opens its editor, and the editor's name."""


def say(page: Page, text: str) -> None:
    """Type a message and send it."""
    field = page.get_by_role("textbox", name="Message", exact=True)
    field.fill(text)
    field.press("Enter")


def talk(page: Page, *texts: str) -> None:
    """Send messages, each after the reply to the one before."""
    for text in texts:
        say(page, text)
        expect(button(page, "Send")).to_be_visible()


def messages(page: Page) -> Locator:
    """The texts of the messages that are shown."""
    return page.locator(".message .text")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def tool(page: Page, number: int, name: str) -> Locator:
    """A button below a message, counted from 0."""
    message = page.locator("#messages > .message").nth(number)
    return message.get_by_role("button", name=name, exact=True)


def said(*texts: str) -> list[dict[str, str]]:
    """The messages of a talk, the user's first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def editor(page: Page) -> Locator:
    return page.get_by_role("textbox", name=WOULD)


def correct(page: Page, number: int, text: str, key: str = "Enter") -> None:
    """Put another text in the place of a message, counted from 0."""
    tool(page, number, WOULD).click()
    expect(editor(page)).to_be_focused()
    editor(page).fill(text)
    editor(page).press(key)
