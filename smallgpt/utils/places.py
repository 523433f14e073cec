"""Where a user's own files lie."""

import os
from pathlib import Path
from typing import Literal

_BELOW_HOME = {"XDG_CACHE_HOME": ".cache", "XDG_STATE_HOME": ".local/state"}


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
