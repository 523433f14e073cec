"""Paths as users name them, with `~` and perhaps misspelt; and where their own files lie."""

import difflib
import os
from itertools import islice
from pathlib import Path
from typing import Literal

from smallgpt.utils.errors import UserError
from smallgpt.utils.published import ASSETS

ALIKE = 0.75
"""How much of a name must agree (difflib's ratio), its first letter too, for it to be meant."""
USUAL_FOLDERS = (Path(), Path("config"), Path("data"), Path("checkpoints"))
MOST_NAMES = 5000
"""Of a folder are compared at most."""
_BELOW_HOME = {"XDG_CACHE_HOME": ".cache", "XDG_STATE_HOME": ".local/state"}


def without_tilde(path: str) -> str:
    """A path whose `~` is the home folder: in `key=~/x` and in YAML no shell puts it there.

    Raises:
        UserError: this user has no home folder. (`~name` of nobody is a name like any other.)
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        if path.split("/")[0] != "~":
            return path
        raise UserError(f"{path}: this user has no home folder", "write the path out") from None


def named_path(named: str | os.PathLike[str]) -> Path:
    """The path that a caller names.

    Raises:
        UserError: it is no path at all, is too long, or this user has no home folder.
    """
    if not isinstance(named, str | os.PathLike) or named == "":
        raise UserError(f"{named!r} is not a path", "give text, or a pathlib.Path")
    try:
        path = Path(without_tilde(os.fspath(named)))
        path.exists()
        return path
    except OSError as error:
        raise UserError(f"{str(named)[:60]} … cannot be looked at: {error.strerror}") from None


def exists(path: Path) -> bool:
    """Whether it is there; a name that is too long is not."""
    try:
        return path.exists()
    except OSError:
        return False


def not_found(
    path: Path, what: str = "", advice: str = "", suffixes: tuple[str, ...] = ()
) -> UserError:
    """The error that `path` is not found, with the nearest path there is and how to fetch it.

    Args:
        what: goes before the path, such as "checkpoint ".
        advice: what else may help.
        suffixes: of the files in its folder that may be meant, however they are called.
    """
    near = nearest(path) or _most_alike(path, suffixes)
    targets = {name: Path(asset.target) for name, asset in ASSETS.items()}
    fetched = [name for name, target in targets.items() if path.name in (target.name, target.stem)]
    hints = [
        *([f"did you mean {near}?"] if near else []),
        *(f"fetch it: python -m smallgpt download {name}" for name in fetched),
        *([advice] if advice else []),
    ]
    return UserError(f"{what}{path} not found", "\n     or ".join(hints))


def nearest(path: Path) -> Path | None:
    """The path that is there and spelt most like `path`, which is not; None where none is."""
    folders = (path.anchor,) if path.is_absolute() else USUAL_FOLDERS
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for folder in map(Path, folders):
        found: Path | None = folder
        for part in parts:
            found = found and _nearest_in(found, part)
        if found and found != folder:
            return found
    return None


def _nearest_in(folder: Path, name: str) -> Path | None:
    if exists(folder / name):
        return folder / name
    try:
        names = [p.name for p in islice(folder.iterdir(), MOST_NAMES) if not p.name.startswith(".")]
    except OSError:
        return None
    alike = [other for other in names if _likeness(Path(other).stem, Path(name).stem) >= ALIKE]
    return folder / max(alike, key=lambda other: _likeness(other, name)) if alike else None


def _most_alike(path: Path, suffixes: tuple[str, ...]) -> Path | None:
    """The file beside `path` that is spelt most like it, of those that end so."""
    try:
        beside = [p for p in islice(path.parent.iterdir(), MOST_NAMES) if p.is_file()]
    except OSError:
        return None
    ours = [p for p in beside if p.name.endswith(suffixes) and p.name[:1] != "."]
    ours = [p for p in ours if not p.name.startswith("requirements")]  # pip's
    return max(
        sorted(ours),
        key=lambda p: difflib.SequenceMatcher(None, p.name, path.name).ratio(),
        default=None,
    )


def _likeness(one: str, other: str) -> float:
    one, other = one.casefold(), other.casefold()
    return difflib.SequenceMatcher(None, one, other).ratio() if one[:1] == other[:1] else 0.0


def user_folder(variable: Literal["XDG_CACHE_HOME", "XDG_STATE_HOME"]) -> Path | None:
    """Our folder for cached files, or for what is remembered between starts.

    None where the user has no home, as a number without a name in a container.
    """
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / _BELOW_HOME[variable]
        except RuntimeError:
            return None
    return base / "smallgpt"


def can_make(path: Path) -> bool:
    """Whether `path`, which need not be there yet, can be written by this user."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)
