"""What is said of a path that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallgpt.utils.paths import nearest, not_found, without_tilde
from tests.helpers.commands import refusal


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("config/demo.yaml", "data/chats.txt", "data/chats.csv", "data/.chats.tmp"):
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


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert "write the path out" in refusal(lambda: without_tilde("~/x"))
    assert without_tilde("~nobody/x") == "~nobody/x"
