"""The way of docs/your-own-bot.md, from a chat export to a served bot (`make own-bot`).

    python -m tools.own_bot [key=value ...]

The commands are the page's own: the indented ones, in its order. The keys go to train.py. At the
end stands how long each step took.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from smallgpt.utils.errors import UserError, note, user_errors

PAGE = Path("docs/your-own-bot.md")
FOLDERS = (Path("data/own-bot"), Path("checkpoints/own-bot"))
"""What the page's commands write is in them."""
MARK = ".by-make-own-bot"
"""In a folder that may be deleted, to begin anew."""
TYPED = "在干嘛呢\n你家的猫叫什么名字\n你最喜欢什么花\nexit\n"
"""What is said in chat.py."""
PATIENCE = 120.0  # seconds for a reply of the server

Run = Callable[[Sequence[str], str], None]
Serve = Callable[[Sequence[str]], AbstractContextManager[str]]


def steps(page: Path) -> list[tuple[list[str], list[str]]]:
    """The commands of a page as words; with `serve` the words of the curl that follows it."""
    text = re.sub(r"\\\n\s*", "", page.read_text("utf-8"))
    found: list[tuple[list[str], list[str]]] = []
    for words in map(shlex.split, re.findall(r"^    ((?:python|curl) .+)$", text, re.MULTILINE)):
        if words[0] == "curl":
            found[-1][1].extend(words)
        else:
            found.append((words, []))
    return found


def in_a_process(words: Sequence[str], typed: str) -> None:
    """Run a command to its end; if it fails, so does this program, with its exit code."""
    command = [sys.executable, *words[1:]]
    done = subprocess.run(command, input=typed, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


@contextmanager
def in_the_background(words: Sequence[str]) -> Iterator[str]:
    """Serve on a free port until the end of the block; the address."""
    command = [sys.executable, *words[1:], "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise UserError("the server did not start", "it says above why")
            yield line.split()[-1]
        finally:
            process.terminate()


def ask(url: str, curl: Sequence[str]) -> str:
    """What the server at `url` replies to the request of a curl command."""
    path = urlsplit(next(word for word in curl if word.startswith("http:"))).path
    body = curl[curl.index("-d") + 1].encode()
    request = Request(url + path, body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def begin_anew() -> None:
    """Make the folders empty.

    Raises:
        UserError: one of them holds something that another command made.
    """
    for folder in FOLDERS:
        if folder.exists() and not (folder / MARK).exists():
            raise UserError(f"{folder} was not made by make own-bot", "rename or delete it")
    for folder in FOLDERS:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARK).touch()


def main(
    keys: Sequence[str], run: Run = in_a_process, serve: Serve = in_the_background
) -> dict[str, float]:
    """Take all steps; the seconds of each, by the name of its command."""
    begin_anew()
    seconds: dict[str, float] = {}
    way = steps(PAGE)
    for number, (words, curl) in enumerate(way, 1):
        note(f"\nstep {number} of {len(way)}: {shlex.join(words)}")
        start = time.monotonic()
        if curl:
            with serve(words) as url:
                note(f"asked there: {shlex.join(curl)}")
                print(ask(url, curl), flush=True)
        else:
            typed = TYPED if "chat.py" in words else ""
            run([*words, *(keys if "train.py" in words else [])], typed)
        name = re.sub(r"python |-m smallgpt ", "", shlex.join(words))
        name = " ".join(name.split()[: 2 if name.startswith("data") else 1])
        seconds[name] = time.monotonic() - start
    print("\n".join(["", *(f"{took:8.1f} s  {name}" for name, took in seconds.items())]))
    note(f"\nthe bot is in {FOLDERS[1]}: chat with it, or serve it, by the commands above")
    return seconds


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
