"""The README's pictures of the page, from an actual run (`make page-pictures`).

    python -m tools.page_pictures checkpoints/demo checkpoints/sentimental_demo docs/pictures

page_chat.png        a talk with the model
page_sentiment.png   two reviews, judged; labels such as 正面 come from `label_map` in its training
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PROMPTS = ("早上好呀", "我叫小明", "今天天气真好", "你还记得我叫什么吗")
REVIEWS = (
    "房间很干净，前台服务也热情，离地铁站走路五分钟，下次还会住。",
    "隔音太差，半夜一直听到隔壁说话，空调也坏了，不会再来了。",
)
SIZE = {"width": 1000, "height": 740}
COLOURS = 256


def main(run: Path, classifier: Path, output: Path) -> None:
    """Serve both models and draw the pictures into `output`."""
    with serving(run, classifier) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(os.environ.get("CHROMIUM", "chromium")),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport=SIZE, locale="en-US")  # type: ignore[arg-type]
        page.goto(url)
        chat(page)
        save(page, output / "page_chat.png")
        page.get_by_role("link", name="Sentiment").click()
        judge(page)
        save(page, output / "page_sentiment.png")
        browser.close()


@contextmanager
def serving(run: Path, classifier: Path) -> Iterator[str]:
    """`smallgpt serve` on a free port; its address."""
    command = [sys.executable, "-m", "smallgpt", "serve", str(run), "--classifier", str(classifier)]
    command += ["--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the server did not start")
        try:
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)


def chat(page: Page) -> None:
    """Say all prompts."""
    for count, prompt in enumerate(PROMPTS, start=1):
        page.get_by_role("textbox", name="Message").fill(prompt)
        page.get_by_role("button", name="Send").click()
        page.locator(".message.assistant .note").nth(count - 1).wait_for()


def judge(page: Page) -> None:
    """Judge all reviews."""
    page.get_by_role("textbox", name="Text to judge").fill("\n".join(REVIEWS))
    page.get_by_label("One text a line").check()
    page.get_by_role("button", name="Judge", exact=True).click()
    page.locator(".verdict").nth(len(REVIEWS) - 1).wait_for()


def save(page: Page, path: Path) -> None:
    """A picture with a palette, which takes half the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    palette = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    palette.save(path, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
