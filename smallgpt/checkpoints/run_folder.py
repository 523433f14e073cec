"""The folder of a run: which checkpoints it has, the best of them, and which are kept."""

import json
import math
import re
from contextlib import suppress
from pathlib import Path

from smallgpt.utils import atomic

MANIFEST_FILE = "manifest.json"
"""Written last: a checkpoint that has it is complete."""
_NAME = re.compile(r"cpt(\d+)")


def place(root: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return root / f"cpt{step}"


def checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints in `root`, by rising step."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST_FILE).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("cpt")))


def best(found: list[Path]) -> Path:
    """The one with the lowest validation loss; the newest where none was validated."""
    return min(reversed(found), key=validation_loss)


def validation_loss(path: Path) -> float:
    """What the manifest says; infinity where it says nothing."""
    try:
        loss = json.loads((path / MANIFEST_FILE).read_text("utf-8"))["validation_loss"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return math.inf
    return loss if isinstance(loss, float) and not math.isnan(loss) else math.inf


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one; 0 keeps all."""
    found = checkpoints(root)
    if not keep_last or len(found) <= keep_last:
        return
    keep = {*found[-keep_last:], best(found)}
    for path in found:
        if path not in keep:
            with suppress(OSError):
                atomic.remove(path)
