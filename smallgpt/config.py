"""Every key of a run once: type, default, limits, meaning, and the commands that use it.

`config_file.py` reads them. From the fields below also come the keys that `smallgpt config` prints,
docs/configuration.md, and config/schema.json for editors.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from smallgpt.utils.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
Pooling = Literal["last", "last_mean"]
DTYPES: tuple[str, ...] = get_args(Dtype)
SMALL_TALK = "smalltalk"
"""In `mix_path`: the built-in small talk, which is written into the folder of the run."""
POOLINGS: tuple[str, ...] = get_args(Pooling)
LORA_TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The matrices of a layer. In `lora_targets` what is before the dot may be left out."""

TRAIN, CHAT, CLASSIFY = "train.py", "chat.py", "sentimentalTrain.py"
TRAIN_FROM_BASE = "train.py with base_model"
TRAIN_ON_PREFERENCES = "train.py with preference_loss"
ABLATION, TEXT = "smallgpt sentiment ablation", "smallgpt sentiment text"
_ON_DIALOGUES = (TRAIN, TRAIN_FROM_BASE)
_FROM_BASE = (TRAIN_FROM_BASE, TRAIN_ON_PREFERENCES)
_ON_TEXT = (TRAIN, *_FROM_BASE)
_TRAINING = (*_ON_TEXT, CLASSIFY, ABLATION)
_ANY = (*_TRAINING, CHAT)


def _key(default: Any, **metadata: Any) -> Any:
    """A field of a config class: its group, the commands that use it, limits for pydantic; and
    `path` where it names a file or folder."""
    return dataclasses.field(default=default, metadata=metadata)


_network = partial(_key, group="network", used_by=(TRAIN,))
_sampling = partial(_key, group="sampling", used_by=(*_ON_TEXT, CHAT))
_dialogues = partial(_key, group="data", used_by=_ON_TEXT)
_data = partial(_key, group="data", used_by=_TRAINING)
_hardware = partial(_key, group="hardware", used_by=_TRAINING)
_length = partial(_key, group="length", used_by=_TRAINING)
_optimizer = partial(_key, group="optimizer", used_by=_TRAINING)
_output = partial(_key, group="output", used_by=_TRAINING)
_lora = partial(_key, group="adapters", used_by=(*_FROM_BASE, CLASSIFY))
_preference = partial(_key, group="preferences", used_by=(TRAIN_ON_PREFERENCES,))
_reviews = partial(_key, group="classifier", used_by=(CLASSIFY, ABLATION, TEXT))
_classifier = partial(_key, group="classifier", used_by=(CLASSIFY, ABLATION))


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. A checkpoint can only be resumed with the same one."""

    block_size: int = _network(256, ge=8)
    """Positions in a row; the longest context of the model."""
    tokenizer: Literal["characters", "subwords"] = _network("characters")
    """What a token is: a character, or a piece of up to 4 characters that is frequent in the
    training text. Subwords suit text of a million characters or more."""
    vocab_size: int = _network(0, ge=0)
    """Rows of the embedding; 0 takes what the text needs, more than that is allowed. With subwords
    it is how many ids the vocabulary has at most; 0 takes one for each character, and one for every
    600 characters to train on, but no more than 16,000."""
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
    """Up to this many tokens in a row have an embedding of their own at the input, beside that
    of the last of them; 1 is plain GPT-2, and transformers cannot load the others."""
    ngram_rows: int = _network(65536, ge=1)
    """Rows in the table of each length, shared by n-grams with the same hash."""
    ngram_embd: int = _network(128, ge=1)
    """Width of these tables; a matrix brings it to `n_embd`."""
    ngram_dropout: float = _network(0.0, used_by=_TRAINING, ge=0, lt=1)
    """How often an n-gram's embedding is left out in training."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token, a character or a piece of several, is drawn from the logits.

    A run with `base_model` takes the base's values where it has the defaults.
    """

    temperature: float = _sampling(0.5, ge=0)
    """0 always takes the most likely token."""
    top_k: int = _sampling(0, ge=0)
    """Draw from the k most likely tokens only; 0 is off."""
    top_p: float = _sampling(0.9, gt=0, le=1)
    """Draw from the most likely tokens that together reach this probability; 1 is off."""
    repetition_penalty: float = _sampling(1.0, ge=0.001, le=1000)
    """Above 1 makes tokens already in the reply less likely (CTRL, arXiv:1909.05858)."""
    frequency_penalty: float = _sampling(0.0, ge=-2, le=2)
    """Subtracted from a token's logit for each time it is in the reply already."""
    presence_penalty: float = _sampling(0.0, ge=-2, le=2)
    """Subtracted once from the logit of a token that is in the reply already."""
    no_repeat_ngram: int = _sampling(0, ge=0)
    """So many characters in a row may not come twice in a reply; 0 is off."""
    max_repeats: int = _sampling(3, ge=0)
    """A span of 1 to 16 characters may stand at most so many times in a row in a reply, such as
    哈哈哈; 0 is off."""
    max_new_tokens: int = _sampling(100, ge=1)
    """Longest reply, in tokens: characters, or with tokenizer: subwords pieces of up to 4."""
    best_of: int = _sampling(1, ge=1, le=64)
    """Draw so many replies and keep the one that the talk explains best. It is shown when all are
    drawn: on a slow machine leave it at 1, where each character is shown as it is drawn."""
    mmi_weight: float = _sampling(1.0, ge=0, le=1)
    """How much it counts against one of `best_of` replies that it is likely whatever was said (MMI,
    arXiv:1510.03055); 0 keeps the likeliest reply."""


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
    """How often one of the rarest characters or pieces (1 % of the text) is shown as <unk>."""
    context_dropout: float = _dialogues(0.0, ge=0, lt=1)
    """How often an utterance is learnt as if nothing had been said before it. The model then knows
    how likely a reply is by itself, which best_of subtracts."""
    base_model: str | None = _data(None, path=True)
    """A model to start from instead of fresh weights: a checkpoint directory, the folder of a run,
    or a GPT-2 in Hugging Face's format. Characters it does not know are added to its vocabulary."""
    mix_path: str | list[str] | None = _data(None, used_by=_FROM_BASE, path=True)
    """Dialogues to learn from beside `data_path`, so that what the base model knew of them is not
    forgotten: smalltalk, which is the built-in small talk, or files. They are not validated on."""
    mix_share: float = _data(0.2, used_by=_FROM_BASE, gt=0, lt=1)
    """Share of the rows (or preferences) of a step that come from `mix_path`; at least one row."""
    loss_on: Literal["all", "replies"] = _dialogues("all")
    """all utterances, or replies: every second one."""

    lora_rank: int = _lora(0, ge=0)
    """Train adapters of this rank for the matrices of the layers, and leave base_model as it is
    (LoRA, arXiv:2106.09685). They take little memory and disk; 0 trains the whole model."""
    lora_alpha: float = _lora(32.0, gt=0)
    """What an adapter adds is scaled by `lora_alpha` / `lora_rank`."""
    lora_dropout: float = _lora(0.0, ge=0, lt=1)
    """Share of the inputs of an adapter left out in training."""
    lora_targets: str | list[str] = _lora("all")
    """Which matrices get adapters: all, or some of attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj;
    c_proj means both of that name."""

    preference_loss: Literal["dpo", "kto"] | None = _preference(None)
    """Learn which replies people prefer, from a `data_path` of preferences: dpo from pairs of a
    better and a worse reply (arXiv:2305.18290), kto from replies that are good or bad, each for
    itself (arXiv:2402.01306). Empty: learn to say what the dialogues say."""
    preference_beta: float = _preference(0.1, gt=0)
    """How much it counts to stay near the base model: lower lets it move farther away."""
    preference_smoothing: float = _preference(0.0, ge=0, lt=0.5)
    """With dpo: how often a pair may be the wrong way round (label smoothing)."""
    preference_likelihood: float = _preference(0.0, ge=0)
    """With dpo: weight of the loss, a character or piece, of saying the better reply itself. Keeps
    it from becoming unlikely along with the worse one (arXiv:2404.19733). kto does not use it."""
    preference_patience: int = _preference(100, ge=0)
    """Stop, and say the likely reasons, where after so many steps better and worse replies are
    still as likely as for the base model; 0 never."""

    device: str = _hardware("auto", used_by=_ANY)
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Dtype = _hardware("auto", used_by=_ANY)
    """What matrix products are computed in. float16 needs a GPU. int8 and int4 are for chat on a
    CPU: the layers take a half and a quarter of bfloat16's memory, and a reply comes sooner."""
    compile: bool = _hardware(False)
    """torch.compile the layers, for training and validation."""
    attention: Literal["auto", "mask", "varlen"] = _hardware("auto", used_by=_ON_DIALOGUES)
    """What keeps the dialogues of a row apart. varlen, variable-length attention, needs an NVIDIA
    GPU of Ampere (2020) or newer and 16 bits, and has no dropout on attention weights; mask works
    everywhere. auto takes varlen where it can."""
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
    test_batch: int = _length(8, used_by=_ON_TEXT, ge=1)
    """Rows in a validation batch, as `eval_steps` counts them; they are computed together as many
    at a time as in training."""
    eval_freq: int = _length(500, ge=0)
    """Steps between validations; 0 validates only at the end."""
    patience: int = _length(0, ge=0)
    """Stop after this many validations without a better one; 0 never. With it, train.py also saves
    the best model so far whenever there is a new one (on a GPU at the next save)."""
    eval_steps: int = _length(1000, used_by=_ON_TEXT, ge=1)
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
    keep_last: int = _output(3, used_by=(*_ON_TEXT, CLASSIFY), ge=0)
    """Newest checkpoints to keep; the best by validation loss stays too. 0 keeps all."""
    tensorboard_path: str | None = _output("auto", path=True)
    """Folder for TensorBoard; auto is `tensorboard` in `checkpoint_root`, empty is none."""
    resume_from: str | None = _output(None, used_by=(*_ON_TEXT, CLASSIFY, CHAT), path=True)
    """A checkpoint directory, `latest` or `best` in `checkpoint_root`, or a legacy `.pth` file,
    whose text is `data_path`. Training goes on from the latest only, or from any into another
    `checkpoint_root`. `auto` is the latest if there is one, else a new run."""

    def data_paths(self) -> list[Path]:
        """The files of `data_path`, in order."""
        return _paths(self.data_path)

    def mix_paths(self) -> list[Path]:
        """The files of `mix_path`, in order; of the built-in small talk it is `small_talk_path`."""
        small_talk = Path(SMALL_TALK)
        paths = _paths(self.mix_path or [])
        return [self.small_talk_path() if path == small_talk else path for path in paths]

    def small_talk_path(self) -> Path:
        """Where the built-in small talk is, if it is mixed in."""
        return Path(self.checkpoint_root, "smalltalk.txt")

    def mixed_rows(self) -> int:
        """Rows of a step that come from `mix_path`; none without a base model."""
        mixes = self.mix_path and self.base_model
        return max(1, round(self.mix_share * self.train_batch)) if mixes else 0

    def lora_matrices(self) -> tuple[str, ...]:
        """Those of `LORA_TARGETS` that get adapters."""
        wanted = _listed(self.lora_targets)
        return tuple(name for name in LORA_TARGETS if _names(name) & wanted)

    def tensorboard_folder(self) -> Path | None:
        """Where TensorBoard finds this run."""
        path = self.tensorboard_path
        if path == "auto":
            return Path(self.checkpoint_root, "tensorboard")
        return Path(path) if path else None

    def last_step(self, steps_per_epoch: float) -> int:
        """The step at which training ends at the latest, see `max_minutes` and `patience`;
        `steps_per_epoch` is rows of the text / those of a step."""
        of_epochs = self.max_epoch and max(
            self.min_steps or 1, round(self.max_epoch * steps_per_epoch)
        )
        return min(filter(None, (self.max_steps, of_epochs)), default=self.decay_steps)

    def conflicts(self) -> Iterator[tuple[bool, str, str]]:
        """What no limit of one key says: (is it so?, the key to blame, why it cannot work)."""
        yield not self.checkpoint_root, "checkpoint_root", "must name a folder"
        yield not (self.data_path and all(self.data_path)), "data_path", "must name a file"
        alone = f"leaves no row for data_path: train_batch is {self.train_batch}"
        yield self.mixed_rows() >= self.train_batch, "mix_share", alone
        yield self.lora_rank > 0 and not self.base_model, "lora_rank", "needs a base_model"
        prefers = self.preference_loss is not None
        yield prefers and not self.base_model, "preference_loss", "needs a base_model"
        of_pairs = "needs preference_loss: dpo"
        kto = self.preference_loss == "kto"
        yield kto and self.preference_smoothing > 0, "preference_smoothing", of_pairs
        wanted, known = _listed(self.lora_targets), set().union(*map(_names, LORA_TARGETS))
        matrices = f"must be all, or some of {', '.join(LORA_TARGETS)}"
        yield not wanted or not wanted <= known, "lora_targets", matrices
        heads = f"is not divisible by n_head ({self.n_head}): every head needs the same width"
        yield self.n_embd % self.n_head > 0, "n_embd", heads
        yield self.min_lr > self.lr, "min_lr", f"must not exceed lr ({self.lr})"
        steps = f"must not exceed decay_steps ({self.decay_steps})"
        in_steps = self.warmup is None and self.decay is None
        yield in_steps and self.warmup_steps > self.decay_steps, "warmup_steps", steps
        share = f"must not exceed decay ({self.decay})"
        yield (self.warmup or 0) > (self.decay or 1), "warmup", share


def _listed(named: str | list[str]) -> set[str]:
    return {named} if isinstance(named, str) else {*named}


def _names(target: str) -> set[str]:
    """What one of `LORA_TARGETS` may be called."""
    return {"all", target, target.partition(".")[2]}


def _paths(named: str | list[str]) -> list[Path]:
    return [Path(path) for path in ([named] if isinstance(named, str) else named)]


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
    max_positions: int = _classifier(6144, ge=1)
    """Positions (rows x length with padding) to compute at a time, beyond `accumulate`: what 16 GB
    of GPU memory hold at 300M. The result is the same, to rounding and to where dropout falls. A
    review is learnt from as a whole: 16 rows at most."""
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

    def conflicts(self) -> Iterator[tuple[bool, str, str]]:
        """As in `Config`, and what cannot be of a classifier."""
        yield from super().conflicts()
        yield not self.base_model, "base_model", "must name a model"
        classes = set((self.label_map or {}).values())
        yield len(classes) == 1, "label_map", "must name at least two classes"
        learns = "needs frozen: False, as a frozen language model does not learn"
        yield self.frozen and self.lm_weight > 0, "lm_weight", learns
        once = "needs frozen: False, as the states of the frozen blocks are computed once"
        yield self.frozen and self.character_dropout > 0, "character_dropout", once
        whole = "needs frozen: False, as adapters leave all layers frozen"
        yield self.frozen and self.lora_rank > 0, "lora_rank", whole
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
