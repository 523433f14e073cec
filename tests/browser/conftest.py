"""The page in a real Chromium: `make test-browser`."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from smallgpt.chat.chatbot import Chatbot
from smallgpt.sentiment import predictor, recipe
from smallgpt.server.classifier import ClassifierThread
from smallgpt.tokenizer.characters import Tokenizer
from tests.helpers.models import CHARACTERS, TINY, ScriptedGPT
from tests.helpers.reviews import classifier_config, write_reviews
from tests.helpers.server import PATIENCE, Served, serving

WAIT = 30_000
"""Milliseconds until what must come is missed."""
TYPED = "一二三四再见来在"
"""What the tests say, besides the characters of other tests and of the replies."""
# Root has no sandbox; without the rest, Chromium calls its maker's hosts.
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


expect.set_options(timeout=WAIT)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    found = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert found, "Chromium is needed: apt-get install chromium, or name one with CHROMIUM=…"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page must not do, noted when it does it.

    expected: complaints of the console that a test provokes.
    """

    host: str
    expected: str = "^$"
    seen: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("request", lambda request: self._asked(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not re.search(self.expected, message.text):
            self.seen.append(f"{message.type}: {message.text}")

    def _asked(self, url: str) -> None:
        self.requests.append(url)
        address = urlsplit(url)
        if address.scheme not in ("blob", "data") and address.netloc != self.host:
            self.seen.append(f"foreign request: {url}")


class Opener:
    """Opens pages, each in a fresh profile unless one is given, and watches them."""

    def __init__(self, browser: Browser) -> None:
        self._browser, self._contexts = browser, list[BrowserContext]()
        self.watches = list[Watch]()

    def __call__(
        self,
        url: str,
        expected: str = "^$",
        within: BrowserContext | None = None,
        path: str = "/",
        **options: Any,
    ) -> Page:
        """A page, once it knows the server. `expected`: complaints that the test provokes."""
        defaults = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}}
        if within is None:
            within = self._browser.new_context(**(defaults | options))
            within.set_default_timeout(WAIT)
            self._contexts.append(within)
        page = within.new_page()
        watch = Watch(urlsplit(url).netloc, expected)
        watch.follow(page)
        self.watches.append(watch)
        page.goto(url + path)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens pages; at the end none may have complained, or asked another host for anything."""
    opener = Opener(browser)
    try:
        yield opener
        assert [said for watch in opener.watches for said in watch.seen] == []
    finally:
        opener.close()


class Talker(Chatbot):
    """Says the given replies in turn. `hold(n)` lets the next ones wait with n characters left."""

    def __init__(self, replies: Sequence[str], **settings: Any) -> None:
        tokenizer = Tokenizer(sorted({*CHARACTERS, *TYPED, *"".join(replies)}))
        more = {"max_repeats": 0, "max_new_tokens": 100, "block_size": 256}
        config = replace(TINY, vocab_size=len(tokenizer), **(more | settings))
        self.script = ScriptedGPT(config, [tokenizer.encode(reply) for reply in replies])
        self.script.pause = self._pause
        self._left, self._go = -1, threading.Event()
        super().__init__(self.script, tokenizer, config)

    def hold(self, left: int) -> None:
        """From now on wait where so many ids are still to come, the last one included."""
        self._go.clear()
        self._left = left

    def go_on(self) -> None:
        """Wait no longer."""
        self._left = -1
        self._go.set()

    def _pause(self, left: int) -> None:
        if left == self._left:
            self._go.wait(PATIENCE)

    def heard(self) -> list[str]:
        """The contexts it replied to, an utterance a line."""
        return [self.tokenizer.decode(ids) for ids in self.script.contexts]


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves chatbots until the end of the test; arguments as of `serving`."""
    with ExitStack() as stack:

        def serve(bot: Chatbot | None = None, **parts: Any) -> Served:
            bot = bot or Talker(["你好呀！"])
            served = stack.enter_context(serving(bot, **parts))
            if isinstance(bot, Talker):
                stack.callback(bot.go_on)  # first, or the engine could not end
            return served

        yield serve


@pytest.fixture(scope="session")
def classifier_path(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run with three labels."""
    folder = tmp_path_factory.mktemp("three")
    write_reviews(folder / "reviews.csv", labels="012")
    return recipe.run(classifier_config(folder, trained))


@pytest.fixture
def classifier(classifier_path: Path) -> ClassifierThread:
    """To be served."""
    return ClassifierThread("reviews", classifier_path, predictor.load(classifier_path, "cpu"), 64)
