"""The folder of a run: its checkpoints, their manifests and checksums."""

from __future__ import annotations

import hashlib
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallgpt.utils import atomic, background
from smallgpt.utils.errors import UserError

MANIFEST_FILE = "manifest.json"
SPECIAL_NAMES = ("latest", "auto", "best")
_PART = 1 << 22
"""Bytes read at a time: large parts, as each waits for the interpreter's other threads."""
_NAME = re.compile(r"cpt(\d+)")


class DamagedError(UserError):
    """A checkpoint is not what was written; another one may be whole."""


def place(root: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return root / f"cpt{step}"


def resolve(resume_from: str, root: Path) -> Path:
    """The directory meant by `resume_from`: a path, or `latest` (or `auto`) or `best` in `root`.

    Raises:
        UserError: there is no such checkpoint.
    """
    if resume_from not in SPECIAL_NAMES:
        return Path(resume_from).expanduser()
    found = checkpoints(root)
    if not found:
        raise UserError(
            f"no checkpoint in {root} (resume_from: {resume_from})",
            f"train one first: python train.py {_config_for(root)}, "
            "or give resume_from a directory",
        )
    return best(found) if resume_from == "best" else found[-1]


def _config_for(root: Path) -> Path:
    """The shipped config that trains into `root`, else the demo's."""
    config = Path("config") / f"{root.name}.yaml"
    return config if config.exists() else Path("config/demo.yaml")


def checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints in `root`, by rising step."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST_FILE).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("cpt")))


def best(found: list[Path]) -> Path:
    """The one with the lowest validation loss; one that was never evaluated counts as worst."""
    return min(reversed(found), key=_validation_loss)


def _validation_loss(path: Path) -> float:
    try:
        loss = read_manifest(path).get("validation_loss")
    except UserError:
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


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory.

    Raises:
        UserError: `path` is not a checkpoint directory, or the manifest is damaged.
    """
    if not path.exists():
        raise UserError(
            f"checkpoint {path} not found",
            "train one: python train.py config/demo.yaml (or config/train90M.yaml with your text), "
            "or give resume_from=… the directory of one, such as checkpoints/demo/cpt1200",
        )
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a checkpoint directory",
            f"make one of it: python -m smallgpt convert {path} --text … --output …"
            if path.suffix == ".pth"
            else "give the directory that train.py wrote, such as checkpoints/demo/cpt1200",
        )
    file = path / MANIFEST_FILE
    if not file.is_file():
        inside = checkpoints(path)
        raise UserError(
            f"{path} is not a checkpoint: it has no {MANIFEST_FILE}",
            f"did you mean {inside[-1]}?" if inside else "give the directory that train.py wrote",
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if not isinstance(manifest["step"], int) or not isinstance(manifest["sha256"], dict):
            raise TypeError("step or sha256 is not what it should be")
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is damaged: {error!r}", other_checkpoint(path)) from None


def verify(path: Path, manifest: dict[str, Any], name: str) -> None:
    """Check one file of the checkpoint against its checksum.

    Raises:
        UserError: it is missing or damaged.
    """
    file = path / name
    if not file.is_file():
        raise DamagedError(f"{file} is missing: the checkpoint is damaged", other_checkpoint(path))
    try:
        checksum = sha256(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    if checksum != manifest["sha256"].get(name):
        raise DamagedError(
            f"{file} is damaged: its checksum is not the one it was saved with",
            other_checkpoint(path),
        )


def other_checkpoint(path: Path) -> str:
    """Advice where a checkpoint is damaged: which other one there is."""
    others = [p for p in checkpoints(path.parent) if p != path]
    if not others:
        return "there is no other checkpoint beside it"
    return f"another one is {others[-1]}; to go on training from it, delete {path} first"


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest, part = hashlib.sha256(), memoryview(bytearray(_PART))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(part):
            background.end_with_the_program()
            digest.update(part[:length])
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save hides a full disk behind an error of its own
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
