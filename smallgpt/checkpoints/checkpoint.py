"""A checkpoint is a directory that is also a Hugging Face GPT-2 model.

    config.json, generation_config.json, model.safetensors     what transformers reads
    tokenizer.json, tokenizer_config.json
    config.yaml                                                all keys of our run
    training_state.pt                                          optimizer and position in the data
    manifest.json                                              step, scores, checksum of each file

It is written beside its place and renamed, so it is complete or not there. Nothing in it can run
code when it is loaded.
"""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.run_folder import MANIFEST_FILE, checkpoints, is_name, place
from smallgpt.config import Config, ModelConfig, SentimentConfig
from smallgpt.config_file import config_to_yaml, load_config
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import SEP, TOKENIZER_FILE, Tokenizer
from smallgpt.tokenizer.subwords import load_tokenizer
from smallgpt.utils import atomic, background
from smallgpt.utils.commands import training_of, with_config
from smallgpt.utils.errors import UserError
from smallgpt.utils.paths import not_found

CONFIG_FILE = "config.yaml"
STATE_FILE = "training_state.pt"
SHAPE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("vocab_size", "dropout", "ngram_dropout")
)
"""What makes two networks the same, but for the vocabulary and the dropout."""
_NEEDED = (CONFIG_FILE, huggingface.CONFIG_FILE, TOKENIZER_FILE)
_PART = 1 << 22
"""Bytes read at a time: large parts, as each waits for the interpreter's other threads."""


class DamagedError(UserError):
    """A checkpoint is not what was written; the advice says which other one there is."""

    def __init__(self, path: Path, problem: str, edited: bool = False) -> None:
        others = [other for other in checkpoints(path.parent) if other != path]
        advice = "there is no other checkpoint beside it"
        if others:
            advice = f"another one is {others[-1]}; to go on training from it, delete {path} first"
        if edited:
            undo = "if you edited it, undo that: other settings are typed behind the command, "
            advice = f"{undo}as key=value\n     otherwise {advice}"
        super().__init__(problem, advice)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: `path` was opened; only a classifier has `labels`, its classes."""

    path: Path
    step: int
    config: Config
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    manifest: dict[str, Any]
    labels: list[str] | None = None

    @property
    def has_checksums(self) -> bool:
        """Whether Small GPT wrote it; nothing vouches for the files of other programs."""
        return bool(self.manifest["sha256"])

    def model(self, config: ModelConfig | None = None) -> GPT:
        """The network with these weights, in evaluation mode; `config` may change the dropout."""
        model = huggingface.hollow_model(config or self.config).eval()
        weights = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        return model

    def verify_weights(self) -> None:
        """Refuse damaged weights, where `load` was told not to look at them."""
        if self.has_checksums:
            for name in _weights_files(self.manifest):
                verify(self.path, self.manifest, name)

    def weights_checksum(self) -> str:
        """Of the files that hold the weights; those of another program are read for it."""
        names = _weights_files(self.manifest)
        if not self.has_checksums:
            held = (*self.path.glob("*.safetensors"), *self.path.glob("*.bin"))
            names = {file.name for file in held}
        known = self.manifest["sha256"]
        sums = [known.get(name) or sha256(self.path / name) for name in sorted(names)]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()

    def training_state(self) -> dict[str, Any]:
        """What the training loop gave to `save`, on the CPU; a UserError where it is not whole."""
        path = self.path / STATE_FILE
        if not path.exists():
            raise UserError(f"{path} is missing: this checkpoint can chat, not resume")
        verify(self.path, self.manifest, STATE_FILE)
        return load_pickle(path, "resume from a checkpoint you made")


def save(
    root: Path,
    step: int,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    training_state: dict[str, Any] | None,
    facts: Mapping[str, Any],
    labels: list[str] | None = None,
    name: str | None = None,
) -> Path:
    """Write `root/cpt{step}`, complete or not at all, and return it; one that is there is replaced.

    Args:
        training_state: None for a checkpoint that can chat, not resume.
        facts: scores and whatever else the manifest is to say.
        labels: names of the classes, where the model is a classifier.
        name: of the directory, instead of `cpt{step}`.

    Raises:
        UserError: it cannot be written. Earlier checkpoints are untouched.
    """
    target = root / name if name else place(root, step)
    with new_directory(target, "place" if name else "checkpoint_root") as work:
        huggingface.write(work, config, tokenizer, weights, labels)
        write_run(work, config, tokenizer, training_state, {"step": step, **facts})
    return target


@contextmanager
def new_directory(target: Path, key: str) -> Iterator[Path]:
    """A work directory that becomes `target` when all is in it; errors are those of `save`.

    `key` says what to choose anew where there is no room.
    """
    kept = checkpoints(target.parent)
    advice = f"make room or choose another {key}" + (f"; {kept[-1]} is intact" if kept else "")
    with write_errors(f"checkpoint {target}", advice), atomic.directory(target) as work:
        yield work


def write_run(
    work: Path,
    config: Config,
    tokenizer: Tokenizer,
    training_state: dict[str, Any] | None,
    facts: Mapping[str, Any],
) -> None:
    """Write what is in a checkpoint beside its weights; last the manifest, with `facts`."""
    tokenizer.save(work, **tokenizer_settings(config))
    (work / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    if training_state is not None:
        with (work / STATE_FILE).open("wb") as file:
            torch.save(training_state, file)
    write_manifest(work, facts)


@contextmanager
def write_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error of writing a model into the `UserError` that `what` cannot be written."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__  # torch.save hides a full disk behind an error of its own
        reason = getattr(error, "strerror", "") or str(error).strip() or type(error).__name__
        reason = reason.splitlines()[0]
        raise UserError(f"{what} cannot be written: {reason}", advice) from None


def tokenizer_settings(config: Config) -> dict[str, Any]:
    """What transformers' tokenizer must know besides: what the model reads (no token types), where
    padding goes (before a text that is continued), and how long a text to classify may be."""
    names = ["input_ids", "attention_mask"]
    if not isinstance(config, SentimentConfig):
        return {"model_input_names": names, "padding_side": "left"}
    names = names if config.use_mask else names[:1]
    return {"model_max_length": config.block_size, "model_input_names": names}


def load(path: Path, verify_weights: bool = True, classifier: bool | None = False) -> Checkpoint:
    """Read a checkpoint directory; weights are memory-mapped, and checked against the manifest.

    Args:
        verify_weights: False leaves the checksum of the weights, a second for a large model, to
            `Checkpoint.verify_weights`.
        classifier: whether it must be a classifier, or a language model; None takes both.

    Raises:
        UserError: it is missing, incomplete, damaged, of another architecture or the other kind.
    """
    manifest = read_manifest(path, "sentimental_demo" if classifier else "demo")
    weights_files = _weights_files(manifest)
    later = set() if verify_weights else weights_files
    for name in sorted({*_NEEDED, *manifest["sha256"], *weights_files} - {STATE_FILE} - later):
        verify(path, manifest, name)
    labels = huggingface.read_labels(path)
    if classifier is not None and classifier != (labels is not None):
        raise other_kind(path, labels)
    config = load_config(path / CONFIG_FILE, [], Config if labels is None else SentimentConfig)
    tensors = huggingface.read_files(path)
    weights = huggingface.from_tensors(path / huggingface.WEIGHTS_FILE, tensors, config, labels)
    tokenizer = load_tokenizer(path)
    return Checkpoint(path, manifest["step"], config, tokenizer, weights, manifest, labels)


def other_kind(path: Path, labels: list[str] | None) -> UserError:
    """The error where a classifier is wanted and the model has no labels, or the reverse."""
    if labels is None:
        return UserError(
            f"{path} is a language model, not a classifier",
            "make one of it: "
            f"{with_config('sentimentalTrain.py', 'sentimental_demo')} base_model={path}",
        )
    return UserError(
        f"{path} is a classifier ({', '.join(labels)}), not a model to talk with",
        f'use it with: python -m smallgpt sentiment predict {path} "…"',
    )


def _weights_files(manifest: dict[str, Any]) -> set[str]:
    """One, or where they are stored in parts, several."""
    parts = {name for name in manifest["sha256"] if name.endswith(".safetensors")}
    return parts or {huggingface.WEIGHTS_FILE}


# The manifest, and the checksums in it.


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Describe the files that are there now."""
    paths = sorted(directory.iterdir())

    def flush() -> None:
        for path in paths:
            atomic.to_disk(path)

    with ThreadPoolExecutor(max_workers=3) as pool:
        # The disk writes while two processors count, as a checkpoint has two large files.
        flushed = pool.submit(flush)
        sums = list(pool.map(sha256, paths))
        flushed.result()
    files = dict(zip((path.name for path in paths), sums, strict=True))
    manifest = {"format": 1, **facts, "sha256": files}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def read_manifest(path: Path, example: str = "demo") -> dict[str, Any]:
    """The manifest of a checkpoint directory; `example` is a config that trains such a model.

    Raises:
        UserError: `path` is not a checkpoint directory, or the manifest is damaged.
    """
    file = path / MANIFEST_FILE
    advice = f"give the directory of a checkpoint, such as checkpoints/{example}/cpt1200"
    run = path.parent if is_name(path.name) else path
    train = f"train one: {training_of(run, other=example)}\n     or {advice}"
    if not path.exists():
        raise not_found(path, "checkpoint ", train)
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a checkpoint directory", advice)
    if not file.is_file() and run == path and not any(path.glob("*.safetensors")):
        raise UserError(f"there is no checkpoint in {path} yet", train)
    if not file.is_file():
        raise UserError(f"{path} is not a checkpoint: it has no {MANIFEST_FILE}", advice)
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if not isinstance(manifest["step"], int) or not isinstance(manifest["sha256"], dict):
            raise TypeError("step or sha256 is not what it should be")
        return manifest
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DamagedError(path, f"{file} is damaged: {error!r}") from None


def verify(path: Path, manifest: dict[str, Any], name: str) -> None:
    """Refuse a file of the checkpoint that is missing, or not what its checksum says."""
    file = path / name
    if not file.is_file():
        raise DamagedError(path, f"{file} is missing: the checkpoint is damaged")
    try:
        checksum = sha256(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if checksum != manifest["sha256"].get(name):
        if name != STATE_FILE and huggingface.saved_by_transformers(path):
            raise _saved_over(path, name)
        text = file.suffix in (".yaml", ".json")
        damage = "damaged or edited" if text else "damaged"
        problem = f"{file} is {damage}: its checksum is not the one it was saved with"
        raise DamagedError(path, problem, edited=text)


def _saved_over(path: Path, name: str) -> UserError:
    """The error where transformers' `save_pretrained` has replaced files of a checkpoint."""
    use = f"to use what it saved, delete {MANIFEST_FILE} and {CONFIG_FILE} there"
    if huggingface.read_labels(path) is not None:
        use = "use what it saved with transformers"
    return UserError(
        f"{path / name} was changed after it was saved: another program (transformers) has saved "
        "its model into this directory",
        f"{use}; next time let it save into a directory of its own",
    )


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest, part = hashlib.sha256(), memoryview(bytearray(_PART))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(part):
            background.end_with_the_program()
            digest.update(part[:length])
    return digest.hexdigest()


def load_pickle(path: Path, advice: str, mmap: bool = False) -> dict[str, Any]:
    """What `torch.save` wrote, on the CPU; nothing in it runs.

    Raises:
        UserError: it is damaged, or holds anything but a dict of tensors and plain values.
    """
    reason = ""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type for entry in archive.infolist()):
                    # torch stores entries as they are; what is packed could unpack to any size.
                    raise ValueError("its entries are compressed")
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a forged file makes torch stumble in many ways
        stored = None
        if called := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f" (it would run {called[1]})"
    if not isinstance(stored, dict):
        raise UserError(
            f"{path} is refused: it is not a file of tensors and plain values only{reason}",
            f"reading it could run a stranger's code; {advice}",
        )
    return stored


def weights_for_vocabulary(stored: Checkpoint, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights for `tokenizer`, whose first ids are the checkpoint's.

    A new character begins as the mean of all others.
    """
    weights = dict(stored.weights)
    used = len(stored.tokenizer)
    for name in ("wte.weight", huggingface.LM_HEAD):
        if name in weights:
            old = weights[name][:used]
            new = old.mean(0, keepdim=True).repeat(len(tokenizer) - used, 1)
            weights[name] = torch.cat([old, new])
    return weights


def weights_for_classifier(stored: Checkpoint, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights for a classifier with `tokenizer`, as far as the checkpoint has them: a language
    model has no head. Ids that no character has are dropped, and `<start>` and `<extract>` begin as
    copies of `<sep>`."""
    weights = dict(stored.weights)
    if stored.labels is None:
        weights.pop(huggingface.LM_HEAD, None)
        weights = {f"transformer.{name}": tensor for name, tensor in weights.items()}
        used = weights["transformer.wte.weight"][: tokenizer.start]
        weights["transformer.wte.weight"] = torch.cat([used, used[[SEP, SEP]]])
    return weights
