"""Paths that users name, and their folders; some users have no home."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.utils.paths import named_path
from smallgpt.utils.places import can_make, user_folder
from tests.helpers.commands import refusal


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's number without a name, as containers give it."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home() -> None:
    assert user_folder("XDG_CACHE_HOME") is None
    assert "this user has no home folder" in refusal(lambda: named_path("~/text.txt"))
    assert named_path("text.txt") == Path("text.txt")


def test_the_folders_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert user_folder("XDG_CACHE_HOME") == tmp_path / ".cache" / "smallgpt"
    assert user_folder("XDG_STATE_HOME") == tmp_path / "state" / "smallgpt"
    assert named_path("~/text.txt") == tmp_path / "text.txt"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (lambda: None, "None is not a path"),
        (lambda: b"text.txt", "is not a path"),
        (lambda: "a" * 5000, "File name too long"),
    ],
)
def test_what_is_no_path(named: Callable[[], str], said: str) -> None:
    assert said in refusal(lambda: named_path(named()))


def test_what_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert can_make(tmp_path / "a" / "b")
    assert not can_make(tmp_path / "file" / "b")
