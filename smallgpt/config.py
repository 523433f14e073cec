"""One flat YAML file a run: every key, its default, its meaning and its limits."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smallgpt.utils.errors import UserError

Where = Callable[[str], str]
"""Names the place where a key's value stands, for messages."""
POOLINGS = ("last", "last_mean")
ACTIVATIONS = ("gelu", "gelu_new")
LOSS_ON = ("all", "replies")
OPTIMIZERS = ("adamw", "muon")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. A checkpoint can only be resumed with the same one."""

    block_size: int = 256
    """Positions a row holds; the longest context of the model."""
    vocab_size: int = 0
    """Rows of the embedding; 0 takes what the text needs, more than that is allowed."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    """Width of the network; a multiple of `n_head`."""
    dropout: float = 0.0
    bias: bool = True
    """Biases in linear layers and layer norms."""
    activation: str = "gelu"
    """gelu (exact), or gelu_new, GPT-2's approximation of it."""
    layer_norm_epsilon: float = 1e-5
    tied: bool = True
    """The output head is the embedding; False gives it weights of its own."""
    ngram_order: int = 1
    """Up to so many characters in a row have an embedding of their own at the input, beside that of
    the last of them; 1 is plain GPT-2. Such a model is Small GPT's own: transformers refuses it."""
    ngram_rows: int = 65536
    """Rows of the table of each length, shared by n-grams of the same hash."""
    ngram_embd: int = 128
    """Width of these tables; a matrix brings it to `n_embd`."""
    ngram_dropout: float = 0.0
    """How often an n-gram's embedding is left out in training."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next character is drawn from the logits."""

    temperature: float = 0.5
    """0 always takes the likeliest character."""
    top_k: int = 0
    """Draw from the k likeliest characters only; 0 is off."""
    top_p: float = 0.9
    """Draw from the likeliest characters that together reach this probability; 1 is off."""
    repetition_penalty: float = 1.0
    """Above 1 makes characters already in the reply less likely (CTRL, arXiv:1909.05858)."""
    max_new_tokens: int = 100
    """Characters in a reply at most."""


@dataclass(frozen=True)
class Config(ModelConfig, SamplingConfig):
    """All keys of a run. `train.py` and `chat.py` read the same file format."""

    # data
    data_path: Any = "data/train.txt"
    """One text file or a list of them; plain, .gz or .xz."""
    train_percent: float = 0.8
    """Share of the dialogues to train on; the rest is for validation."""
    unk_rate: float = 0.1
    """How often one of the rarest characters (1 % of the text) is shown as <unk>."""

    base_model: str | None = None
    """A model to begin with instead of fresh weights: a checkpoint directory, the folder of a run,
    or a GPT-2 of another program. Characters it does not know are added to its vocabulary."""
    loss_on: str = "all"
    """all utterances, or replies: every second one."""

    # where and how it runs
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16, float16 (on a GPU only) or int8 (for chat only: half the memory of
    bfloat16, and the quickest on a CPU)."""
    compile: bool = False
    """torch.compile the training step."""
    ddp: bool = False
    """Refuse to run without torchrun, which starts several processes for one run."""
    ddp_timeout: float = 600.0
    """Seconds a process waits for the others before it gives up."""
    local_rank: int = 0
    """Read for old files, and not used."""
    world_size: int = 1
    """Read for old files, and not used."""
    seed: int = 114514

    # how long and how much at a time
    max_steps: int | None = None
    """Stop after this many steps (of the whole run, also when resumed)."""
    max_epoch: int | None = None
    """Stop after this many passes over the text. With neither limit, `decay_steps` is the end."""
    train_batch: int = 32
    """Rows of `block_size` a step, over all processes."""
    accumulate: int = 1
    """Split a step's rows into this many parts to save memory. The result is the same, to rounding
    and to where dropout falls."""
    test_batch: int = 8
    """Rows a validation batch."""
    eval_freq: int = 500
    """Steps between validations; 0 validates only at the end."""
    eval_steps: int = 1000
    """Validation batches at most."""

    # optimizer and schedule
    optimizer: str = "adamw"
    """adamw, or muon: Muon for the matrices of the layers, AdamW for the rest."""
    lr: float = 3e-4
    min_lr: float = 6e-6
    warmup_steps: int = 1000
    decay_steps: int = 100_000
    """Step at which the cosine reaches `min_lr`."""
    weight_decay: float = 0.1
    """For matrices; vectors (biases, norms) never decay."""
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 is off."""

    # what is kept
    checkpoint_root: str = "checkpoints"
    """Folder of the run: checkpoints `cpt{step}` and metrics.jsonl."""
    save_freq: int = 4000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = 3
    """Newest checkpoints to keep; the best by validation loss stays too. 0 keeps all."""
    tensorboard_path: str | None = None
    """Folder for TensorBoard; empty for none."""
    resume_from: str | None = None
    """A checkpoint directory, `latest` or `best` in `checkpoint_root`, or a `.pth` file of the
    earlier implementation, whose text is `data_path`. Training goes on from the latest only, or
    from any into another `checkpoint_root`. `auto` is the latest if there is one, else a new run.
    """

    def data_paths(self) -> list[Path]:
        """The files of `data_path`, in order."""
        paths = self.data_path if isinstance(self.data_path, (list, tuple)) else [self.data_path]
        return [Path(path).expanduser() for path in paths]

    def last_step(self, steps_per_epoch: float) -> int:
        """The step at which training ends; `steps_per_epoch` is rows / `train_batch`."""
        limits = []
        if self.max_steps is not None:
            limits.append(self.max_steps)
        if self.max_epoch is not None:
            limits.append(max(1, round(self.max_epoch * steps_per_epoch)))
        return min(limits) if limits else self.decay_steps

    def check(self, where: Where) -> None:
        """Refuse values that cannot work, each with its reason."""
        check_values(self, where)


@dataclass(frozen=True)
class SentimentConfig(Config):
    """All keys of training a classifier: those of a run, and what is below."""

    sentimental_data_path: str = "data/ChnSentiCorp_htl_all.csv"
    """Labelled texts: CSV, TSV or JSONL with a header; plain, .gz or .xz."""
    text_column: str = "review"
    label_column: str = "label"
    """Any number of classes; their names are kept in the checkpoint."""
    base_model: str | None = "checkpoints/pretrained/cpt300M.pth"
    """What the classifier begins with: a checkpoint directory of train.py, or of a classifier, or
    a `.pth` file of the earlier implementation, whose text is `data_path`."""
    use_mask: bool = True
    """Read the verdict at <extract>, so that padding does not count; False reads it at the last
    position of the row, which is padded to `block_size`."""
    frozen: bool = False
    """Train only the head, the last block and the final norm."""
    lm_weight: float = 0.0
    """Weight of the language-model loss beside the label's (the lambda of GPT-1)."""
    validation_percent: float = 0.1
    """Share of the training part (`train_percent`) that chooses the best model."""
    split_seed: int = 0
    """Which reviews are in which part; `seed` changes only the training."""
    pooling: str = "last"
    """What the head reads: last, the state where the verdict is read; last_mean, beside it the mean
    of the states up to there (such a classifier is Small GPT's own: transformers refuses it)."""
    character_dropout: float = 0.0
    """How often a character of a review is shown as <unk> in training."""
    reference_weight: float = 0.0
    """From 0 to 1: how much of the loss is taken against the probabilities of the baseline (TF-IDF)
    instead of the labels; each review is judged by a baseline that did not learn from it."""
    patience: int = 0
    """Stop after so many validations without a better one; 0 never."""

    def check(self, where: Where) -> None:
        """Refuse values that cannot work, each with its reason."""
        super().check(where)
        _check_sentiment(self, where)


def check_values(config: Config, where: Where) -> None:
    """Refuse values of the keys of `Config` that cannot work, each with its reason."""
    require = _requirement(config, where)
    for key in [f.name for f in dataclasses.fields(config) if f.type == "float"]:
        require(math.isfinite(getattr(config, key)), key, "must be a finite number")
    for key in ("n_layer", "n_head", "n_embd", "train_batch", "test_batch", "accumulate"):
        require(getattr(config, key) >= 1, key, "must be at least 1")
    for key in ("eval_steps", "decay_steps", "save_freq", "max_new_tokens"):
        require(getattr(config, key) >= 1, key, "must be at least 1")
    for key in ("max_steps", "max_epoch"):
        value = getattr(config, key)
        require(value is None or value >= 1, key, "must be at least 1, or empty for no limit")
    for key in ("warmup_steps", "eval_freq", "keep_last", "top_k", "weight_decay", "grad_clip"):
        require(getattr(config, key) >= 0, key, "must not be negative")
    for key in ("vocab_size", "seed", "min_lr", "temperature"):
        require(getattr(config, key) >= 0, key, "must not be negative")
    require(config.seed < 2**63, "seed", "must be less than 2**63")
    require(bool(config.checkpoint_root), "checkpoint_root", "must name a folder")
    require(config.block_size >= 8, "block_size", "must be at least 8 positions")
    require(
        config.n_embd % config.n_head == 0,
        "n_embd",
        f"is not divisible by n_head ({config.n_head}): every head needs the same width",
    )
    require(0 <= config.dropout < 1, "dropout", "must be from 0 up to but not 1")
    require(
        0 < config.train_percent < 1,
        "train_percent",
        "must be between 0 and 1: both training and validation need dialogues",
    )
    require(0 <= config.unk_rate <= 1, "unk_rate", "must be from 0 to 1")
    require(config.lr > 0, "lr", "must be positive")
    require(config.ddp_timeout > 0, "ddp_timeout", "must be positive")
    require(config.min_lr <= config.lr, "min_lr", f"must not exceed lr ({config.lr})")
    require(
        config.warmup_steps <= config.decay_steps,
        "warmup_steps",
        f"must not exceed decay_steps ({config.decay_steps})",
    )
    for key in ("beta1", "beta2"):
        require(0 <= getattr(config, key) < 1, key, "must be from 0 up to but not 1")
    require(0 < config.top_p <= 1, "top_p", "must be above 0 and at most 1")
    require(config.repetition_penalty > 0, "repetition_penalty", "must be positive")
    require(config.dtype in DTYPES, "dtype", f"must be one of {', '.join(DTYPES)}")
    require(
        config.activation in ACTIVATIONS, "activation", f"must be one of {', '.join(ACTIVATIONS)}"
    )
    require(1 <= config.ngram_order <= 4, "ngram_order", "must be from 1 to 4")
    for key in ("ngram_rows", "ngram_embd"):
        require(getattr(config, key) >= 1, key, "must be at least 1")
    require(0 <= config.ngram_dropout < 1, "ngram_dropout", "must be from 0 up to but not 1")
    require(config.layer_norm_epsilon > 0, "layer_norm_epsilon", "must be positive")
    require(config.loss_on in LOSS_ON, "loss_on", f"must be one of {', '.join(LOSS_ON)}")
    require(config.optimizer in OPTIMIZERS, "optimizer", f"must be one of {', '.join(OPTIMIZERS)}")
    check_shares(config, processes=1, where=f"{where('train_batch')}: ")


def _check_sentiment(config: SentimentConfig, where: Where) -> None:
    require = _requirement(config, where)
    require(0 < config.validation_percent < 1, "validation_percent", "must be between 0 and 1")
    require(bool(config.base_model), "base_model", "must name a model")
    require(config.lm_weight >= 0, "lm_weight", "must not be negative")
    require(config.patience >= 0, "patience", "must not be negative")
    require(config.pooling in POOLINGS, "pooling", f"must be one of {', '.join(POOLINGS)}")
    require(
        0 <= config.character_dropout < 1, "character_dropout", "must be from 0 up to but not 1"
    )
    require(0 <= config.reference_weight <= 1, "reference_weight", "must be from 0 to 1")
    require(0 <= config.split_seed < 2**63, "split_seed", "must be from 0 to 2**63 - 1")
    require(
        not (config.frozen and config.lm_weight),
        "lm_weight",
        "needs frozen: False, as the language model does not learn where it is frozen",
    )
    require(
        not (config.frozen and config.character_dropout),
        "character_dropout",
        "needs frozen: False, as the states of the frozen blocks are computed once",
    )
    require(
        config.use_mask or not config.lm_weight,
        "lm_weight",
        "needs use_mask: True, as nothing is to be learnt from padding",
    )


def _requirement(config: Config, where: Where) -> Callable[[bool, str, str], None]:
    def require(condition: bool, key: str, reason: str) -> None:
        if not condition:
            raise UserError(f"{where(key)}: {key}: {getattr(config, key)} {reason}")

    return require


def check_shares(config: Config, processes: int, where: str = "") -> None:
    """Each process must get as many rows as the others, in each part of a step.

    Raises:
        UserError: with the nearest `train_batch` that can be shared.
    """
    shares = processes * config.accumulate
    below = config.train_batch // shares * shares
    if config.train_batch == below:
        return
    among = f"accumulate ({config.accumulate})"
    if processes > 1:
        among = f"{processes} processes x {among}"
    nearest = f"{below} or {below + shares}" if below else str(shares)
    raise UserError(
        f"{where}train_batch: {config.train_batch} is not divisible by {among}",
        f"set train_batch to {nearest}",
    )


C = TypeVar("C", bound=Config)


@overload
def load_config(path: str | Path | None, overrides: list[str] | None = None) -> Config: ...
@overload
def load_config(path: str | Path | None, overrides: list[str] | None, schema: type[C]) -> C: ...


def load_config(
    path: str | Path | None, overrides: list[str] | None = None, schema: type[Config] = Config
) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Args:
        path: None takes the defaults.
        schema: the class of the config, which says what keys there are.

    Raises:
        UserError: the file cannot be read, is not a flat YAML mapping, has an unknown key, a value
            of the wrong type, or a value that cannot work.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    _check_keys(values, str(path), schema)
    typed = _parse_overrides(overrides or [], schema)
    return _build(
        {**values, **typed}, lambda key: "command line" if key in typed else str(path), schema
    )


def config_from_dict(values: dict[str, Any], where: str, schema: type[C]) -> C:
    """Check `values` (key -> value) against the schema; `where` names their source in messages."""
    _check_keys(values, where, schema)
    return _build(values, lambda key: where, schema)


def config_keys(schema: type[Config]) -> list[str]:
    """The keys that a config of this class has."""
    return [field.name for field in dataclasses.fields(schema)]


class _Quoted(str):
    """A string that YAML writes in quotes: readers disagree on what else `0.` or `1e3` is."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def config_to_yaml(config: Config) -> str:
    """The config as YAML that `load_config` reads back unchanged."""
    values = dataclasses.asdict(config)
    for key, value in values.items():
        if isinstance(value, str):
            values[key] = _Quoted(value)
        elif isinstance(value, list):
            values[key] = [_Quoted(item) for item in value]
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory, not a YAML file")
        # Interpolations such as ${oc.env:HOME} are resolved later, by the schema.
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        known = ", ".join(sorted(str(p) for p in Path("config").glob("*.yaml")))
        raise UserError(
            f"config file {path} not found", f"shipped configs: {known}" if known else ""
        ) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} is not valid YAML: {_one_line(error)}", "write one `key: value` a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a mapping", "write one `key: value` a line")
    return {str(key): value for key, value in loaded.items()}


def _parse_overrides(overrides: list[str], schema: type[Config]) -> dict[str, Any]:
    """Values stay the strings that were typed; the schema turns them into numbers and so on."""
    values: dict[str, Any] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(
                f"command line: {argument!r} is not of the form key=value",
                "write for example lr=3e-4, without spaces around the =",
            )
        _check_keys({key: text}, "command line", schema)
        values[key] = text
        if key == "data_path" and text.startswith("["):
            try:
                values[key] = yaml.load(text, Loader=yaml.BaseLoader)  # every element a string
            except yaml.YAMLError:
                raise UserError(
                    f"command line: {argument!r} is not a list", "write data_path=[a.txt,b.txt]"
                ) from None
    return values


def _check_keys(values: dict[str, Any], where: str, schema: type[Config]) -> None:
    known = config_keys(schema)
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = (
                f"did you mean `{nearest[0]}`?" if nearest else f"known keys: {', '.join(known)}"
            )
            raise UserError(f"{where}: unknown key `{key}`", advice)


def _build(values: dict[str, Any], where: Where, schema: type[C]) -> C:
    """Merge known keys into the schema, which checks and converts types, and check the values."""
    merged = OmegaConf.structured(schema)
    OmegaConf.set_readonly(merged, False)
    may_be_empty = {f.name for f in dataclasses.fields(schema) if "None" in str(f.type)}
    for key, value in values.items():
        if value == "???":  # OmegaConf's sign for a value still to come; it would be passed over
            raise UserError(f"{where(key)}: {key}: ??? must be replaced by a value")
        empty = key in may_be_empty and value in ("", "None", "none", "null")
        try:
            OmegaConf.update(merged, key, None if empty else value)
        except (OmegaConfBaseException, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where(key)}: {key}: {value!r} does not fit: {reason}") from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere
        key = error.full_key or "config"
        raise UserError(f"{where(key)}: {key}: {_one_line(error)}") from None
    assert isinstance(config, schema)
    config = _with_plain_paths(config, where)
    config.check(where)
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _with_plain_paths(config: C, where: Where) -> C:
    """`data_path` is a string or a list of strings."""
    paths = config.data_path
    many = isinstance(paths, (list, tuple))
    if not all(isinstance(p, str) and p for p in (paths if many else [paths])) or not paths:
        raise UserError(
            f"{where('data_path')}: data_path: {paths!r} is not a file name or a list of them",
            "write data_path: a.txt or data_path: [a.txt, b.txt]; put numbers in quotes",
        )
    return dataclasses.replace(config, data_path=list(paths) if many else paths)
