"""The one way to open a model: whatever a user names as one becomes a `Checkpoint`.

A name is the directory of a checkpoint or of an adapter, the folder of a run, a GPT-2 directory of
another program, a legacy `.pth` file, `box`, or `latest`, `auto` or `best` in the folder of a run
that is known already.
"""

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallgpt.checkpoints import adapter, checkpoint, huggingface, legacy_pth
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.run_folder import MANIFEST_FILE, best, checkpoints, validation_loss
from smallgpt.utils.commands import training_of
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import ALIKE, exists, named_path, not_found

SPECIAL_NAMES = ("latest", "auto", "best")
BOX = "box"
"""The model that comes with Small GPT, where the current folder has no model of this name."""
_PACKAGE = Path(__file__).parents[1]


def open_checkpoint(
    named: str | Path,
    *,
    root: Path | None = None,
    texts: list[Path] | None = None,
    config: Path | None = None,
    classifier: bool | None = False,
    verify_weights: bool = True,
    key: str = "",
    merge: bool = True,
) -> Checkpoint:
    """Open what a user names as a model.

    Args:
        root, texts, config: see `find_checkpoint`.
        classifier, verify_weights: see `checkpoint.load`.
        key: the config key that names it, for messages.
        merge: whether an adapter becomes one with its base (see `adapter.load`).

    Raises:
        UserError: there is none, it is damaged, or it is of the other kind.
    """
    try:
        path = _path(named)
        if classifier and legacy_pth.is_legacy(path) and path.exists():
            raise checkpoint.other_kind(path, None)
        there = path.exists() or (path.with_suffix("") / MANIFEST_FILE).is_file()
        if key and legacy_pth.is_legacy(path) and not there:
            own = Path("checkpoints", "demo")
            advice = f"train one of your own ({training_of(own)}) and set {key}={own}"
            raise not_found(path, advice=f"put it there, or {advice}")
        path = find_checkpoint(named, root=root, texts=texts, config=config)
        if adapter.is_adapter(path):
            opened = open_adapter(path, verify_weights, classifier)
            return adapter.merge(opened) if merge else opened
        ours = any((path / name).exists() for name in (MANIFEST_FILE, checkpoint.CONFIG_FILE))
        if ours or not (path / huggingface.CONFIG_FILE).is_file():
            return checkpoint.load(path, verify_weights, classifier)
        from smallgpt.checkpoints import foreign  # only here: ours need not wait for it

        return foreign.load(path, classifier)
    except UserError as error:
        if key:
            raise UserError(f"{key}: {error.problem}", error.advice) from None
        raise


def find_checkpoint(
    named: str | Path,
    *,
    root: Path | None = None,
    texts: list[Path] | None = None,
    config: Path | None = None,
) -> Path:
    """The directory that a user means, without a look at what is in it.

    Of the folder of a run it is the best checkpoint, else the newest, and that is said. A `.pth` is
    converted into a directory beside it, once.

    Args:
        root: where `latest`, `auto` and `best` are looked up.
        config: the user's file that names `root`, for messages.
        texts: what a `.pth` was trained on, for its vocabulary; None where it is not known.

    Raises:
        UserError: there is no checkpoint in `root`, or a `.pth` cannot be converted.
    """
    if root is not None and str(named) in SPECIAL_NAMES:
        found = checkpoints(root)
        if not found:
            raise UserError(
                f"no checkpoint in {root} (resume_from: {named})",
                f"train one first: {training_of(root, config)}\n"
                "     or give resume_from a directory",
            )
        return best(found) if str(named) == "best" else found[-1]
    path = _path(named)
    meant = difflib.get_close_matches(str(named).lower(), SPECIAL_NAMES, 1, ALIKE)
    if meant and root is not None and not path.exists():
        raise UserError(f"checkpoint {named} not found", f"did you mean {meant[0]}?")
    if legacy_pth.is_legacy(path):
        return legacy_pth.directory_beside(path, texts)
    found = checkpoints(path)
    if found and not (path / MANIFEST_FILE).exists():
        chosen = best(found)
        validated = validation_loss(chosen) < math.inf
        reason = "the best by validation" if validated else "the newest"
        note(f"{path} is the folder of a run: taking {chosen.name}, {reason}")
        return chosen
    return path


def open_adapter(
    path: Path, verify_weights: bool = True, classifier: bool | None = False
) -> Checkpoint:
    """An adapter with its base, not merged; arguments and errors are those of `adapter.load`.

    A base that is named by a relative path is looked for in the current folder, then in those above
    the adapter, until its weights are those that the adapter was trained on.
    """

    def open_bases(name: str) -> Iterator[Checkpoint]:
        if name == BOX:
            yield open_checkpoint(box(), classifier=None)
            return
        above = [folder for folder in path.absolute().parents if folder != Path.cwd()]
        named = dict.fromkeys(folder / name for folder in (Path(), *above) if name)
        there = [folder for folder in named if exists(folder) and folder.is_dir()]
        for folder in there:
            base = find_checkpoint(folder)
            if adapter.is_adapter(base):
                advice = "merge the base with its own base first, and let the adapter name that"
                raise UserError(f"{path} is an adapter for another adapter, {base}", advice)
            yield open_checkpoint(base, classifier=None)
        if not there:
            missing = name or "a model that it does not name"
            advice = "put that model back, or go to the folder from which this path leads to it"
            raise UserError(f"{path} is an adapter for {missing}, which is missing", advice)

    return adapter.load(path, open_bases, verify_weights, classifier)


def is_classifier(path: Path) -> bool:
    """Whether a directory of ours holds a classifier or an adapter for one; False where it is
    neither."""
    try:
        if adapter.is_adapter(path):
            return adapter.labels_of(path) is not None
        return (path / MANIFEST_FILE).is_file() and huggingface.read_labels(path) is not None
    except UserError:
        return False


def _path(named: str | Path) -> Path:
    """What a name stands for that is no name of a checkpoint in a known run."""
    path = named_path(named)
    return box() if str(path) == BOX and not _holds_model(path) else path


def _holds_model(path: Path) -> bool:
    """Whether it is the directory of a checkpoint, of a run, or of another program's model."""
    files = (MANIFEST_FILE, checkpoint.CONFIG_FILE, huggingface.CONFIG_FILE, adapter.CONFIG_FILE)
    return any((path / name).exists() for name in files) or bool(checkpoints(path))


def box() -> Path:
    """The directory of the model that comes with Small GPT.

    Raises:
        UserError: it is missing.
    """
    installed, in_clone = _PACKAGE / "box", _PACKAGE.parent / "models" / "box"
    found = installed if installed.is_dir() else in_clone
    if not found.is_dir():
        advice = "in a clone: git checkout -- models/box; otherwise install Small GPT again"
        raise UserError(f"the model that comes with Small GPT is missing: {found}", advice)
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def open_for_training(
    named: str | Path, *, root: Path, texts: list[Path], classifier: bool = False
) -> tuple[Checkpoint, dict[str, Any]]:
    """What a run goes on from: a checkpoint and its training state, a `.pth` with its optimizer;
    of an adapter, which is not merged, its own.

    Arguments and errors are those of `open_checkpoint`; and some models can only chat.
    """
    path = named_path(named)
    if legacy_pth.is_legacy(path) and not classifier:
        return legacy_pth.load(path, texts)
    stored = open_checkpoint(named, root=root, texts=texts, classifier=classifier, merge=False)
    return stored, stored.training_state()
