"""Paths as users name them: with `~`, and perhaps misspelt."""

import difflib
from itertools import islice
from pathlib import Path

from smallgpt.utils.errors import UserError
from smallgpt.utils.published import ASSETS

ALIKE = 0.7
"""How much of a name must agree (difflib's ratio) for it to be what a user meant."""
USUAL_FOLDERS = (Path(), Path("config"), Path("data"), Path("checkpoints"))
MOST_NAMES = 5000
"""Of a folder are compared at most."""


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


def exists(path: Path) -> bool:
    """Whether it is there; what cannot be the name of anything is not."""
    try:
        return path.exists()
    except OSError:  # its name is too long
        return False


def not_found(path: Path, what: str = "", advice: str = "") -> UserError:
    """The error that `path` is not found, with the nearest path there is and how to fetch it.

    Args:
        what: goes before the path, such as "checkpoint ".
        advice: what else may help.
    """
    near = nearest(path)
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
    scored = [(_likeness(Path(other).stem, Path(name).stem), other) for other in names]
    alike = [other for score, other in scored if score >= ALIKE]
    return folder / max(alike, key=lambda other: _likeness(other, name)) if alike else None


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio()
