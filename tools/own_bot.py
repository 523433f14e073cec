"""The steps of docs/your-own-bot.md, from a chat export to a served bot (`make own-bot`).

    python -m tools.own_bot [key=value ...]

The commands are the page's own: the indented ones, in its order. The keys go to train.py. At the
end stands how long each step took.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from smallgpt.utils.errors import UserError, note, user_errors

PAGE = Path("docs/your-own-bot.md")
FOLDERS = (Path("data/own-bot"), Path("checkpoints/own-bot"))
"""What the page's commands write is in them."""
MARK = ".by-make-own-bot"
"""In a folder that may be deleted, to begin anew."""
SAID = ("你叫什么名字", "年糕呢", "打烊了没")
"""To the bot, in chat.py."""
PATIENCE = 120.0  # seconds for a reply of the server

Run = Callable[[Sequence[str], str], None]


class Step(NamedTuple):
    """A command of the page; and behind `serve` the curl command that asks the server."""

    command: str
    question: str = ""

    def name(self) -> str:
        """Short, for the table: data convert, train.py …"""
        words = self.command.removeprefix("python ").removeprefix("-m smallgpt ").split()
        return " ".join(words[: 2 if words[0] == "data" else 1])


def steps(page: Path) -> list[Step]:
    """The commands that a page indents, in its order."""
    text = re.sub(r"\\\n\s*", "", page.read_text("utf-8"))
    found: list[Step] = []
    for command in re.findall(r"^    ((?:python|curl) .+)$", text, re.MULTILINE):
        if command.startswith("curl "):
            found[-1] = found[-1]._replace(question=command)
        else:
            found.append(Step(command))
    return found


def in_a_process(words: Sequence[str], typed: str) -> None:
    """Run a command to its end; if it fails, so does this program, with its exit code."""
    done = subprocess.run([sys.executable, *words[1:]], input=typed, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


@contextmanager
def in_the_background(words: Sequence[str]) -> Iterator[str]:
    """Serve on a free port until the end of the block; the address."""
    command = [sys.executable, *words[1:], "--no-browser", "--port", "0"]
    # Without a key of the user's: the page's question has none.
    variables = {k: v for k, v in os.environ.items() if k != "SMALLGPT_API_KEY"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", env=variables
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise UserError("the server did not start", "it says above why")
            yield line.split()[-1]
        finally:
            process.terminate()


def ask(url: str, question: str) -> str:
    """What the server at `url` replies to the request of a curl command."""
    curl = shlex.split(question)
    path = urlsplit(next(word for word in curl if word.startswith("http:"))).path
    body = curl[curl.index("-d") + 1].encode()
    request = Request(url + path, body, {"Content-Type": "application/json"})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])
    except OSError as error:
        raise UserError(f"the server did not answer: {error}", "ask it by hand, step 7") from None


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


def main(keys: Sequence[str], run: Run = in_a_process) -> dict[str, float]:
    """Take all steps; the seconds of each, by the name of its command."""
    begin_anew()
    seconds: dict[str, float] = {}
    all_steps = steps(PAGE)
    for number, step in enumerate(all_steps, 1):
        command = step.command
        if step.name() == "train.py" and keys:
            command = f"{command} {shlex.join(keys)}"
        note(f"\nstep {number} of {len(all_steps)}: {command}")
        start = time.monotonic()
        if step.question:
            with in_the_background(shlex.split(command)) as url:
                note(f"asked there: {step.question}")
                print(ask(url, step.question), flush=True)
        elif step.name() == "chat.py":
            note(f"said there: {' / '.join(SAID)}")
            run(shlex.split(command), "\n".join([*SAID, "exit\n"]))
        else:
            run(shlex.split(command), "")
        seconds[step.name()] = time.monotonic() - start
    print("\n".join(["", *(f"{took:8.1f} s  {name}" for name, took in seconds.items())]))
    note(f"\nthe bot is in {FOLDERS[1]}: chat with it, or serve it, by the commands above")
    return seconds


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
