"""Preferences -> a GPT that replies more as people like; a sibling of pretrain.py.

`_train` reads top to bottom: config, preferences, model, reference, loop. What the model reads is
in preference_examples.py, what it learns of a step in preference_task.py, the losses and figures in
preference_loss.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smallgpt import runtime
from smallgpt.config import Config, check_shares
from smallgpt.data.preferences import PreferencePair, RatedReply, read_preferences
from smallgpt.distributed.world import World
from smallgpt.model.gpt import GPT
from smallgpt.training import lora, memory, resume
from smallgpt.training.memory import gib, rows_apart
from smallgpt.training.preference_examples import Examples
from smallgpt.training.preference_task import PreferenceTask
from smallgpt.training.rows import MixedRows, open_mixed
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted


def run(config: Config, command: str = "train.py …", typed: frozenset[str] = frozenset()) -> Path:
    """Train as configured and return the last checkpoint. Arguments and errors are those of
    `pretrain.run`; and a run that learns nothing, or breaks down, is a UserError that says why."""
    with resume.joined(config, command) as world:
        return _train(config, command, typed, world)


def _train(config: Config, command: str, typed: frozenset[str], world: World) -> Path:
    # 1. Config: is this a new run, or what does it go on from?
    check_shares(config, world.size)
    _check_preferences_a_step(config, world.size)
    resumed = resume.find(config, world)
    here = runtime.start(config, world.local_rank if world.size > 1 else None)

    # 2. Preferences: files -> pairs or rated replies -> ids.
    read = read_preferences(config.data_paths())
    world.agree("the preferences", read.fingerprint, "give every machine the same data_path files")
    mixed = open_mixed(config, world)
    base = None if resumed else resume.open_base(config, world, False)
    source = resumed.stored if resumed else base
    assert source
    tokenizer = source.tokenizer
    own = typed if resumed else typed & {"tokenizer"}  # as in pretrain
    config = resume.with_shape_of(source.config, config, source.config.vocab_size, own)
    config = resume.with_sampling_of(source.config, config)
    items: Sequence[PreferencePair | RatedReply] = read.pairs
    if config.preference_loss == "kto":
        items = read.rated
    elif read.unpaired:
        others = f"preferences: {counted(read.unpaired, 'verdict')} without a counterpart left out"
        note(f"{others}: preference_loss=kto learns from them")
    if config.preference_loss == "kto" and config.preference_likelihood:
        note("preference_likelihood is not used: kto learns from good replies anyway")
    examples = Examples.of(items, tokenizer, config)
    mixed_rows = MixedRows(config, mixed, tokenizer, world) if mixed else None

    # 3. Model: the checkpoint's, or the base's.
    runtime.seed_everything(config.seed)
    model = GPT(config)
    if source.weights and not (resumed and config.lora_rank):
        model.load_state_dict(source.weights)
    adapted = lora.begin(config, model, base, resumed, 0, world) if config.lora_rank else None
    source.weights.clear()
    two_rows = replace(config, train_batch=2 * config.train_batch)  # a pair has two
    needed = memory.check(config, here, model, rows_apart(two_rows, world.size))
    model.to(here.device).train()
    told = read.fingerprint, world, mixed_rows
    task = PreferenceTask(config, here, model, tokenizer, examples, *told)
    task.base = adapted
    trainer = Trainer(config, here, task, world)
    if resumed and not trainer.load_state(resumed.state, resumed.stored.manifest):
        raise UserError(
            f"{resumed.stored.path} has learnt from other preferences, or otherwise (data_path, "
            "preference_loss, train_percent, seed)",
            "go on with the same, or begin anew in another checkpoint_root, from its base_model or "
            "with this one as base_model",
        )
    if resumed:
        note(f"going on from {resumed.stored.path}")
        resumed.release()
    elif base:
        note(f"base: {base.path}")
    _describe_run(task, trainer.last_step, needed)

    # 4. Reference: how likely all replies are before the first step, once.
    if task.reference is None:
        task.measure_reference()

    # 5. Loop.
    if resumed and trainer.is_finished:
        trainer.tell_finished(resumed.stored.path)
        return resumed.stored.path
    path = trainer.train(command)
    memory.tell_peak(here, needed)
    note(f"done: the model is in {path}")
    note(task.how_to_use(trainer.best_checkpoint(path)))
    return path


def _check_preferences_a_step(config: Config, processes: int) -> None:
    """Refuse a `mix_share` that leaves some part of a step without a preference."""
    left, parts = config.train_batch - config.mixed_rows(), processes * config.accumulate
    if left < parts:
        raise UserError(
            f"mix_share is {config.mix_share}; it leaves {counted(left, 'preference')} a step, for "
            f"{parts} parts ({counted(processes, 'process')} x accumulate)",
            "lower mix_share, or raise train_batch",
        )


def _describe_run(task: PreferenceTask, last_step: int, needed: float) -> None:
    examples = task.examples
    noun, good = "pairs" if task.pairs else "rated replies", int(examples.good.sum())
    kinds = "" if task.pairs else f"; {good:,} are good and {len(examples.good) - good:,} bad"
    learnt, held_back = len(examples.train), len(examples.validation)
    note(f"preferences: {learnt:,} {noun} to learn from, {held_back:,} to validate on{kinds}")
    if task.mixed_rows:
        note(str(task.mixed_rows))
    note(f"model: {task.model.parameter_count() / 1e6:.2f} M parameters")
    processes = task.world.size
    note(f"device: {task.runtime}" + (f"; {processes} processes" if processes > 1 else ""))
    passes = last_step / task.steps_per_epoch
    note(f"length: {counted(last_step, 'step')}, about {passes:,.1f} passes over the preferences")
    note(f"memory: about {gib(needed)} for training" + (" each" if processes > 1 else ""))
