"""Every key of a run once: type, default, limits, meaning, and the commands that use it.

Pydantic reads the fields below to convert and check values. From the same fields come the keys that
`smallgpt config` prints, docs/configuration.md, and config/schema.json for editors.
"""

import dataclasses
import difflib
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from typing_extensions import TypeVar

from smallgpt.utils.commands import CONFIGS, config_names, script
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import exists, not_found, without_tilde

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Pooling = Literal["last", "last_mean"]
DTYPES: tuple[str, ...] = get_args(Dtype)
POOLINGS: tuple[str, ...] = get_args(Pooling)

TRAIN, CHAT, CLASSIFY = "train.py", "chat.py", "sentimentalTrain.py"
TRAIN_FROM_BASE = "train.py with base_model"
ABLATION, TEXT = "smallgpt sentiment ablation", "smallgpt sentiment text"
_TRAINING = (TRAIN, TRAIN_FROM_BASE, CLASSIFY, ABLATION)
_ANY = (*_TRAINING, CHAT)
_AS_YAML = {"data_path": "[]", "label_map": "{}"}
"""Keys whose value on the command line is YAML where it stands in these."""


def _key(default: Any, **metadata: Any) -> Any:
    """A field of a config class: its group, the commands that use it, limits for pydantic; and
    `path` where it names a file or folder."""
    return dataclasses.field(default=default, metadata=metadata)


_network = partial(_key, group="network", used_by=(TRAIN,))
_sampling = partial(_key, group="sampling", used_by=(TRAIN, TRAIN_FROM_BASE, CHAT))
_dialogues = partial(_key, group="data", used_by=(TRAIN, TRAIN_FROM_BASE))
_data = partial(_key, group="data", used_by=_TRAINING)
_hardware = partial(_key, group="hardware", used_by=_TRAINING)
_length = partial(_key, group="length", used_by=_TRAINING)
_optimizer = partial(_key, group="optimizer", used_by=_TRAINING)
_output = partial(_key, group="output", used_by=_TRAINING)
_reviews = partial(_key, group="classifier", used_by=(CLASSIFY, ABLATION, TEXT))
_classifier = partial(_key, group="classifier", used_by=(CLASSIFY, ABLATION))


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. A checkpoint can only be resumed with the same one."""

    block_size: int = _network(256, ge=8)
    """Positions in a row; the longest context of the model."""
    vocab_size: int = _network(0, ge=0)
    """Rows of the embedding; 0 takes what the text needs, more than that is allowed."""
    n_layer: int = _network(12, ge=1)
    """Layers."""
    n_head: int = _network(12, ge=1)
    """Attention heads in a layer."""
    n_embd: int = _network(768, ge=1)
    """Width of the network; a multiple of `n_head`."""
    dropout: float = _network(0.0, used_by=_TRAINING, ge=0, lt=1)
    """Share of the activations left out in training."""
    bias: bool = _network(True)
    """Biases in linear layers and layer norms."""
    activation: Literal["gelu", "gelu_new"] = _network("gelu")
    """gelu (exact), or gelu_new, GPT-2's approximation of it."""
    layer_norm_epsilon: float = _network(1e-5, gt=0)
    """Added to the variance in layer norms."""
    tied: bool = _network(True)
    """The output head is the embedding; False gives it weights of its own."""
    ngram_order: int = _network(1, ge=1, le=4)
    """Up to this many characters in a row have an embedding of their own at the input, beside that
    of the last of them; 1 is plain GPT-2, and transformers cannot load the others."""
    ngram_rows: int = _network(65536, ge=1)
    """Rows in the table of each length, shared by n-grams with the same hash."""
    ngram_embd: int = _network(128, ge=1)
    """Width of these tables; a matrix brings it to `n_embd`."""
    ngram_dropout: float = _network(0.0, used_by=_TRAINING, ge=0, lt=1)
    """How often an n-gram's embedding is left out in training."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next character is drawn from the logits."""

    temperature: float = _sampling(0.5, ge=0)
    """0 always takes the most likely character."""
    top_k: int = _sampling(0, ge=0)
    """Draw from the k most likely characters only; 0 is off."""
    top_p: float = _sampling(0.9, gt=0, le=1)
    """Draw from the most likely characters that together reach this probability; 1 is off."""
    repetition_penalty: float = _sampling(1.0, ge=0.001, le=1000)
    """Above 1 makes characters already in the reply less likely (CTRL, arXiv:1909.05858)."""
    max_new_tokens: int = _sampling(100, ge=1)
    """Longest reply, in characters."""


@dataclass(frozen=True)
class Config(ModelConfig, SamplingConfig):
    """All keys of a run. `train.py` and `chat.py` read the same file format."""

    data_path: str | list[str] = _data("data/train.txt", used_by=_ANY, path=True)
    """A file of dialogues or a list of them: text, JSON, JSONL, CSV, TSV or Parquet; plain, .gz or
    .xz."""
    train_percent: float = _data(0.8, used_by=(*_TRAINING, TEXT), gt=0, lt=1)
    """Share of the dialogues to train on, the rest is for validation; of reviews, the rest is for
    the test."""
    unk_rate: float = _dialogues(0.1, ge=0, le=1)
    """How often one of the rarest characters (1 % of the text) is shown as <unk>."""
    base_model: str | None = _data(None, path=True)
    """A model to start from instead of fresh weights: a checkpoint directory, the folder of a run,
    or a GPT-2 in Hugging Face's format. Characters it does not know are added to its vocabulary."""
    loss_on: Literal["all", "replies"] = _dialogues("all")
    """all utterances, or replies: every second one."""

    device: str = _hardware("auto", used_by=_ANY)
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Dtype = _hardware("auto", used_by=_ANY)
    """What matrix products are computed in. float16 needs a GPU; int8 is for chat only: half the
    memory of bfloat16, and the fastest on a CPU."""
    compile: bool = _hardware(False)
    """torch.compile the training step."""
    ddp: bool = _hardware(False)
    """Refuse to run without torchrun, which starts several processes for one run."""
    ddp_timeout: float = _hardware(600.0, gt=0)
    """Seconds a process waits for the others before it gives up."""
    local_rank: int = _hardware(0, used_by=())
    """Accepted for old files, and not used."""
    world_size: int = _hardware(1, used_by=())
    """Accepted for old files, and not used."""
    seed: int = _hardware(114514, used_by=_ANY, ge=0, le=2**63 - 1)
    """The same seed gives the same run."""

    max_steps: int | None = _length(None, ge=1)
    """Stop after this many steps (of the whole run, also when resumed)."""
    max_epoch: int | None = _length(None, ge=1)
    """Stop after this many passes over the data. With neither limit, `decay_steps` is the end."""
    min_steps: int | None = _length(None, ge=1)
    """Take at least this many steps, where `max_epoch` would end sooner. A typed `max_steps` or
    `max_epoch` switches it off."""
    max_minutes: float | None = _length(None, gt=0)
    """Choose the number of steps so that training takes about this long: the first steps are
    measured, and `max_steps` is the most. Resuming keeps the number. A typed `max_steps` or
    `max_epoch` switches it off."""
    train_batch: int = _length(32, ge=1)
    """Rows of `block_size` (or reviews) a step, over all processes."""
    accumulate: int = _length(1, ge=1)
    """Split a step's rows into this many parts to save memory. The result is the same, to rounding
    and to where dropout falls."""
    test_batch: int = _length(8, ge=1)
    """Rows in a validation batch."""
    eval_freq: int = _length(500, ge=0)
    """Steps between validations; 0 validates only at the end."""
    patience: int = _length(0, ge=0)
    """Stop after this many validations without a better one; 0 never. With it, train.py also saves
    whenever a validation is the best so far."""
    eval_steps: int = _length(1000, used_by=(TRAIN, TRAIN_FROM_BASE), ge=1)
    """Validation batches at most."""

    optimizer: Literal["adamw", "muon"] = _optimizer("adamw")
    """adamw, or muon: Muon for the matrices of the layers, AdamW for the rest."""
    lr: float = _optimizer(3e-4, gt=0)
    """Highest learning rate, after the warm-up."""
    min_lr: float = _optimizer(6e-6, ge=0)
    """Learning rate at the end; at most `lr`."""
    warmup_steps: int = _optimizer(1000, ge=0)
    """Steps in which the learning rate rises to `lr`; at most `decay_steps`."""
    warmup: float | None = _optimizer(None, gt=0, le=1)
    """The same as a share of the run, used instead of `warmup_steps` unless empty."""
    decay_steps: int = _optimizer(100_000, ge=1)
    """Step at which the cosine reaches `min_lr`."""
    decay: float | None = _optimizer(None, gt=0, le=1)
    """The same as a share of the run, used instead of `decay_steps` unless empty."""
    weight_decay: float = _optimizer(0.1, ge=0)
    """For matrices; vectors (biases, norms) never decay."""
    beta1: float = _optimizer(0.9, ge=0, lt=1)
    """AdamW's decay of the mean of the gradient."""
    beta2: float = _optimizer(0.95, ge=0, lt=1)
    """AdamW's decay of the mean of its square."""
    grad_clip: float = _optimizer(1.0, ge=0)
    """Largest norm of the gradient; 0 is off."""

    checkpoint_root: str = _output("checkpoints", used_by=_ANY, path=True)
    """Folder of the run: checkpoints `cpt{step}` and metrics.jsonl."""
    save_freq: int = _output(4000, ge=1)
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = _output(3, used_by=(TRAIN, TRAIN_FROM_BASE, CLASSIFY), ge=0)
    """Newest checkpoints to keep; the best by validation loss stays too. 0 keeps all."""
    tensorboard_path: str | None = _output("auto", path=True)
    """Folder for TensorBoard; auto is `tensorboard` in `checkpoint_root`, empty is none."""
    resume_from: str | None = _output(
        None, used_by=(TRAIN, TRAIN_FROM_BASE, CLASSIFY, CHAT), path=True
    )
    """A checkpoint directory, `latest` or `best` in `checkpoint_root`, or a legacy `.pth` file,
    whose text is `data_path`. Training goes on from the latest only, or from any into another
    `checkpoint_root`. `auto` is the latest if there is one, else a new run."""

    def data_paths(self) -> list[Path]:
        """The files of `data_path`, in order."""
        paths = [self.data_path] if isinstance(self.data_path, str) else self.data_path
        return [Path(path) for path in paths]

    def tensorboard_folder(self) -> Path | None:
        """Where TensorBoard finds this run."""
        path = self.tensorboard_path
        if path == "auto":
            return Path(self.checkpoint_root, "tensorboard")
        return Path(path) if path else None

    def last_step(self, steps_per_epoch: float) -> int:
        """The step at which training ends at the latest, see `max_minutes` and `patience`;
        `steps_per_epoch` is rows / `train_batch`."""
        of_epochs = self.max_epoch and max(
            self.min_steps or 1, round(self.max_epoch * steps_per_epoch)
        )
        return min(filter(None, (self.max_steps, of_epochs)), default=self.decay_steps)

    def _conflicts(self) -> Iterator[tuple[bool, str, str]]:
        """What no limit of one key says: (is it so?, the key to blame, why it cannot work)."""
        yield not self.checkpoint_root, "checkpoint_root", "must name a folder"
        yield not (self.data_path and all(self.data_path)), "data_path", "must name a file"
        heads = f"is not divisible by n_head ({self.n_head}): every head needs the same width"
        yield self.n_embd % self.n_head > 0, "n_embd", heads
        yield self.min_lr > self.lr, "min_lr", f"must not exceed lr ({self.lr})"
        steps = f"must not exceed decay_steps ({self.decay_steps})"
        in_steps = self.warmup is None and self.decay is None
        yield in_steps and self.warmup_steps > self.decay_steps, "warmup_steps", steps
        share = f"must not exceed decay ({self.decay})"
        yield (self.warmup or 0) > (self.decay or 1), "warmup", share


@dataclass(frozen=True)
class SentimentConfig(Config):
    """All keys of training a classifier: those of a run, and what is below."""

    sentimental_data_path: str = _reviews("data/ChnSentiCorp_htl_all.csv", path=True)
    """Labelled texts: CSV, TSV or JSONL with a header; plain, .gz or .xz."""
    text_column: str = _reviews("review")
    """Name of the column that holds the text."""
    label_column: str = _reviews("label")
    """Any number of classes; their names are kept in the checkpoint."""
    label_map: dict[str, str] | None = _reviews(None)
    """Which class each label stands for, such as {1: 差评, 2: 差评, 4: 好评, 5: 好评} for stars;
    reviews with other labels are left out and counted. Empty: every label is a class."""
    base_model: str | None = _classifier("checkpoints/pretrained/cpt300M.pth", path=True)
    """What a classifier starts from: a checkpoint directory of train.py or of a classifier, the
    folder of a run, a GPT-2 in Hugging Face's format, or a legacy `.pth` file, whose text is
    `data_path`."""
    use_mask: bool = _classifier(True, used_by=(CLASSIFY,))
    """Classify at <extract>, so that padding does not count; False classifies at the last position
    of the row, which is padded to `block_size`."""
    frozen: bool = _classifier(False, used_by=(CLASSIFY,))
    """Train only the head, the last block and the final norm."""
    lm_weight: float = _classifier(0.0, ge=0)
    """Weight of the language-model loss beside the label's (the lambda of GPT-1)."""
    validation_percent: float = _reviews(0.1, gt=0, lt=1)
    """Share of the training part (`train_percent`) that chooses the best model."""
    split_seed: int = _reviews(0, ge=0, le=2**63 - 1)
    """Which reviews are in which part; `seed` changes only the training."""
    pooling: Pooling = _classifier("last")
    """What the head reads: last, the state at the position that classifies; last_mean, beside it
    the mean of the states up to there (transformers cannot load such a classifier)."""
    character_dropout: float = _classifier(0.0, ge=0, lt=1)
    """How often a character of a review is shown as <unk> in training."""
    reference_weight: float = _classifier(0.0, ge=0, le=1)
    """How much of the loss is taken against the probabilities of the TF-IDF baseline instead of the
    labels; each review is judged by a baseline that did not learn from it."""

    def _conflicts(self) -> Iterator[tuple[bool, str, str]]:
        yield from super()._conflicts()
        yield not self.base_model, "base_model", "must name a model"
        classes = set((self.label_map or {}).values())
        yield len(classes) == 1, "label_map", "must name at least two classes"
        learns = "needs frozen: False, as a frozen language model does not learn"
        yield self.frozen and self.lm_weight > 0, "lm_weight", learns
        once = "needs frozen: False, as the states of the frozen blocks are computed once"
        yield self.frozen and self.character_dropout > 0, "character_dropout", once
        padding = "needs use_mask: True, as there is nothing to learn from padding"
        yield not self.use_mask and self.lm_weight > 0, "lm_weight", padding


def check_shares(config: Config, processes: int, where: str = "") -> None:
    """Refuse a `train_batch` of which the parts of a step in all processes cannot get equal shares.

    The error names the nearest one that can be shared.
    """
    shares = processes * config.accumulate
    below = config.train_batch // shares * shares
    if config.train_batch == below:
        return
    among = f"{processes} processes x " if processes > 1 else ""
    among += f"accumulate ({config.accumulate})"
    nearest = f"{below} or {below + shares}" if below else str(shares)
    raise UserError(
        f"{where}train_batch: {config.train_batch} is not divisible by {among}",
        f"set train_batch to {nearest}",
    )


def properties(schema: type[Any]) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each key of a config of this class, with its meaning."""
    found: dict[str, dict[str, Any]] = {}
    for cls in reversed(schema.__mro__[:-1]):  # pydantic reads the docstrings of own fields only
        for key, known in _adapter(cls, True).json_schema()["properties"].items():
            found[key] = found.get(key, {}) | known
    for known in found.values():
        known["description"] = " ".join(known["description"].split())
        del known["title"]
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a YAML file of any command, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        # `base_model` is in both; the one of `Config` is the more general.
        "properties": properties(SentimentConfig) | properties(Config),
        "additionalProperties": False,
    }


def allowed_values(known: dict[str, Any]) -> str:
    """What a value must be, in words; `known` is the JSON Schema of its key."""
    if "anyOf" in known:
        return ", or ".join(map(allowed_values, known["anyOf"]))
    if "enum" in known:
        return f"one of {', '.join(known['enum'])}"
    nouns = {
        "boolean": "True or False",
        "integer": "a whole number",
        "number": "a finite number",
        "string": "text",
        "array": "a list of them",
        "object": "a mapping {label: text, …}",
        "null": "empty",
    }
    words = {
        "exclusiveMinimum": "above",
        "minimum": "of at least",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = " and ".join(f"{words[name]} {known[name]}" for name in words if name in known)
    return f"{nouns[known['type']]} {limits}".rstrip()


def typed_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The keys that `key=value` arguments change."""
    return frozenset(argument.partition("=")[0] for argument in overrides)


_REPLACED_BY: dict[tuple[str, ...], frozenset[str]] = {
    ("max_steps", "max_epoch", "min_steps", "max_minutes"): frozenset({"max_steps", "max_epoch"}),
    ("warmup",): frozenset({"warmup_steps"}),
    ("decay",): frozenset({"decay_steps"}),
}
"""Keys of a file that do not count where one of these is typed, which says the same."""

C = TypeVar("C", bound=Config, default=Config)
S = TypeVar("S", bound=ModelConfig | SamplingConfig)


def load_config(
    path: str | Path | None,
    overrides: Iterable[str] | None = None,
    schema: type[C] = Config,  # type: ignore[assignment]
    command: str = "",
) -> C:
    """Read a YAML file (None: the defaults), apply `key=value` overrides, and check everything.

    `path` may be the name of a config that comes with Small GPT. `schema` says what keys there are.
    A file for other commands than `command` is refused, and a note names the keys it does not use.
    """
    typed = _parse_overrides(overrides or [])
    in_file = _read_yaml(config_file(Path(path))) if path is not None else {}
    if command:
        _refuse_other_kind(str(path), in_file, schema, command)
    for keys, alternatives in _REPLACED_BY.items():
        if not alternatives.isdisjoint(typed):
            in_file = {key: value for key, value in in_file.items() if key not in keys}
    merged = in_file | typed
    config = config_from_dict(merged, str(path), schema, typed)
    if command:  # for those that are not about a whole run a file holds more than they use
        _note_unused(command, merged if command in (TRAIN, CLASSIFY) else typed, config)
    return config


def config_file(named: Path) -> Path:
    """The YAML file that a user means: one of `CONFIGS` where a bare name is no file here."""
    name = str(named).removesuffix(".yaml")
    return CONFIGS / f"{name}.yaml" if name in config_names() and not named.is_file() else named


def _refuse_other_kind(
    file: str, given: Mapping[str, Any], schema: type[Config], asked: str
) -> None:
    """Refuse a file whose keys are those of a classifier and not of dialogues, or the reverse."""
    fields, reviews = Config.__dataclass_fields__, SentimentConfig.__dataclass_fields__
    users = {key: fields[key].metadata["used_by"] for key in given if key in fields}
    for_reviews = [key for key in given if key in reviews and key not in fields]
    for_dialogues = [key for key, used in users.items() if TRAIN in used and CLASSIFY not in used]
    own, other, command = for_dialogues, for_reviews, CLASSIFY
    if schema is SentimentConfig:
        only_chat = all(CHAT in used for used in users.values())
        own, other, command = for_reviews, for_dialogues, CHAT if only_chat else TRAIN
    if other and not own:
        keys = ", ".join(other[:4]) + (" …" if len(other) > 4 else "")
        right = f"python {script(command)} {shlex.quote(file)}"
        if (asked, command) == (CHAT, CLASSIFY):
            root = shlex.quote(str(given.get("checkpoint_root", Config.checkpoint_root)))
            right = (
                f'python -m smallgpt sentiment predict {root} "…", as a classifier does not chat'
            )
        raise UserError(f"{file} is a config for {command}: it sets {keys}", f"type: {right}")


def config_from_dict(
    values: Mapping[str, Any], where: str, schema: type[S], typed: Collection[str] = ()
) -> S:
    """The config of values as they stand in a file or were typed, checked; or a part of one.

    `where` names the source of all keys but those that were `typed`, for messages.
    """
    # Imported here: where a config is only passed on, as in the model, nothing is validated.
    from pydantic import ValidationError

    def place(key: str) -> str:
        return "command line" if key in typed else where

    values = {key: _given(key, value, place(key), schema) for key, value in values.items()}
    try:
        config: S = _adapter(schema).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        wanted = allowed_values(properties(schema)[key])
        raise UserError(f"{place(key)}: {key}: {values[key]!r} must be {wanted}") from None
    if not isinstance(config, Config):
        return config
    for wrong, key, reason in config._conflicts():
        if wrong:
            raise UserError(f"{place(key)}: {key}: {getattr(config, key)!r} {reason}")
    check_shares(config, processes=1, where=f"{place('train_batch')}: ")
    return config


def _given(key: str, value: Any, where: str, schema: type[Any]) -> Any:
    """The value of a key that must exist; None where it is optional and left empty."""
    known = schema.__dataclass_fields__
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        advice = f"did you mean `{nearest[0]}`?" if nearest else f"known keys: {', '.join(known)}"
        if key in SentimentConfig.__dataclass_fields__:
            advice = f"leave it out: only {CLASSIFY} uses it"
        raise UserError(f"{where}: unknown key `{key}`", advice)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (text == "???" or "${" in text):
            raise UserError(f"{where}: {key}: {text} must be replaced by a value")
    if isinstance(value, dict) and None in (*value, *value.values()):
        advice = "write {label: class, …} with a space behind each colon: {1: 差评, 5: 好评}"
        raise UserError(f"{where}: {key}: a label or its class is missing", advice)
    optional = type(None) in get_args(known[key].type)
    if optional and value in ("", "None", "none", "null"):
        return None
    if known[key].metadata.get("path"):
        if isinstance(value, list):
            return [without_tilde(path) if isinstance(path, str) else path for path in value]
        return without_tilde(value) if isinstance(value, str) else value
    return value


@cache
def _adapter(schema: Any, docstrings: bool = False) -> Any:
    from pydantic import TypeAdapter

    # Docstrings are read from the source: no command that only loads a config waits for that.
    schema.__pydantic_config__ = {"use_attribute_docstrings": docstrings, "allow_inf_nan": False}
    return TypeAdapter(schema)


def config_to_yaml(config: Config) -> str:
    """The config as YAML that `load_config` reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _note_unused(command: str, given: Iterable[str], config: Config) -> None:
    if command == TRAIN and config.base_model:
        command = TRAIN_FROM_BASE
    given = set(given) - {"ddp", "local_rank", "world_size"}  # old files hold these, used or not
    fields = [field for field in dataclasses.fields(config) if field.name in given]
    unused = [field.name for field in fields if command not in field.metadata["used_by"]]
    if command in (CLASSIFY, ABLATION) and not str(config.base_model).endswith(".pth"):
        unused += sorted(given & {"data_path"})  # only the text of a .pth
    if unused and os.environ.get("RANK", "0") == "0":  # torchrun starts several processes
        note(f"{command} does not use {', '.join(unused)}")


class _Loader(yaml.SafeLoader):
    """Leaves values as they are written, for the schema to convert; no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"duplicate key {name}")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(
            f"{where} is not valid YAML: {' '.join(str(error).split())}",
            "write one `key: value` a line, a list as [a, b], quotes around a name that has [ in "
            "it, and save the file as UTF-8",
        ) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = _parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        known = f"one that comes with Small GPT, by its name: {', '.join(config_names())}"
        if isinstance(error, FileNotFoundError):
            raise not_found(path, advice=known) from None
        if isinstance(error, IsADirectoryError):
            known = (
                f"a model is named with resume_from={path} or base_model={path}, behind the config"
            )
        raise UserError(f"{path} cannot be read: {error.strerror}", known) from None
    if not isinstance(loaded, dict | None):
        raise UserError(f"{path} is not a mapping", "write one `key: value` a line")
    return {str(key): value for key, value in (loaded or {}).items()}


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(
                f"command line: {argument!r} is not of the form key=value",
                "write for example lr=3e-4, without spaces around the =",
            )
        as_yaml = text[:1] + text[-1:] == _AS_YAML.get(key) and not exists(Path(text))
        values[key] = _parse_yaml(text, f"command line: {argument!r}") if as_yaml else text
    return values
