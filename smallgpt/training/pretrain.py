"""Recipe: dialogues -> GPT. `_recipe` reads top to bottom: config, data, model, loop."""

from __future__ import annotations

import dataclasses
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from smallgpt import runtime
from smallgpt.chat.chatbot import Chatbot
from smallgpt.checkpoints import checkpoint, open, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.config import Config, check_shares
from smallgpt.data.corpus import Corpus, describe, match_tokenizer, open_corpus, split
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.packing import PackedRows
from smallgpt.distributed import launch
from smallgpt.distributed.world import World
from smallgpt.model.gpt import GPT
from smallgpt.model.loss import CHUNK
from smallgpt.runtime import Runtime, python_command
from smallgpt.tokenizer.characters import SEP, UNK, Tokenizer
from smallgpt.training import resume
from smallgpt.training.interruption import StopRequest
from smallgpt.training.metrics import Report
from smallgpt.training.trainer import Trainer
from smallgpt.training.validation import Validation, validate
from smallgpt.utils.errors import UserError, note

SAMPLE_REPLIES = 3


def run(config: Config, command: str = "train.py …") -> Path:
    """Train as configured and return the last checkpoint.

    Args:
        command: what the user typed behind `python` or `torchrun`, for the message that says how to
            go on.

    Raises:
        UserError: something the user can put right; earlier checkpoints are intact.
        SystemExit: 130 or 143 after Ctrl-C or SIGTERM, with the state saved.
    """
    with launch.join(config, command) as world, ExitStack() as held:
        if world.is_first:
            resume.take(Path(config.checkpoint_root), held)
        return _recipe(config, command, world)


def _recipe(config: Config, command: str, world: World) -> Path:
    """The numbered steps of the path of the data."""
    # 1. Config: is this a new run, or what does it go on from?
    check_shares(config, world.size)
    resumed = resume.find(config, world)
    here = runtime.start(config, world.local_rank if world.size > 1 else None)

    # 2. Data: text -> dialogues -> ids -> packed rows.
    corpus = world.in_turn(lambda: open_corpus(config.data_paths(), text_chunks))
    world.agree("the text", corpus.fingerprint, "give every machine the same data_path files")
    base = open.load(config) if config.base_model and not resumed else None
    tokenizer = corpus.tokenizer
    if resumed:
        tokenizer = resumed.stored.tokenizer
        if config.base_model:  # which said what the network is
            config = open.with_shape_of(resumed.stored.config, config, len(tokenizer))
    elif base:
        tokenizer = base.tokenizer.extended(corpus.tokenizer)
        config = open.with_shape_of(base.config, config, len(tokenizer))
    train_rows, validation_rows = pack_corpus(config, corpus, tokenizer)
    last_step = config.last_step(len(train_rows) / config.train_batch)

    # 3. Model: fresh, or the checkpoint's.
    if resumed:
        note(f"going on from {resumed.stored.path}")
        config = checkpoint.same_shape(config, resumed.stored.config)
        model = resumed.model(config)
    else:
        config = _with_vocabulary(config, tokenizer)
        runtime.seed_everything(config.seed)
        model = GPT(config)
        if base:
            _begin_with(base, model, tokenizer)
    model.to(here.device).train()
    trainer = Trainer(config, here, model, train_rows, world)
    if resumed and not trainer.load_state(resumed.state):
        note("the checkpoint knows no place in this text: its rows begin from the start")
    _describe_run(config, here, corpus, trainer)

    # 4. Loop: step, and now and then validate and save.
    if resumed and trainer.completed >= last_step:
        path = resumed.stored.path
        note(f"nothing to do: {path} is at step {trainer.completed} of {last_step}")
        note("to train on, raise max_steps (or max_epoch)")
        return path
    session = _Session(
        config, here, world, corpus, tokenizer, model, trainer, validation_rows, last_step
    )
    return session.run(command)


def pack_corpus(
    config: Config, corpus: Corpus, tokenizer: Tokenizer
) -> tuple[PackedRows, PackedRows]:
    """Training and validation rows, in the ids of `tokenizer`."""
    train, held_back = split(len(corpus), config.train_percent, config.seed)
    encoded, id_map = match_tokenizer(corpus, tokenizer)
    replies_only = config.loss_on == "replies"

    def packed(dialogues: npt.NDArray[np.int64]) -> PackedRows:
        return PackedRows(encoded, dialogues, config.block_size, config.seed, id_map, replies_only)

    return packed(train), packed(held_back)


@dataclass
class _Session:
    """The loop around `Trainer.step`: when to validate, save, and stop."""

    config: Config
    here: Runtime
    world: World
    corpus: Corpus
    tokenizer: Tokenizer
    model: GPT
    trainer: Trainer
    validation_rows: PackedRows
    last_step: int

    def run(self, command: str) -> Path:
        root = Path(self.config.checkpoint_root)
        completed = self.trainer.completed
        report = None
        if self.world.is_first:
            report = Report(root, self.config.tensorboard_path, completed, self.last_step)
        try:
            with StopRequest() as stop:
                path = self._steps(report, stop)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"out of memory at step {self.trainer.completed + 1}: {str(error).splitlines()[0]}",
                f"raise accumulate (now {self.config.accumulate}) or lower train_batch",
            ) from None
        finally:
            if report:
                report.close()
        if stop.requested():
            note(f"stopped at step {self.trainer.completed}, saved in {path}")
            note(f"go on with: {launch.launcher()} {command} resume_from=latest")
            raise SystemExit(stop.exit_code)
        note(f"done: the model is in {path}")
        note(f"chat with it: {python_command()} chat.py {shlex.quote(str(path))}")
        return path

    def _steps(self, report: Report | None, stop: StopRequest) -> Path:
        config, trainer, world = self.config, self.trainer, self.world
        while True:
            began = time.perf_counter()
            result = trainer.step()
            step = trainer.completed
            if report:
                report.step(step, result, time.perf_counter() - began)

            last = step == self.last_step
            save = last or step % config.save_freq == 0
            validation = None
            if save or (config.eval_freq and step % config.eval_freq == 0):
                validation = self._validate(report, step, stop)
            stopping = stop.agreed(world)
            if save or stopping:
                if world.is_first:
                    self._save(validation.as_dict() if validation else {})
                if last or stopping:
                    world.max(0)  # nobody leaves before it is saved
                    return run_folder.place(Path(config.checkpoint_root), step)

    # What follows is only diagnostics and bookkeeping.

    def _validate(self, report: Report | None, step: int, stop: StopRequest) -> Validation | None:
        config = self.config
        validation = validate(
            self.model,
            self.validation_rows,
            self.here,
            config.test_batch,
            config.eval_steps,
            config.seed,
            stop.requested,
            self.world,
        )
        if validation is not None and report:
            report.evaluation(step, validation, self._sample_replies())
        return validation

    def _sample_replies(self) -> list[tuple[str, str]]:
        """Replies to the first utterances of some dialogues kept for validation."""
        self.model.eval()
        replies = []
        held_back = self.validation_rows.dialogues
        for dialogue in held_back[:: max(1, len(held_back) // SAMPLE_REPLIES)][:SAMPLE_REPLIES]:
            ids = self.corpus.dialogue(int(dialogue))
            prompt = self.corpus.tokenizer.decode(ids[: ids.index(SEP)] if SEP in ids else ids[:-1])
            bot = Chatbot(self.model, self.tokenizer, self.config, self.config.seed)
            replies.append((prompt, bot.reply(prompt)))
        self.model.train()
        return replies

    def _save(self, scores: dict[str, float]) -> None:
        root = Path(self.config.checkpoint_root)
        checkpoint.save(
            root,
            self.trainer.completed,
            self.config,
            self.tokenizer,
            self.model.state_dict(),
            self.trainer.state(),
            scores,
        )
        run_folder.prune(root, self.config.keep_last)


def _begin_with(base: Checkpoint, model: GPT, tokenizer: Tokenizer) -> None:
    model.load_state_dict(open.widened(base, tokenizer))
    new = len(tokenizer) - len(base.tokenizer)
    note(f"base: {base.path}; {new:,} characters are new to it, and added to its vocabulary")


def _with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    needed = len(tokenizer)
    if config.vocab_size and config.vocab_size < needed:
        raise UserError(
            f"vocab_size is {config.vocab_size:,}, but the text has {needed:,} ids "
            f"({needed - 3:,} characters and 3 control tokens)",
            f"set vocab_size: {needed} or more, or 0 to take what the text needs",
        )
    return dataclasses.replace(config, vocab_size=config.vocab_size or needed)


def _describe_run(config: Config, here: Runtime, corpus: Corpus, trainer: Trainer) -> None:
    model, rows, processes = trainer.model, trainer.rows, trainer.world.size
    describe(corpus)
    if rows.id_map is not None:
        unknown = int((rows.id_map[3:] == UNK).sum())
        note(f"      in the checkpoint's vocabulary; {unknown:,} characters are unknown to it")
    note(
        f"rows: {len(rows):,} of {config.block_size} for training, "
        f"{100 * rows.efficiency():.1f} % of their positions used; "
        f"{rows.continued:,} long dialogues continued in further rows"
    )
    total = model.parameter_count() / 1e6
    note(f"model: {total:.2f} M parameters, {model.wpe.weight.numel() / 1e6:.2f} M for positions")
    note(f"device: {here}" + (f"; {processes} processes" if processes > 1 else ""))
    memory = expected_memory(config, here, model, processes) / 2**30
    note(f"memory: about {memory:.1f} GiB for training" + (" each" if processes > 1 else ""))


def expected_memory(config: Config, here: Runtime, model: GPT, processes: int = 1) -> float:
    """Rough bytes at the peak of a step in one process; measured ones are in docs/log.md."""
    width = here.dtype.itemsize
    rows = config.train_batch // (config.accumulate * processes)
    states = 16.0 * sum(p.numel() for p in model.parameters())  # weights, gradients, two moments
    activations = 22 * config.n_embd * config.block_size * width
    if here.device.type == "cpu":
        activations += config.n_head * config.block_size**2 * width  # see model.attend
    logits = CHUNK * config.vocab_size * (width + 8)  # see loss.next_token_loss
    program = 0.4 * 2**30 if here.device.type == "cpu" else 0.0
    return program + states + logits + rows * config.n_layer * activations
