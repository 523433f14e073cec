"""The page and a server that goes away, comes back, or asks for a key."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect

from smallgpt.server.classifier import ClassifierThread
from tests.browser.actions import button, messages, say, talk
from tests.browser.conftest import Opener, Serve, Talker
from tests.helpers.server import serve_command

REFUSED = "Failed to load resource"
"""What Chromium itself says of requests without a good answer."""


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


def test_a_killed_server_that_comes_back(opened: Opener, trained: Path, tmp_path: Path) -> None:
    port = free_port()
    with serve_command(trained, tmp_path, "--port", port) as (url, process):
        page = opened(url, expected=REFUSED)
        banner = page.locator("#banner")
        talk(page, "你好")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        say(page, "早上好")
        expect(banner).to_have_text("The server does not answer. Trying again …")
        expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
        expect(messages(page)).to_have_count(3)
        expect(button(page, "Try again")).to_be_in_viewport(ratio=1)
    with serve_command(trained, tmp_path, "--port", port):
        expect(banner).to_have_text("The server is back.")
        expect(banner).to_be_hidden()
        button(page, "Try again").click()
        expect(messages(page)).to_have_count(4)


class Relay:
    """Stands between browser and server, and can be cut."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._ends = list[socket.socket]()
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    _port = 0

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,)).start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection((self._server.hostname, self._server.port))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=pair).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for end in (self._listening, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()


def test_a_connection_that_breaks_in_mid_reply(opened: Opener, serve: Serve) -> None:
    bot = Talker(["一二三四", "好"])
    relay = Relay(serve(bot).url)
    page = opened(relay.url, expected=REFUSED)
    bot.hold(3)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    relay.cut()
    expect(page.locator(".note")).to_contain_text("Interrupted.")
    expect(page.locator("#banner")).to_contain_text("The server does not answer.")
    expect(messages(page)).to_have_text(["你好", "一二"])
    relay.open()
    bot.go_on()
    expect(page.locator("#banner")).to_have_text("The server is back.")
    page.reload()
    expect(messages(page)).to_have_text(["你好", "一二"])
    expect(page.locator(".note")).to_contain_text("Interrupted.")
    relay.cut()


def test_a_reply_that_the_server_breaks_off(opened: Opener, serve: Serve) -> None:
    bot = Talker(["一二三四"])
    served = serve(bot)
    page = opened(served.url, expected=REFUSED)
    bot.hold(3)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    served.service.engine.stop()
    bot.go_on()
    expect(page.locator(".note")).to_contain_text("Interrupted.")
    expect(page.get_by_role("alert")).not_to_be_empty()
    # The character that was being drawn may still arrive.
    expect(messages(page).last).to_have_text(re.compile("^一二三?$"))


def test_a_server_that_shuts_down_finishes_the_reply(opened: Opener, serve: Serve) -> None:
    bot = Talker(["一二三四"])
    served = serve(bot)
    page = opened(served.url, expected=REFUSED)
    other = opened(served.url, expected=REFUSED)
    bot.hold(3)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    served.service.engine.drain()
    say(other, "在吗")
    expect(other.locator("#banner")).to_have_text("The server is shutting down.")
    bot.go_on()
    expect(messages(page)).to_have_text(["你好", "一二三四"])
    expect(page.locator(".note")).not_to_contain_text("Interrupted.")


def test_a_server_that_is_loading(opened: Opener, serve: Serve) -> None:
    url = serve().url
    page = opened("about:blank", path="", expected=REFUSED)
    said = {"status": "loading", "feedback": False, "key_required": False}
    page.route("**/health", lambda route: route.fulfill(status=503, json=said))
    opened.watches[-1].host = url.removeprefix("http://")
    page.goto(url)
    expect(page.locator("#banner")).to_have_text("The server is loading the model …")
    page.unroute("**/health")
    expect(page.locator("#banner")).to_have_text("The server is back.")
    talk(page, "你好")
    expect(messages(page)).to_have_count(2)


def test_a_tab_closed_in_mid_reply_keeps_what_came(opened: Opener, serve: Serve) -> None:
    bot = Talker(["一二三四"])
    page = opened(serve(bot).url)
    bot.hold(3)
    say(page, "你好")
    expect(messages(page)).to_have_text(["你好", "一二"])
    page.reload()
    expect(messages(page)).to_have_text(["你好", "一二"])
    expect(page.locator(".note")).to_contain_text("Interrupted.")


def test_the_key_is_asked_for_and_kept_in_the_session(opened: Opener, serve: Serve) -> None:
    url = serve(Talker(["好", "一"]), key="sesame").url
    page = opened(url, expected="401")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("Key").fill("密钥")  # which no request could carry
    dialog.get_by_label("Key").press("Enter")
    expect(dialog.locator(":invalid")).not_to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_label("Key").press("Enter")
    expect(dialog.get_by_text("The server did not accept this key.")).to_be_visible()
    expect(dialog.get_by_label("Key")).to_have_attribute("type", "password")
    dialog.get_by_label("Key").fill("sesame")
    button(page, "Save").click()
    expect(dialog).to_have_count(0)
    talk(page, "你好")
    expect(messages(page)).to_have_text(["你好", "好"])
    page.reload()
    talk(page, "在吗")
    expect(messages(page)).to_have_text(["你好", "好", "在吗", "一"])
    expect(dialog).to_have_count(0)
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
    other = opened(url, within=page.context, expected="401")
    expect(other.get_by_role("dialog", name="This server asks for a key")).to_be_visible()


def test_a_key_that_is_not_given(opened: Opener, serve: Serve) -> None:
    page = opened(serve(Talker(["好"]), key="sesame").url, expected="401")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    say(page, "你好")
    dialog.get_by_label("Key").fill("sesame")
    button(page, "Save").click()
    expect(messages(page)).to_have_text(["你好", "好"])
    page.get_by_role("link", name="Model").click()
    expect(page.get_by_role("heading", name="tiny")).to_be_visible()


def test_a_table_waits_for_the_server(
    opened: Opener, serve: Serve, classifier: ClassifierThread
) -> None:
    """Of a long table nothing is lost when the server restarts."""
    page = opened(serve(classifier=classifier).url, path="/#sentiment", expected=REFUSED)
    table = "text\n" + "今天好好\n" * 100
    file = {"name": "a.csv", "mimeType": "text/csv", "buffer": table.encode()}
    expect(page.get_by_role("heading", name="Sentiment", level=1)).to_be_visible()
    page.locator("#file").set_input_files(file)  # type: ignore[arg-type]
    busy = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": None}}
    headers = {"Retry-After": "1"}
    page.route("**/v1/classify", lambda route: route.abort("connectionrefused"), times=1)
    page.route(
        "**/v1/classify",
        lambda route: route.fulfill(status=429, json=busy, headers=headers),
        times=1,
    )
    page.route("**/v1/classify", lambda route: route.continue_(), times=1)
    button(page, "Judge all").click()
    expect(page.get_by_text("Waiting for the server …")).to_be_visible()
    expect(page.get_by_text("100 texts judged.")).to_be_visible()
