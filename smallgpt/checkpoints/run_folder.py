"""The folder of a run: which checkpoints it has, the best of them, and which are kept."""

import json
import math
import re
import shutil
from contextlib import suppress
from pathlib import Path

from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import size as readable

MANIFEST_FILE = "manifest.json"
"""Written last: a checkpoint that has it is complete."""
_NAME = re.compile(r"cpt(\d+)")


def place(root: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return root / f"cpt{step}"


def is_name(name: str) -> bool:
    """Whether a directory of this name is a checkpoint of a run."""
    return _NAME.fullmatch(name) is not None


def checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints in `root`, by rising step."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if is_name(p.name) and (p / MANIFEST_FILE).is_file()]
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


def check_room(root: Path, size: int, saves: int, keep_last: int) -> None:
    """Refuse a run where the disk has no room for one checkpoint; say it where not all have room.

    Args:
        size: bytes of a checkpoint.
        saves: how many are still to be written.
        keep_last: see `prune`.
    """
    there = len(checkpoints(root))
    kept = min(there + saves, keep_last + 1) if keep_last else there + saves  # one is the best
    most = max(1, kept - there + (there + saves > kept))  # one is written before one is deleted
    disk = shutil.disk_usage(root)
    if not disk.total or disk.free >= size * most:  # some network disks do not tell
        return
    free = f"the disk of {root} has {readable(disk.free)} free"
    if disk.free < size:
        raise UserError(
            f"checkpoint_root: {free}, but a checkpoint takes {readable(size)}",
            "make room, or choose a checkpoint_root on another disk",
        )
    note(
        f"{free}, but the checkpoints of this run take up to {readable(size * most)} "
        f"({most} of {readable(size)}): make room{'' if keep_last == 1 else ', or set keep_last=1'}"
    )


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
