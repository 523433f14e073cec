"""Paths that users name, those that are not there, and their folders; some have no home."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.utils.paths import can_make, named_path, nearest, not_found, user_folder
from tests.helpers.commands import refusal


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "config/demo.yaml",
        "data/chats.txt",
        "data/chats.csv",
        "data/.chats.tmp",
        "tests/x",
        "test/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "checkpoints" / "demo" / "cpt1200").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("config/dmeo.yaml", "config/demo.yaml"),
        ("config/demo.yml", "config/demo.yaml"),
        ("confg/demo", "config/demo.yaml"),
        ("data/chat.txt", "data/chats.txt"),
        ("data/Chats.CSV", "data/chats.csv"),
        ("chats.txt", "data/chats.txt"),
        ("checkpoints/demo/cpt1000", "checkpoints/demo/cpt1200"),
        ("demo/cpt1200", "checkpoints/demo/cpt1200"),
        ("data/reviews.csv", None),
        ("elsewhere/x", None),
        ("latest", None),
        ("best", None),
        ("data/chats.txt/x", None),
        ("x" * 300, None),
    ],
)
def test_the_nearest_path(typed: str, meant: str | None, folders: Path) -> None:
    assert nearest(Path(typed)) == (Path(meant) if meant else None)
    if meant and typed.startswith(meant[:4]):
        assert nearest(folders / typed) == folders / meant


def test_what_is_published_can_be_fetched() -> None:
    for path, name in (
        ("checkpoints/pretrained/cpt90M.pth", "pretrained-90M"),
        ("checkpoints/pretrained/cpt300M", "pretrained-300M"),
        ("data/ChnSentiCorp_htl_all.csv", "hotel-reviews"),
    ):
        error = not_found(Path(path), advice="or else")
        assert error.problem == f"{path} not found"
        assert f"fetch it: python -m smallgpt download {name}\n" in error.advice
    assert not_found(Path("data/new.txt"), "text ", "write it").advice == "write it"


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
    said = refusal(lambda: named_path("~/text.txt"))
    assert "this user has no home folder" in said and "write the path out" in said
    assert [str(named_path(name)) for name in ("text.txt", "~no-one/x")] == [
        "text.txt",
        "~no-one/x",
    ]


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
        (lambda: "", "'' is not a path"),
        (lambda: "a" * 5000, "File name too long"),
    ],
)
def test_what_is_no_path(named: Callable[[], str], said: str) -> None:
    assert said in refusal(lambda: named_path(named()))


def test_what_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert can_make(tmp_path / "a" / "b")
    assert not can_make(tmp_path / "file" / "b")
