"""The >>> prompt: exact transcripts from a pipe, and typing on a (pseudo) terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

import smallgpt
from smallgpt.chat import terminal
from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import SamplingConfig
from tests.helpers.models import ScriptedBot
from tests.helpers.processes import python_environment

Pipe = Callable[[Chatbot, bytes], tuple[str, str]]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pipe:
    """Chats through a pipe; returns what standard output and standard error got."""

    def chat(bot: Chatbot, typed: bytes) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "ascii"))
        terminal.chat(bot)
        return capsys.readouterr()

    return chat


def test_a_transcript(pipe: Pipe) -> None:
    bot = ScriptedBot(["早上好！", "好呀", "你好", "晚安"])
    typed = "早\n\n  \n /help \n我好 a\nflush\n你是\nexit\n不是\n"
    said, notes = pipe(bot, typed.encode())
    assert said == "早上好！\n好呀\n你好\n"
    empty = "(nothing typed; /help explains)\n"
    expected = ["", empty, empty, terminal.HELP + "\n", "", "(conversation forgotten)\n", "", ""]
    assert notes == "".join(">>> " + note for note in expected)
    assert bot.heard() == ["早\n", "早\n早上好！\n我好 a\n", "你是\n"]


@pytest.mark.parametrize(
    ("typed", "heard"),
    [
        ("早\n晚\n", ["早\n", "早\n好\n晚\n"]),
        ("早\r\n晚\r\n", ["早\n", "早\n好\n晚\n"]),
        ("早\n晚", ["早\n", "早\n好\n晚\n"]),  # no newline at the end
        ("早\r晚", ["早 晚\n"]),
        ("早\x0b\x85晚\u2028\n", ["早\ufffd\ufffd晚\n"]),  # no other line ends
        ("exit now\n", ["e\ufffd\ufffd\ufffd \ufffd\ufffd\ufffd\n"]),
        ("", []),
        ("\n", []),
    ],
)
def test_lines(pipe: Pipe, typed: str, heard: list[str]) -> None:
    bot = ScriptedBot(["好"])
    said, notes = pipe(bot, typed.encode())
    assert said == "好\n" * len(heard)
    assert bot.heard() == heard
    assert notes.endswith(">>> \n")  # the end of input ends the line of the prompt


@pytest.mark.parametrize("typed", [b"\xff\xfe\n", b"\xe4\xbd\n", b"\x00\x1b[2J\n", b"\xed\xa0\x80"])
def test_bytes_that_are_no_text(pipe: Pipe, typed: bytes) -> None:
    bot = ScriptedBot(["好"])
    said, _ = pipe(bot, typed + b"\n\xe6\x97\xa9\n")
    assert said == "好\n好\n"
    assert bot.heard()[1].endswith("\n好\n早\n")


def test_a_prompt_that_is_too_long(pipe: Pipe) -> None:
    said, notes = pipe(ScriptedBot(["好"]), "早".encode() * 100_000)
    assert said == "好\n"
    note = "(too long for the model: the first 99,979 characters were left out)"
    assert notes == f">>> {note}\n>>> \n"


def test_replies_are_single_lines(pipe: Pipe, trained: Path) -> None:
    wild = SamplingConfig(temperature=9.0, top_p=1.0, max_new_tokens=9)
    prompts = "".join(f"{i}\n" for i in range(30))
    said, _ = pipe(smallgpt.load(trained, wild), prompts.encode())
    lines = said.split("\n")
    assert len(lines) == 31 and lines[30] == ""
    assert all(line and line.isprintable() for line in lines[:30])


def test_control_c_ends_a_pipe(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    bot = ScriptedBot(["好"])

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bot.script, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe(bot, "早\n晚\n".encode())


# On a terminal. The driver tells at the end what the bot has heard.
DRIVER = """
import pathlib, sys, time
from tests.helpers.models import ScriptedBot
from smallgpt.chat import terminal
from smallgpt.utils.errors import user_errors
def pause(left):
    while left == 3 and not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.01)
bot = ScriptedBot(["早上好呀！", "你好" * 4])
bot.script.pause = pause
with user_errors():
    terminal.chat(bot)
print("HEARD", bot.heard())
"""


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"  # Python 3.12 on pty.fork
)
def test_typing_streaming_control_c_and_control_d(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    person = pexpect.spawn(
        sys.executable,
        ["-c", DRIVER, str(go_on)],
        env=python_environment()
        | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 80),
    )

    def wait_for_prompt() -> None:
        person.expect_exact(">>>")
        person.expect_exact("\x1b[?25h")  # prompt_toolkit shows the cursor: it listens

    with contextlib.closing(person):
        person.expect_exact("/help explains.")
        wait_for_prompt()
        person.send("你\x7f早错\x7f上\r")  # backspace takes away a whole wide character
        person.expect_exact("早上好")  # replies are streamed: the rest waits for the file
        go_on.touch()
        person.expect_exact("呀！\r\n")
        go_on.unlink()
        wait_for_prompt()
        person.send("早\r")
        person.expect_exact("你好" * 3)
        person.send("\x03")  # stops the reply
        wait_for_prompt()
        person.send("错\x03")  # clears the line
        wait_for_prompt()
        go_on.touch()
        person.send("晚\r")
        person.expect_exact("早上好呀！\r\n")
        wait_for_prompt()
        person.send("\x04")
        # What was said before Ctrl-C stays in mind, as the bot's whole turn.
        turns = ["早上\\n", "早上好呀！\\n早\\n", "你好你好你好\\n晚\\n"]
        heard = ["".join(turns[: n + 1]) for n in range(3)]
        person.expect_exact(f"HEARD {heard}".replace("\\\\", "\\"))
        person.expect_exact(pexpect.EOF)
    assert person.exitstatus == 0
