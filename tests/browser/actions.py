"""What people do on the page, found by the names that a screen reader says."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect


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
