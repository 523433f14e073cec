"""The >>> prompt: exact transcripts from a pipe, and typing on a (pseudo) terminal."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pexpect
import pytest

import smallgpt
from smallgpt.chat import terminal, words
from smallgpt.chat.chatbot import Chatbot
from smallgpt.chat.commands import RETRIES
from smallgpt.config import SamplingConfig
from smallgpt.data.dialogue_formats import read_dialogues
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


# Commands, as they are typed on a terminal.

ENGLISH, CHINESE = words.ENGLISH, words.CHINESE
Type = Callable[..., str]


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Talks line by line, as on a terminal; returns all that is shown."""

    def chat(bot: Chatbot, *lines: str, locale: str = "C.UTF-8") -> str:
        monkeypatch.setenv("LC_ALL", locale)
        monkeypatch.setattr(terminal, "_typed_lines", lambda: iter(lines))
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        terminal.chat(bot)
        return "".join(capsys.readouterr())

    return chat


@pytest.mark.parametrize(
    "line", ["/hlep", "/help me/", "／", "/", "//", "/早", "/exits", "/ret ry"]
)
def test_what_begins_with_a_slash_never_goes_to_the_model(typing: Type, line: str) -> None:
    bot = ScriptedBot(["好"])
    shown = typing(bot, line)
    assert bot.heard() == []
    assert ENGLISH.help in shown if line == "/help me/" else "(unknown command /" in shown


@pytest.mark.parametrize(
    "line", ["exit", "quit", "退出", "/exit", "/bye", "/QUIT", "/退出", "／exit now"]
)
def test_ways_to_leave(typing: Type, line: str) -> None:
    bot = ScriptedBot(["好"])
    typing(bot, "早", line, "晚")
    assert bot.heard() == ["早\n"]


def test_a_pipe_knows_none_of_them(pipe: Pipe) -> None:
    bot = ScriptedBot(["好"])
    lines = ["/bye", "quit", "退出", "/retry", "/set", "/hlep", "/save x", "/flush"]
    said, _ = pipe(bot, "".join(f"{line}\n" for line in lines).encode())
    assert said == "好\n" * len(lines)
    assert not Path("x").exists()


def test_retry_forgets_the_reply_it_replaces(typing: Type) -> None:
    bot = ScriptedBot(["早上好", "你好", "好"])
    shown = typing(bot, "/retry", "早", "/retry", "是", "/history")
    assert bot.heard() == ["早\n", "早\n", "早\n你好\n是\n"]
    assert "you: 早\nmodel: 你好\nyou: 是\nmodel: 好\n" in shown
    assert shown.count(ENGLISH.nothing_said) == 1


def test_set_shows_changes_and_refuses(typing: Type, trained: Path) -> None:
    bot = smallgpt.load(trained)
    shown = typing(bot, "早上好呀", "/set max_new_tokens=2", "/retry", "/set top_p 0.5", "/set")
    assert shown.startswith("早上好！睡得好吗？\n早上\n")
    assert shown.count("  max_new_tokens 2\n") == 3 and shown.count("  top_p 0.5\n") == 2
    shown = typing(
        bot, "/set temperature -1", "/set temprature 1", "/set top_k", "/set x=", "/set =", "/set"
    )
    assert "temperature is '-1'; it must be a number of at least 0" in shown
    assert "(unknown key temprature; can be set: temperature, top_k, " in shown
    assert ENGLISH.usage.format("/set top_k 0") in shown
    assert "  temperature 0.0\n" in shown and "  top_k 0\n" in shown
    shown = typing(
        bot, "／set　temperature　０.８", "/SET top_k＝3"
    )  # as an input method writes it
    assert "  temperature 0.8\n" in shown and "  top_k 3\n" in shown


def test_what_is_saved_is_loaded_again_and_is_data(typing: Type, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    bot = ScriptedBot(["早上好", "你好"])
    shown = typing(bot, "早", "/save", f"/save {file}", "晚安", f"/save {file}")
    assert shown.count("(conversation saved") == 1
    assert ENGLISH.exists.format(file) in shown
    assert list(read_dialogues(file)) == [["早", "早上好"]]
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    other = ScriptedBot(["好"])
    typing(other, "今天", f"/load '{file}'", "是")
    assert other.heard()[1:] == ["早\n早上好\n是\n"]


@pytest.mark.parametrize("target", ["", "no/folder/x", "link", "a" * 300, "a\0b"])
def test_nothing_is_saved_where_it_cannot_be(typing: Type, tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    shown = typing(ScriptedBot(["好"]), "早", f"/save {tmp_path / target}", "早")
    assert "cannot be" in shown or "is there already" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"\x80\x04cos\nsystem\n.", b"{}", b"5", b"null", b'"a"', b"[1]"),
        *(b"[" * 100_000, b'{"messages": {}}', b'[{"role": "system", "content": "a"}]'),
        b'[{"role": "user", "content": "a"}]',
    ],
)
def test_garbage_is_not_loaded_and_changes_nothing(
    typing: Type, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "talk.json"
    file.write_bytes(content)
    bot = ScriptedBot(["好"])
    shown = typing(bot, "早", f"/load {file}", f"/load {tmp_path}", "/load /dev/zero", "晚")
    assert shown.count("cannot be read as a conversation") == 3
    assert bot.heard() == ["早\n", "早\n好\n晚\n"]


@pytest.mark.parametrize(
    ("locale", "warns"), [("C.UTF-8", "is no help in a crisis"), ("zh_CN.UTF-8", "12356")]
)
def test_a_model_with_a_card_warns(
    typing: Type, trained_copy: Path, locale: str, warns: str
) -> None:
    assert warns not in typing(smallgpt.load(trained_copy), "exit", locale=locale)
    (trained_copy / "README.md").touch()
    shown = typing(smallgpt.load(trained_copy), "exit", locale=locale)
    assert warns in shown and str(trained_copy / "README.md") in shown


def test_a_loaded_conversation_cannot_steer_the_terminal(typing: Type, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    messages = [("user", "\x1b[2J早"), ("assistant", "\x07好")]
    text = json.dumps([{"role": role, "content": text} for role, text in messages])
    file.write_text(text, encoding="utf-8")
    shown = typing(ScriptedBot(["好"]), f"/load {file}", "/history", "/\x1b[2J")
    assert "you: \ufffd[2J早\nmodel: \ufffd好\n" in shown and "\x1b" not in shown


def test_several_lines_are_one_message(typing: Type) -> None:
    bot = ScriptedBot(["好"])
    shown = typing(bot, "早上\r\n好\n\n你\n", "早\n", "\n", "/flush\n")
    assert bot.heard() == ["早上 好  你\n", "早上 好  你\n好\n早\n"]
    assert shown.count("(the 4 lines were taken as one message)") == 1
    assert ENGLISH.nothing_typed in shown and ENGLISH.forgotten in shown


@pytest.mark.parametrize("locale", ["zh_CN.UTF-8", "zh_TW", "C.UTF-8", "en_US.UTF-8"])
def test_the_language_of_the_locale(typing: Type, trained: Path, locale: str) -> None:
    shown = typing(smallgpt.load(trained), "/help", "早上好呀", "/x", locale=locale)
    say, other = (CHINESE, ENGLISH) if locale.startswith("zh") else (ENGLISH, CHINESE)
    assert say.help in shown and say.welcome in shown and say.unknown.format("/x") in shown
    assert other.help not in shown and other.welcome not in shown
    assert str(trained) in shown and "float32" in shown and "CPU" in shown
    assert ("没有系统提示词" if say is CHINESE else "There is no system prompt") in shown


def test_all_that_the_chat_says_is_chinese(typing: Type, trained: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "talk.json"
    wrong.write_text('[{"role": "system", "content": "a"}]', "utf-8")
    lines = ("/set lr 3", "/set top_p 2", "/set top_p", f"/load {wrong}", f"/save {'a' * 999}")
    typed = ("/retry", *lines, "/load", "/帮助", "早上好呀", "/retry", "/history", "flush")
    shown = typing(smallgpt.load(trained), *typed, locale="zh_CN.UTF-8")
    said = shown.partition(CHINESE.welcome)[2].replace(CHINESE.help, "").replace(str(wrong), "")
    assert list(CHINESE.limits) == [field.name for field in fields(SamplingConfig)]
    for name in CHINESE.limits:
        assert name in said
        said = said.replace(name, "")
    for name in ("/set", "/load", "/help", "/history", "talk.json", "exit", "flush", "lr", "JSON"):
        said = said.replace(name, "")
    said = re.sub(r"^ .*", "", said, flags=re.MULTILINE)  # keys and their values
    assert not re.findall(r"[a-zA-Z,:;()]", said)
    assert (
        "（top_p 不能设为 2；应为大于 0、不大于 1 的数）" in shown and "\n你：早上好呀\n" in shown
    )
    assert CHINESE.help in shown


def test_retry_draws_until_the_reply_is_another(typing: Type) -> None:
    bot = ScriptedBot(["早上好", "早上好", "早上好", "早", "你好"])
    shown = typing(bot, "早", "/retry", "/retry", "/history")
    assert "早上好\n早\n你好\n" in shown and shown.endswith("you: 早\nmodel: 你好\n")
    assert ENGLISH.same_again not in shown
    same = ScriptedBot(["好"])
    shown = typing(same, "早", "/retry", "/history")
    assert shown.startswith("好\n好\n") and ENGLISH.same_again in shown
    assert shown.endswith("you: 早\nmodel: 好\n") and len(same.heard()) == 1 + RETRIES


def test_the_environment_says_which_language(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert words.of_locale() is ENGLISH
    for name, language in (("LANG", "zh_CN.UTF-8"), ("LC_MESSAGES", "en_US"), ("LC_ALL", "zh_SG")):
        monkeypatch.setenv(name, language)
        assert words.of_locale() is (CHINESE if language.startswith("zh") else ENGLISH)


def test_lines_are_remembered_in_a_private_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    terminal._history().append_string("早上好\n你好")
    file = tmp_path / "smallgpt" / "chat_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(terminal._history().load_history_strings()) == ["早上好\n你好"]
    history = terminal._history()
    file.unlink()
    file.mkdir()  # from now on it cannot be written: the talk goes on
    history.append_string("晚安")
    for place in ("/dev/null", str(file)):
        monkeypatch.setenv("XDG_STATE_HOME", place)
        terminal._history().append_string("晚安")


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


def terminal_environment(folder: Path, term: str = "xterm") -> dict[str, str]:
    own = {"TERM": term, "XDG_STATE_HOME": str(folder / "state"), "LC_ALL": "C.UTF-8"}
    own |= {"PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONIOENCODING": "utf-8"}
    return python_environment() | own


# Python 3.12 on pty.fork
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def spawned(folder: Path, term: str) -> contextlib.closing[Any]:
    """The driver on a terminal of this kind; replies need not wait."""
    (folder / "go on").touch()
    person = pexpect.spawn(
        sys.executable,
        ["-c", DRIVER, str(folder / "go on")],
        env=terminal_environment(folder, term),
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 80),
    )
    return contextlib.closing(person)


def wait_for_prompt(person: Any) -> None:
    person.expect_exact(">>>")
    person.expect_exact("\x1b[?25h")  # prompt_toolkit shows the cursor: it listens


@forks
def test_typing_streaming_control_c_and_control_d(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    with spawned(tmp_path, "xterm") as person:
        go_on.unlink()
        person.expect_exact("/help explains.")
        wait_for_prompt(person)
        person.send("你\x7f早错\x7f上\r")  # backspace takes away a whole wide character
        person.expect_exact("早上好")  # replies are streamed: the rest waits for the file
        go_on.touch()
        person.expect_exact("呀！\r\n")
        go_on.unlink()
        wait_for_prompt(person)
        person.send("早\r")
        person.expect_exact("你好" * 3)
        person.send("\x03")  # stops the reply
        wait_for_prompt(person)
        person.send("错\x03")  # clears the line
        wait_for_prompt(person)
        go_on.touch()
        person.send("晚\r")
        person.expect_exact("早上好呀！\r\n")
        wait_for_prompt(person)
        person.send("\x04")
        # What was said before Ctrl-C stays in mind, as the bot's whole turn.
        turns = ["早上\\n", "早上好呀！\\n早\\n", "你好你好你好\\n晚\\n"]
        heard = ["".join(turns[: n + 1]) for n in range(3)]
        person.expect_exact(f"HEARD {heard}".replace("\\\\", "\\"))
        person.expect_exact(pexpect.EOF)
    assert person.exitstatus == 0


@forks
def test_pasting_and_lines_of_earlier_times(tmp_path: Path) -> None:
    history = tmp_path / "state" / "smallgpt" / "chat_history"
    history.parent.mkdir(parents=True)
    history.write_text("\n# earlier\n+是的\n", encoding="utf-8")
    with spawned(tmp_path, "xterm") as person:
        wait_for_prompt(person)
        person.send("\x1b[200~早上\n好\x1b[201~\r")
        person.expect_exact("(the 2 lines were taken as one message)")
        wait_for_prompt(person)
        person.send("\x1b[A" * 3 + "\r")  # over both lines of the paste
        person.expect_exact("你好你好你好你好")
        wait_for_prompt(person)
        person.send("/bye\r")
        person.expect_exact("早上 好\\n早上好呀！\\n是的\\n']")
        person.expect_exact(pexpect.EOF)
    assert person.exitstatus == 0
    assert "+早上\n+好\n" in history.read_text("utf-8")


@forks
def test_a_dumb_terminal(tmp_path: Path) -> None:
    with spawned(tmp_path, "dumb") as person:
        person.expect_exact(">>> ")
        person.send("早\r")
        person.expect_exact("\n早上好呀！\r\n>>> ")
        person.send("错\x03")
        person.expect_exact("\n>>> ")
        person.send("/bye\r")
        person.expect_exact("HEARD ['早\\n']")
        person.expect_exact(pexpect.EOF)
    assert person.exitstatus == 0
