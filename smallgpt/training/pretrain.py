"""Dialogues -> GPT. `_train` reads top to bottom: config, data, model, loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from smallgpt import runtime
from smallgpt.chat.chatbot import Chatbot
from smallgpt.checkpoints import checkpoint
from smallgpt.config import Config, check_shares
from smallgpt.data.chats.exports import warn_of_exports
from smallgpt.data.corpus import (
    Corpus,
    IntArray,
    characters_an_id,
    describe,
    learn_subwords,
    open_corpus,
    unknown_places,
)
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.packing import Batch, PackedRows, RowOrder
from smallgpt.data.pairs import Pair, sample_pairs
from smallgpt.distributed.world import ALONE, World
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import SEP, UNK, Tokenizer
from smallgpt.tokenizer.subwords import pieces_of
from smallgpt.training import lora, memory, resume
from smallgpt.training.choice import Choices, can_score, choose
from smallgpt.training.composed_embeddings import compose_embedding, share_updates
from smallgpt.training.memory import gib, rows_apart
from smallgpt.training.replies import generate_replies, loops
from smallgpt.training.rows import MixedRows, open_mixed, pack_corpus
from smallgpt.training.trainer import Task, Trainer
from smallgpt.training.validation import (
    Validation,
    in_batches,
    inputs_of,
    no_targets,
    sample_of,
    summed_loss,
    validate,
)
from smallgpt.utils.commands import chat_with
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

SAMPLE_REPLIES = 3
PAIRS, PAIRS_REPLIED_TO = 50, 20
"""Of a validation: together they take a 12M model a few seconds on one core."""


def run(config: Config, command: str = "train.py …", typed: frozenset[str] = frozenset()) -> Path:
    """Train as configured and return the last checkpoint.

    Args:
        command: what the user typed behind `python` or `torchrun`, to say how to go on.
        typed: keys that were given on the command line; of the network's shape the others come
            from the checkpoint when a run is resumed.

    Raises:
        UserError: something the user can fix; earlier checkpoints are intact.
        SystemExit: 130 or 143 after Ctrl-C or SIGTERM, with the state saved.
    """
    with resume.joined(config, command) as world:
        return _train(config, command, typed, world)


def _train(config: Config, command: str, typed: frozenset[str], world: World) -> Path:
    # 1. Config: is this a new run, or what does it go on from?
    check_shares(config, world.size)
    resumed = resume.find(config, world)
    here = runtime.start(config, world.local_rank if world.size > 1 else None)

    # 2. Data: text -> dialogues -> ids -> packed rows.
    if world.is_first:
        warn_of_exports(config.data_paths())
    corpus = world.first_process_first(lambda: open_corpus(config.data_paths(), text_chunks))
    world.agree("the text", corpus.fingerprint, "give every machine the same data_path files")
    mixed = open_mixed(config, world)
    base = resume.open_base(config, world, False) if config.base_model and not resumed else None
    tokenizer = corpus.tokenizer
    if resumed:
        note(f"going on from {resumed.stored.path}")
        tokenizer = resumed.stored.tokenizer
        size = resumed.stored.config.vocab_size
        config = resume.with_shape_of(resumed.stored.config, config, size, typed)
        began_with = resumed.stored.config if config.base_model else config
        config = resume.with_sampling_of(began_with, config)
    elif base:
        tokenizer = base.tokenizer.extended(corpus.tokenizer)
        tokenizer = tokenizer.extended(mixed.tokenizer) if mixed else tokenizer
        own = typed & {"tokenizer"}  # the other keys of the shape are not used, and that is said
        config = resume.with_shape_of(base.config, config, len(tokenizer), own)
        config = resume.with_sampling_of(base.config, config)
    else:
        config, tokenizer = _with_vocabulary(config, corpus, world)
    # One process of a machine encodes, the others find what it wrote.
    train_rows, validation_rows = world.first_process_first(
        lambda: pack_corpus(config, corpus, tokenizer)
    )
    _check_targets(config, train_rows, validation_rows)
    mixed_rows = MixedRows(config, mixed, tokenizer, world) if mixed else None

    # 3. Model: the checkpoint's, the base's, or fresh.
    runtime.seed_everything(config.seed)
    model = _initial_model(config, tokenizer, resumed, base)
    adapted = None
    if config.lora_rank:
        added = len(tokenizer) - len(base.tokenizer) if base else 0
        adapted = lora.begin(config, model, base, resumed, added, world)
    here = runtime.with_attention(here, config)
    texts = train_rows.texts_a_row(config.context_dropout)
    needed = memory.check(config, here, model, rows_apart(config, world.size, texts))
    model.to(here.device).train()
    rows = train_rows, validation_rows
    task = DialogueTask(config, here, model, tokenizer, *rows, world, mixed_rows)
    task.base = adapted
    trainer = Trainer(config, here, task, world)
    if pieces_of(tokenizer) and not adapted:
        share_updates(trainer.optimizers[-1], model.wte.weight, pieces_of(tokenizer))
    if resumed and not trainer.load_state(resumed.state, resumed.stored.manifest):
        note("the checkpoint knows no place in this text: its rows begin from the start")
    if resumed:
        resumed.release()
    _describe_run(config, here, task, trainer.last_step, needed)

    # 4. Loop: step, and once in a while validate and save.
    if resumed and trainer.is_finished:
        trainer.tell_finished(resumed.stored.path)
        return resumed.stored.path
    path = trainer.train(command)
    memory.tell_peak(here, needed)
    note(f"done: the model is in {path}")
    note(task.how_to_use(trainer.best_checkpoint(path)))
    return path


def _initial_model(
    config: Config,
    tokenizer: Tokenizer,
    resumed: resume.Resumed | None,
    base: checkpoint.Checkpoint | None,
) -> GPT:
    """With fresh weights, or those of a checkpoint where this process has them: the first one,
    which gives them to all."""
    model = GPT(config)
    if pieces := pieces_of(tokenizer):
        compose_embedding(model.wte.weight, pieces)
    if resumed and resumed.stored.weights and not config.lora_rank:
        model = resumed.stored.model(config)
    if base:
        if base.weights:
            model.load_state_dict(checkpoint.weights_for_vocabulary(base, tokenizer))
        added = counted(len(tokenizer) - len(base.tokenizer), "new character")
        note(f"base: {base.path}; {added} added to its vocabulary")
        base.weights.clear()
    return model


def _check_targets(config: Config, rows: PackedRows, validation_rows: PackedRows) -> None:
    """Stop before the first step where there is nothing to learn or to validate on."""
    sample = validation_sample(config, validation_rows)
    for purpose, part, numbers in (
        ("learn", rows, np.arange(len(rows))),
        ("validate on", validation_rows, sample),
    ):
        batches = in_batches(numbers, config.train_batch)
        if not any(part.batch(some).target_count() for some in batches):
            raise no_targets(purpose)


def validation_sample(config: Config, rows: PackedRows) -> IntArray:
    """The numbers of the rows to validate on."""
    return sample_of(rows, config.test_batch * config.eval_steps, config.seed)


@dataclass(frozen=True)
class DialogueFigures:
    """What a validation on dialogues measured (see training.trainer.Measured)."""

    loss: Validation
    choices: Choices
    replies: list[str]

    def as_dict(self) -> dict[str, float]:
        """The figures by name; without those that need dialogues of two utterances, or of ten
        different replies, where there are none."""
        figures = self.loss.as_dict()
        if "r10_at_1" in (picked := self.choices.as_dict()):
            figures["r10_at_1"] = picked["r10_at_1"]
        if self.replies:
            figures["loops_share"] = sum(map(loops, self.replies)) / len(self.replies)
        return figures

    def __str__(self) -> str:
        figures = self.as_dict()
        named = {"r10_at_1": "R10@1 {:.0%}", "loops_share": "{:.0%} of replies loop"}
        more = [form.format(figures[name]) for name, form in named.items() if name in figures]
        return ", ".join([str(self.loss), *more])


class DialogueTask(Task):
    """Learning from packed rows of dialogues (see training.trainer.Task).

    Args:
        model: moved to the device; trained in place.
        rows: to learn from.
        validation_rows: to validate on.
        mixed_rows: to learn from as well.
    """

    model: GPT

    def __init__(
        self,
        config: Config,
        here: Runtime,
        model: GPT,
        tokenizer: Tokenizer,
        rows: PackedRows,
        validation_rows: PackedRows,
        world: World = ALONE,
        mixed_rows: MixedRows | None = None,
    ) -> None:
        self.config, self.runtime, self.world = config, here, world
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.validation_rows = rows, validation_rows
        self.keeps_every_best = config.patience > 0
        self.order = RowOrder(len(rows), config.seed)
        self.mixed_rows = mixed_rows
        self.rows_a_step = config.train_batch - config.mixed_rows()
        """Of the text; the others of `train_batch` are mixed in."""
        self.steps_per_epoch = len(rows) / self.rows_a_step
        self._text = [rows.corpus.fingerprint, config.train_percent, config.block_size, config.seed]
        """What the sequence of rows depends on."""
        self._first_row = 0
        """Where in it step 0 began, had all steps taken as many rows as now."""

    def rows_used(self, step: int) -> int:
        """Rows of the order that were consumed before a step."""
        return self._first_row + step * self.rows_a_step

    def parts(self, step: int, count: int) -> tuple[Sequence[tuple[Batch, int]], int]:
        """The rows of a step in `count` parts, each with the number of characters that the targets
        of the step stand for."""
        config = self.config
        rows = self.order.take(self.rows_used(step), self.rows_a_step)
        seed = config.seed, 4, step
        batch = self.rows.batch(rows, config.unk_rate, config.context_dropout, seed)
        if self.mixed_rows:
            batch = batch.joined(self.mixed_rows.batch(step))
        characters = max(1, self.rows.characters(batch))
        return [(part, characters) for part in batch.parts(count)], characters

    def on_device(self, part: tuple[Batch, int]) -> tuple[dict[str, Tensor], int]:
        """The inputs of the model, and the number of characters of the step."""
        batch, characters = part
        return inputs_of(batch, self.runtime), characters

    def loss(self, network: nn.Module, part: tuple[dict[str, Tensor], int]) -> Tensor:
        """Next-token loss of the part's rows over the number of characters of the step."""
        inputs, characters = part
        return summed_loss(network, inputs, self.runtime) / characters

    def validate(self, stopped: Callable[[], bool]) -> DialogueFigures | None:
        """Loss on dialogues kept for validation, R10@1 and what replies in them are like."""
        config, rows, world = self.config, self.validation_rows, self.world
        # Without gradients so many rows need less memory than in training.
        size = config.train_batch // (config.accumulate * world.size)
        sample = validation_sample(config, rows)
        loss = validate(self.model, rows, self.runtime, sample, size, stopped, world)
        if loss is None:
            return None
        pairs, seed = self._pairs, config.seed
        choices = choose(self.model, self.tokenizer, pairs, seed, self.runtime, stopped, world)
        if choices is None:
            return None
        # One reply each: what is measured is the model, in no more time than needed.
        bot = Chatbot(self.model, self.tokenizer, replace(config, best_of=1))
        talks = [pair.messages for pair in pairs[:PAIRS_REPLIED_TO]]
        replies = generate_replies(bot, talks, seed, stopped, world)
        return None if replies is None else DialogueFigures(loss, choices, replies)

    @cached_property
    def _pairs(self) -> list[Pair]:
        """The pairs that each validation looks at."""
        fits = can_score(self.tokenizer, self.config.block_size)
        rows = self.validation_rows
        return sample_pairs(rows.corpus, rows.dialogues, PAIRS, self.config.seed, fits)

    def how_to_use(self, path: Path, it: str = "it") -> str:
        """The command that chats with it."""
        return f"chat with {it}: {chat_with(path)}"

    def weakness(self, best: Mapping[str, float], was_better_before: bool) -> str:
        """Perplexity above that of drawing tokens blindly, for characters their number."""
        perplexity, corpus = best.get("perplexity", 0.0), self.rows.corpus
        size = self.config.vocab_size ** (1 / characters_an_id(corpus))
        if perplexity <= size:
            return ""
        advice = "train longer (max_steps or max_epoch), or with another lr"
        if was_better_before:
            advice = "lower lr, or take more dialogues, or a base_model trained on text like them"
        return f"validation perplexity {perplexity:,.6g}, blind guessing has {size:,.0f}: {advice}"

    def sample_replies(self) -> list[tuple[str, str]]:
        """Replies to the first utterances of some dialogues kept for validation."""
        self.model.eval()
        replies = []
        held_back, corpus = self.validation_rows.dialogues, self.validation_rows.corpus
        for dialogue in held_back[:: max(1, len(held_back) // SAMPLE_REPLIES)][:SAMPLE_REPLIES]:
            ids = corpus.dialogue(int(dialogue))
            prompt = corpus.tokenizer.decode(ids[: ids.index(SEP)] if SEP in ids else ids[:-1])
            bot = Chatbot(self.model, self.tokenizer, self.config, self.config.seed)
            replies.append((prompt, bot.reply(prompt)))
        self.model.train()
        return replies

    def state(self, completed: int) -> dict[str, Any]:
        """The place in the text."""
        return {"rows_used": self.rows_used(completed), "text": self._text}

    def load_state(self, state: dict[str, Any], completed: int) -> bool:
        """Go on behind step `completed`; another text begins from its start."""
        same_text: bool = state["text"] == self._text
        used = int(state["rows_used"]) if same_text else 0
        self._first_row = used - completed * self.rows_a_step
        return same_text


def _with_vocabulary(config: Config, corpus: Corpus, world: World) -> tuple[Config, Tokenizer]:
    """The config and the tokenizer of a new model."""
    needed, asked = len(corpus.tokenizer), config.vocab_size
    if asked and asked < needed:
        raise UserError(
            f"vocab_size is {asked:,}, but the text has {needed:,} ids "
            f"({needed - 3:,} characters and 3 control tokens)",
            f"set vocab_size: {needed} or more, or 0 to take what the text needs",
        )
    if config.tokenizer == "characters":
        return replace(config, vocab_size=asked or needed), corpus.tokenizer
    learnt_from = config.train_percent * corpus.characters
    size = asked or max(needed, min(needed + round(learnt_from / 600), 16_000))
    share, seed = config.train_percent, config.seed
    vocabulary = world.only_first(lambda: learn_subwords(corpus, share, seed, size))
    tokenizer = cast(Tokenizer, world.share(vocabulary))
    return replace(config, vocab_size=len(tokenizer)), tokenizer


def _describe_run(
    config: Config, here: Runtime, task: DialogueTask, last_step: int, needed: float
) -> None:
    model, rows, processes = task.model, task.rows, task.world.size
    describe(rows.corpus)
    if rows.id_map is not None:
        unknown = int((rows.id_map[3:] == UNK).sum())
        known = f"does not know {unknown:,} of them" if unknown else "knows all of them"
        note(f"      the model {known}")
    elif unknown := unknown_places(rows.corpus):
        note(f"      the model does not know what stands in {counted(unknown, 'place')} of it")
    note(
        f"rows: {len(rows):,} of {config.block_size} for training, "
        f"{100 * rows.efficiency():.1f} % of their positions used"
    )
    if task.mixed_rows:
        note(str(task.mixed_rows))
    if rows.continued:
        long = counted(rows.continued, "dialogue")
        note(f"      {long} too long for one row, continued in the next")
    total, positions = model.parameter_count() / 1e6, model.wpe.weight.numel() / 1e6
    note(f"model: {total:.2f} M parameters, {positions:.2f} M for positions")
    note(f"device: {here}" + (f"; {processes} processes" if processes > 1 else ""))
    if here.varlen:
        without = f", without dropout ({config.dropout} elsewhere); attention: mask has it"
        note(f"attention: variable-length{without if config.dropout else ''}")
    passes = last_step / task.steps_per_epoch
    about = f"about {passes:,.{0 if passes >= 10 else 1}f} passes over the text"
    note(f"length: {counted(last_step, 'step')}, {about}")
    note(f"memory: about {gib(needed)} for training" + (" each" if processes > 1 else ""))
