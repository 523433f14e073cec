"""What a run goes on from: the same for every process, and never a damaged checkpoint."""

from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint, DamagedError
from smallgpt.checkpoints.open import open_checkpoint, open_for_training
from smallgpt.config import Config, ModelConfig, SamplingConfig
from smallgpt.distributed import launch
from smallgpt.distributed.world import World
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint and its training state. Only the first process holds the weights: it gives them
    to the others when the model is replicated, so that they need not have the files."""

    stored: Checkpoint
    state: dict[str, Any]

    def release(self) -> None:
        """Let go of weights and state, once the model and the optimizers have them."""
        self.stored.weights.clear()
        self.state.clear()


@contextmanager
def joined(config: Config, command: str) -> Iterator[World]:
    """The processes of a run, which keeps other runs out of its `checkpoint_root`.

    Arguments are those of `launch.join`; errors its and those of `lock`.
    """
    with launch.join(config, command) as world, ExitStack() as held:
        if world.is_first:
            lock(Path(config.checkpoint_root), held)
        yield world


def lock(root: Path, held: ExitStack) -> None:
    """Keep other runs out of `root` as long as `held` lasts.

    Raises:
        UserError: another run is at work in it, or it cannot be written to.
    """
    try:
        held.enter_context(atomic.exclusive(root))
    except OSError as error:
        problem = f"cannot write to {root}: {error.strerror}"
        if isinstance(error, BlockingIOError):
            problem = f"another run is at work in {root}"
        raise UserError(f"checkpoint_root: {problem}", "choose another checkpoint_root") from None


def with_shape_of(
    stored: ModelConfig, config: C, vocab_size: int, typed: Set[str] = frozenset()
) -> C:
    """`config` with the network of a checkpoint; only the dropout is the config's.

    Args:
        typed: keys of the command line; those of the network must agree with the checkpoint's.
    """
    shape = {key: getattr(stored, key) for key in checkpoint.SHAPE_KEYS}
    for key, has in shape.items():
        if key in typed and getattr(config, key) != has:
            raise UserError(
                f"{key} is {getattr(config, key)}, but the checkpoint's is {has}",
                f"leave {key} out, or train anew in another checkpoint_root",
            )
    return replace(config, **shape, vocab_size=vocab_size)


def with_sampling_of(stored: SamplingConfig, config: C) -> C:
    """`config` with the way to draw replies of a base model, or of a run that began with one, as
    far as it leaves that at the default."""
    keys = [
        field for field in fields(SamplingConfig) if getattr(config, field.name) == field.default
    ]
    return replace(config, **{field.name: getattr(stored, field.name) for field in keys})


def open_base(config: Config, world: World, classifier: bool | None) -> Checkpoint:
    """The model that `base_model` names; weights are with the first process only, as in `Resumed`.

    Args:
        classifier: whether it may be a classifier too (None), or not (False).

    Raises:
        UserError: there is none, or it is of the other kind.
    """
    named, texts = config.base_model or "", config.data_paths() if classifier is None else None
    base = world.only_first(
        lambda: open_checkpoint(named, texts=texts, classifier=classifier, key="base_model")
    )
    shared = world.share(base and replace(base, weights={}))
    return cast(Checkpoint, base or shared)


def find(config: Config, world: World, classifier: bool = False) -> Resumed | None:
    """What `resume_from` means, or None for a new run; never two runs in one `checkpoint_root`.

    Args:
        classifier: whether the run trains a classifier, or a language model.

    Raises:
        UserError: there is nothing to go on from, or what is there must not be mixed with it.
    """
    found = world.only_first(lambda: _find(config, world.restarted, classifier))
    if found:
        _refuse_other_adapters(found.stored.config, config)
    shared = world.share(found and replace(found, stored=replace(found.stored, weights={})))
    return found or shared


def _refuse_other_adapters(was: Config, now: Config) -> None:
    """A run goes on with the adapters it was begun with, or with none."""
    keys = ("lora_rank", "lora_alpha", "lora_matrices") if was.lora_rank else ("lora_rank",)
    for key in keys:
        before, wanted = getattr(was, key), getattr(now, key)
        if callable(before):
            key, before, wanted = "lora_targets", list(before()), list(wanted())
        if before != wanted:
            raise UserError(
                f"{key} is {wanted}, but the run that goes on was begun with {before}",
                "set it back, or train anew in another checkpoint_root",
            )


def _find(config: Config, restarted: bool, classifier: bool) -> Resumed | None:
    root, named = Path(config.checkpoint_root), config.resume_from
    in_root = run_folder.checkpoints(root)
    if named == "auto" or (in_root and restarted):
        named = "latest" if in_root else None
    if named == "latest" and in_root:
        return _newest_whole(in_root, classifier)
    if named is None and not in_root:
        return None
    if named is None:
        raise UserError(
            f"{root} already holds the checkpoints of a run (up to {in_root[-1].name})",
            "go on with resume_from=latest, choose another checkpoint_root, or delete that folder",
        )
    if named in ("latest", "best") and not in_root:
        raise UserError(
            f"{root} holds no checkpoint to go on from (resume_from: {named})",
            "leave resume_from out to begin a new run, or set it to auto, which does both",
        )
    texts = config.data_paths()
    found = Resumed(*open_for_training(named, root=root, texts=texts, classifier=classifier))
    path = found.stored.path
    if in_root and path.resolve() != in_root[-1].resolve():
        raise UserError(
            f"{root} holds {in_root[-1].name}, which would mix with what follows {path}",
            "resume from the latest, choose another checkpoint_root, or delete what is "
            "no longer wanted",
        )
    return found


def _newest_whole(found: list[Path], classifier: bool) -> Resumed:
    """The newest checkpoint that is not damaged; damaged ones are set aside, and that is said."""
    damaged = []
    for path in reversed(found):
        try:
            stored = open_checkpoint(path, classifier=classifier, merge=False)
            resumed = Resumed(stored, stored.training_state())
        except DamagedError as error:
            note(error.problem)
            damaged.append(path)
            continue
        for bad in damaged:
            note(f"{bad.name} is kept as {_set_aside(bad)}; going on from {path}")
        return resumed
    raise UserError(
        f"no checkpoint in {found[-1].parent} is whole: the damage is listed above",
        "begin anew in another checkpoint_root, or delete that folder",
    )


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint to a name that is no checkpoint's."""
    names = (path.with_name(f"damaged{number or ''}-{path.name}") for number in count())
    try:
        return path.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise UserError(
            f"{path} is damaged and cannot be renamed: {error.strerror}", "delete it"
        ) from None
