"""Labelled reviews and a trained model -> a classifier, and how good it is.

`run` reads top to bottom: reviews, model, loop, test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import time
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallgpt import runtime
from smallgpt.checkpoints import checkpoint, huggingface, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.config import ModelConfig, SentimentConfig
from smallgpt.data.reviews import Reviews, Split, read_and_split
from smallgpt.distributed import launch
from smallgpt.distributed.world import World, copy_weights
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime, python_command
from smallgpt.sentiment import baseline, report, scores
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.task import ReviewTask, judge
from smallgpt.tokenizer.characters import SEP, Tokenizer
from smallgpt.training import resume
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

MOST_ROWS_TO_LEARN = 16
"""Of a longer review so many rows are learnt from."""


@dataclasses.dataclass(frozen=True)
class _Data:
    """The reviews, their split, and how the classifier reads them."""

    reviews: Reviews
    split: Split
    tokenizer: Tokenizer
    config: SentimentConfig

    def examples(self, part: str, most_rows: int | None = None) -> Examples:
        """One part of the split: train, validation or test."""
        some, config = self.reviews.part(getattr(self.split, part)), self.config
        return Examples(
            some.texts, some.labels, self.tokenizer, config.block_size, config.use_mask, most_rows
        )


def run(
    config: SentimentConfig,
    command: str = "sentimentalTrain.py …",
    typed: frozenset[str] = frozenset(),
) -> Path:
    """Train as configured, test once, and return the best checkpoint (of several processes, the
    first does; the others return its folder).

    Args:
        command: what the user typed behind `python` or `torchrun`, to say how to go on.
        typed: keys that were given on the command line; of the network's shape they must agree with
            the checkpoint's when a run is resumed.

    Raises:
        UserError: something the user can fix; earlier checkpoints are intact.
        SystemExit: 130 or 143 after Ctrl-C or SIGTERM, with the state saved.
    """
    root = Path(config.checkpoint_root)
    with ExitStack() as held:
        with launch.join(config, command) as world:
            if world.is_first:
                resume.lock(root, held)
            data, trainer = _prepare(config, typed, world)
            if not trainer.is_finished:
                trainer.train(command)
        # The first process goes on alone: the others need not wait for the test.
        if not world.is_first:
            return root
        best = run_folder.best(run_folder.checkpoints(root))
        _test(best, data, trainer)
        return best


def _prepare(config: SentimentConfig, typed: Set[str], world: World) -> tuple[_Data, Trainer]:
    # 1. Reviews: read, and split by label.
    resumed = resume.find(config, world, classifier=True)
    reviews, split = read_and_split(config, resumed.stored.labels if resumed else None)
    read = hashlib.sha256(repr((reviews.texts, reviews.labels.tolist())).encode()).hexdigest()
    world.agree("the reviews", read, "give every machine the same sentimental_data_path file")

    # 2. Model: the base's body with a fresh head, or what a run goes on from.
    here = runtime.start(config, world.local_rank if world.size > 1 else None)
    source = resumed.stored if resumed else resume.open_base(config, world, None)
    tokenizer = source.tokenizer.with_marks()
    config = _with_shape_of(source.config, config, len(tokenizer), typed if resumed else set())
    runtime.seed_everything(config.seed)
    model = restore(source, config, tokenizer, reviews.names)
    model.to(here.device).train()
    copy_weights(model, world)  # already here, as the states of frozen blocks come from them

    # 3. Loop: what is learnt from, and where a stopped run was.
    data = _Data(reviews, split, tokenizer, config)
    soft_labels = None
    if config.reference_weight:
        note("asking the baseline about the reviews to learn from ...")
        asked = world.only_first(
            lambda: baseline.out_of_fold(reviews, split.train, config.split_seed)
        )
        soft_labels = world.share(asked)
    task = ReviewTask(
        config,
        here,
        model,
        tokenizer,
        data.examples("train", MOST_ROWS_TO_LEARN),
        data.examples("validation"),
        reviews.names,
        Path(config.checkpoint_root),
        soft_labels,
        world,
    )
    _describe_run(data, here, task, source)
    trainer = Trainer(config, here, task, world)
    if resumed:
        note(f"going on from {resumed.stored.path}")
        trainer.load_state(resumed.state, resumed.stored.manifest)
    return data, trainer


def _with_shape_of(
    stored: ModelConfig, config: SentimentConfig, vocab_size: int, typed: Set[str]
) -> SentimentConfig:
    """`config` with the network that the base has, but for its output head.

    Raises:
        UserError: it has an output head that the language model's loss would need.
    """
    if config.lm_weight and not stored.tied:
        raise UserError(
            "lm_weight: the output head of base_model has weights of its own, and is not kept",
            "set lm_weight: 0",
        )
    shaped = resume.with_shape_of(stored, config, vocab_size, typed)
    return dataclasses.replace(shaped, tied=True)


def restore(
    source: Checkpoint, config: SentimentConfig, tokenizer: Tokenizer, names: list[str]
) -> Classifier:
    """The classifier to train.

    A base with the same labels and pooling keeps its head; ids that no character has are dropped,
    and `<start>` and `<extract>` begin as copies of `<sep>`.
    """
    model = Classifier(config, len(names), config.pooling)
    weights = dict(source.weights)
    if not weights:  # of another process than the first, which gives them to all
        return model
    if source.labels is None:
        weights.pop(huggingface.LM_HEAD, None)
        weights = {f"transformer.{name}": tensor for name, tensor in weights.items()}
        used = weights["transformer.wte.weight"][: tokenizer.start]
        weights["transformer.wte.weight"] = torch.cat([used, used[[SEP, SEP]]])
    head = weights.get(huggingface.HEAD)
    if source.labels != names or head is None or head.shape != model.score.weight.shape:
        weights[huggingface.HEAD] = model.score.weight.detach()
    model.load_state_dict(weights)
    return model


def _describe_run(data: _Data, here: Runtime, task: ReviewTask, source: Checkpoint) -> None:
    config, reviews, split = data.config, data.reviews, data.split
    by_label = ", ".join(
        f"{name}: {int((reviews.labels == n).sum()):,}" for n, name in enumerate(reviews.names)
    )
    note(f"reviews: {len(reviews):,} ({by_label})")
    note(
        f"split: {len(split.train):,} to train, {len(split.validation):,} to choose the best "
        f"model, {len(split.test):,} to test it once"
    )
    note(
        f"rows: {config.block_size} positions at most; "
        f"{counted(task.examples.cut, 'long review')} to train on cut into several rows"
    )
    note(f"base: {source.path}, {config.n_layer} layers, {config.n_embd} wide")
    learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad) / 1e6
    note(f"learning: {learning:.2f} M parameters{' (the rest is frozen)' if config.frozen else ''}")
    processes = task.world.size
    note(f"device: {here}" + (f"; {processes} processes" if processes > 1 else ""))


def _test(path: Path, data: _Data, trainer: Trainer) -> None:
    """4. Judge the part kept for the test by the best model and by the baseline, and report."""
    config, reviews, split, model = data.config, data.reviews, data.split, trainer.model
    assert isinstance(model, Classifier) and trainer.best is not None
    model.load_state_dict(checkpoint.load(path, classifier=True).weights)
    began = time.perf_counter()
    verdicts = judge(model, data.examples("test"), trainer.runtime, config.test_batch)
    assert verdicts is not None
    judging = time.perf_counter() - began
    note("training the baseline ...")
    began = time.perf_counter()
    learnt = np.concatenate([split.train, split.validation])
    expected = baseline.probabilities(reviews, learnt, split.test)
    best, labels = trainer.best, reviews.labels[split.test]
    result: dict[str, Any] = {
        "model": str(path),
        "config": dataclasses.asdict(config),
        "reviews": {part: len(indices) for part, indices in vars(split).items()},
        "best": {
            "step": int(best["step"]),
            "loss": best["validation_loss"],
            "accuracy": best["validation_accuracy"],
        },
        "validation": trainer.history,
        "test": {
            **scores.score(verdicts.probabilities(), labels, reviews.names),
            "training_seconds": round(trainer.seconds, 3),
            "judging_seconds": round(judging, 3),
        },
        "reference": {
            "name": baseline.NAME,
            **scores.score(expected, labels, reviews.names),
            "training_seconds": round(time.perf_counter() - began, 3),
        },
    }
    root = Path(config.checkpoint_root)
    report.write(root, result, verdicts, expected, reviews.part(split.test))
    print(f"{path}, step {result['best']['step']}, on reviews kept for the test:")
    print(scores.describe(result["test"]))
    print(f"baseline ({baseline.NAME}), on the same reviews:")
    print(scores.describe(result["reference"]))
    note(f"written: {root / report.REPORT_FILE} and {report.PICTURE_FILE}")
    predict = f"{python_command()} -m smallgpt sentiment predict {shlex.quote(str(path))}"
    note(f'use it: {predict} "房间很干净"')
