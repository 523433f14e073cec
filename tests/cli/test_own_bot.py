"""docs/your-own-bot.md: its whole way, as `make own-bot` takes it, with a tiny model."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallgpt import UserError
from tests.helpers.commands import python_here, refusal, smallgpt
from tests.helpers.processes import REPOSITORY
from tools import own_bot

PAGES = (REPOSITORY / own_bot.PAGE, REPOSITORY / own_bot.PAGE.with_suffix(".zh-CN.md"))
EXAMPLE = REPOSITORY / "docs" / "your-own-bot" / "wechat.txt"
TINY = (
    "max_steps=2",
    "mix_path=",
    "eval_freq=1",
    "train_batch=2",
    "tensorboard_path=",
    "device=cpu",
)
NAMES = [
    "data convert",
    "data split",
    "data smalltalk",
    "train.py",
    "chat.py",
    "evaluate",
    "convert",
    "serve",
]


def indented(page: Path) -> list[str]:
    """All that a page shows to be typed."""
    return re.findall(r"^    .*$", page.read_text("utf-8"), re.MULTILINE)


def test_both_pages_have_the_same_commands_and_show_what_the_first_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert indented(PAGES[0]) == indented(PAGES[1])
    shown = [re.findall(r"```\n(.*?)```", page.read_text("utf-8"), re.DOTALL) for page in PAGES]
    assert shown[0] == shown[1]
    block = shown[0][0]
    first, *_ = own_bot.steps(PAGES[0])
    words = shlex.split(first.command)[3:-1]
    said = smallgpt(*words, tmp_path / "chats.txt").output
    assert set(block.splitlines()) <= set(said.splitlines())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page needs, in which the test runs."""
    for name in ("train.py", "chat.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    shutil.copytree(EXAMPLE.parent, tmp_path / "docs" / "your-own-bot")
    shutil.copy(PAGES[0], tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_way_and_from_the_beginning_again(
    place: Path,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(words: Sequence[str], typed: str) -> None:
        arguments = [str(trained) if word == "box" else word for word in words[1:]]
        if "evaluate" in arguments:
            arguments += ["--pairs", "2", "--replies", "2"]
        done = python_here(place, *arguments, typed=typed)
        assert done.exit_code == 0, done.output
        if "chat.py" in arguments:
            assert len(done.stdout.splitlines()) == len(own_bot.SAID)

    # The server is a process of its own.
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("SMALLGPT_API_KEY", "secret")
    seconds = own_bot.main([f"base_model={trained}", *TINY], run)
    reply, *table = capsys.readouterr().out.strip().splitlines()
    assert reply
    assert list(seconds) == NAMES == [line.split(" s  ")[1] for line in table if line]
    texts, bot = own_bot.FOLDERS
    assert "我叫小禾" in (texts / "smalltalk.txt").read_text("utf-8")
    chats, *parts = ((texts / f"{p}.txt").read_text("utf-8") for p in ("chats", "train", "test"))
    assert "\n\n".join(part.strip() for part in parts) == chats.strip()
    assert (bot / "own-bot.gguf").stat().st_size > 0
    own_bot.begin_anew()
    assert [path.name for folder in own_bot.FOLDERS for path in folder.iterdir()] == [
        own_bot.MARK
    ] * 2


def test_a_folder_of_the_user_is_left_alone(place: Path) -> None:
    mine = place / "checkpoints" / "own-bot" / "cpt1"
    mine.mkdir(parents=True)
    assert "checkpoints/own-bot was not made by make own-bot" in refusal(own_bot.begin_anew)
    assert mine.exists() and not (place / "data").exists()


def test_a_command_that_fails_ends_the_way_with_its_exit_code(place: Path) -> None:
    with pytest.raises(SystemExit) as end:
        own_bot.in_a_process(["python", "-c", "raise SystemExit(3)"], "")
    assert end.value.code == 3
    with pytest.raises(UserError), own_bot.in_the_background(["python", "-c", "pass"]):
        pass
