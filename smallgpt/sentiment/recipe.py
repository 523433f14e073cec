"""Labelled reviews and a trained model -> a classifier, and how good it is.

`run` reads top to bottom: reviews, model, loop, test.
"""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from smallgpt import runtime
from smallgpt.checkpoints import checkpoint, huggingface, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import fingerprint, hashes, read_and_split
from smallgpt.distributed import launch
from smallgpt.distributed.world import World
from smallgpt.model.classifier import Classifier
from smallgpt.sentiment import baseline, report
from smallgpt.sentiment.task import ReviewTask, judge
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.training import lora, memory, resume
from smallgpt.training.memory import gib, positions_apart
from smallgpt.training.resume import Resumed
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

_SPLIT_KEYS = (
    "text_column",
    "label_column",
    "label_map",
    "train_percent",
    "validation_percent",
    "split_seed",
)
MOST_UNKNOWN = 0.1
"""Share of the text that a base need not know."""


def run(
    config: SentimentConfig,
    command: str = "sentimentalTrain.py …",
    typed: frozenset[str] = frozenset(),
) -> Path:
    """Train as configured, test once, and return the best checkpoint (of several processes, the
    first does; the others return its folder). Arguments and errors are those of `pretrain.run`."""
    root = Path(config.checkpoint_root)
    with ExitStack() as held:
        with launch.join(config, command) as world:
            if world.is_first:
                resume.lock(root, held)
            task, trainer, needed = prepare(config, typed, world)
            if not trainer.is_finished:
                if config.frozen:
                    task.keep_states()
                trainer.train(command)
                if not config.frozen:  # the states that it keeps are not in `needed`
                    memory.tell_peak(task.runtime, needed)
        # The first process goes on alone: the others need not wait for the test.
        if not world.is_first:
            return root
        best = run_folder.best(run_folder.checkpoints(root))
        _test(best, task, trainer)
        return best


def prepare(
    config: SentimentConfig, typed: Set[str], world: World
) -> tuple[ReviewTask, Trainer, float]:
    """The task, the trainer, and the bytes that training is expected to take."""
    # 1. Reviews: read, and split by label.
    resumed = resume.find(config, world, classifier=True)
    reviews, split = read_and_split(config, resumed.stored.labels if resumed else None)
    read = fingerprint(reviews, split)
    world.agree("the reviews", read, "give every machine the same sentimental_data_path file")
    if resumed:
        _refuse_other_reviews(resumed, config, read)

    # 2. Model: the base's body with a fresh head, or what a run goes on from.
    here = runtime.start(config, world.local_rank if world.size > 1 else None)
    source = resumed.stored if resumed else resume.open_base(config, world, None)
    if config.lm_weight and not source.config.tied:
        raise UserError(
            "lm_weight: the output head of base_model has weights of its own, and is not kept",
            "set lm_weight: 0",
        )
    tokenizer = source.tokenizer.with_marks()
    config = resume.with_shape_of(
        source.config, config, len(tokenizer), typed if resumed else set()
    )
    config = dataclasses.replace(config, tied=True)
    runtime.seed_everything(config.seed)
    if resumed and config.lora_rank:
        model = Classifier(config, len(reviews.names), config.pooling)
    else:
        model = restore(source, config, tokenizer, reviews.names)
    adapted = None
    if config.lora_rank:
        base, added = (None, 0) if resumed else (source, 0 if source.labels else 2)
        adapted = lora.begin(config, model, base, resumed, added, world)
    model.to(here.device).train()

    # 3. Loop: what is learnt from, and where a stopped run was.
    soft_labels = None
    if config.reference_weight:
        note("asking the baseline about the reviews to learn from ...")
        asked = world.only_first(
            lambda: baseline.out_of_fold(reviews, split.train, config.split_seed)
        )
        soft_labels = world.share(asked)
    task = ReviewTask(config, here, model, tokenizer, reviews, split, soft_labels, world)
    task.base = adapted
    most = -(-config.train_batch // (config.accumulate * world.size)) * task.examples.largest
    parts = positions_apart(config.max_positions, most, task.examples.largest)
    of_tokens = config.lm_weight > 0 or config.pooling != "last"
    needed = memory.check(config, here, model, parts, of_tokens)
    _describe_run(task, source, needed)
    if world.is_first and not resumed:
        _tell_what_base_has_learnt(source, reviews.part(split.test).texts)
    trainer = Trainer(config, here, task, world)
    if resumed:
        note(f"going on from {resumed.stored.path}")
        trainer.load_state(resumed.state, resumed.stored.manifest)
    return task, trainer, needed


def _refuse_other_reviews(resumed: Resumed, config: SentimentConfig, read: str) -> None:
    """The test must not hold reviews that the run has learnt from."""
    path, was = resumed.stored.path, resumed.stored.config
    changed = [
        f"{key} was {getattr(was, key)!r}, now {getattr(config, key)!r}"
        for key in _SPLIT_KEYS
        if getattr(was, key) != getattr(config, key)
    ]
    known = resumed.state.get("reviews")  # earlier versions did not keep it
    if known != read and (known or changed):
        what = "; ".join(changed) or f"{config.sentimental_data_path} has changed"
        raise UserError(
            f"{path} was trained on other reviews, or split differently: {what}",
            "the test would hold reviews that it has learnt from: go on with the same, or train "
            "anew in another checkpoint_root",
        )


def _tell_what_base_has_learnt(base: Checkpoint, test: list[str]) -> None:
    """A base that is a classifier may have learnt from the reviews it is to be tested on."""
    if base.labels is None or not (base.path / checkpoint.STATE_FILE).exists():
        return
    learnt = base.training_state().get("learnt")
    known = 0 if learnt is None else int(np.isin(hashes(test), learnt.numpy()).sum())
    if known:
        note(
            f"warning: base_model has learnt from {known:,} of the {counted(len(test), 'review')} "
            "to test it: the figures will be too good; use the table and the split it was "
            "trained with, or another base_model"
        )


def restore(
    source: Checkpoint, config: SentimentConfig, tokenizer: Tokenizer, names: list[str]
) -> Classifier:
    """The classifier to train. A base with the same labels and pooling keeps its head."""
    model = Classifier(config, len(names), config.pooling)
    if not source.weights:  # of another process than the first, which gives them to all
        return model
    weights = checkpoint.weights_for_classifier(source, tokenizer)
    head = weights.get(huggingface.HEAD)
    if source.labels != names or head is None or head.shape != model.score.weight.shape:
        weights[huggingface.HEAD] = model.score.weight.detach()
    model.load_state_dict(weights)
    return model


def _describe_run(task: ReviewTask, source: Checkpoint, needed: float) -> None:
    config, reviews, split = task.config, task.reviews, task.split
    by_label = ", ".join(
        f"{name}: {int((reviews.labels == n).sum()):,}" for n, name in enumerate(reviews.names)
    )
    note(f"reviews: {len(reviews):,} ({by_label})")
    note(
        f"split: {len(split.train):,} to train, {len(split.validation):,} to choose the best "
        f"model, {len(split.test):,} to test it once"
    )
    cut = counted(int((task.examples.counts > 1).sum()), "long review")
    note(f"rows: {config.block_size} positions at most; {cut} to train on cut into several rows")
    note(f"base: {source.path}, {config.n_layer} layers, {config.n_embd} wide")
    _tell_unknown_characters(reviews.texts, task.tokenizer)
    learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad) / 1e6
    note(f"learning: {learning:.2f} M parameters{' (the rest is frozen)' if config.frozen else ''}")
    processes = task.world.size
    note(f"device: {task.runtime}" + (f"; {processes} processes" if processes > 1 else ""))
    note(f"memory: about {gib(needed)} for training" + (" each" if processes > 1 else ""))


def _tell_unknown_characters(texts: list[str], tokenizer: Tokenizer) -> None:
    count = Counter(itertools.chain.from_iterable(texts))
    unknown = [character for character in count if UNK in tokenizer.encode(character)]
    if not unknown:
        return
    share = sum(count[character] for character in unknown) / count.total()
    examples = "".join(c for c, _ in count.most_common() if c in set(unknown))[:10]
    note(
        f"      it does not know {counted(len(unknown), 'character')} of the reviews "
        f"({100 * share:.1f} % of their text, such as {examples}): they are all read as <unk>"
    )
    if share > MOST_UNKNOWN:
        note(
            "      a base_model that has read such text does better: `smallgpt sentiment text` "
            "writes the reviews as text for train.py"
        )


def _test(path: Path, task: ReviewTask, trainer: Trainer) -> None:
    """4. Judge the part kept for the test by the best model and by the baseline, and report."""
    config, reviews, split, best = task.config, task.reviews, task.split, trainer.best
    task.model.load_state_dict(open_checkpoint(path, classifier=True, merge=False).weights)
    began = time.perf_counter()
    test = task.examples_of(split.test)
    verdicts = judge(task.model, test, task.runtime, config.max_positions)
    assert verdicts is not None and best is not None
    judging = time.perf_counter() - began
    note("training the baseline ...")
    began = time.perf_counter()
    learnt = np.concatenate([split.train, split.validation])
    expected = baseline.probabilities(reviews, learnt, split.test)
    baseline_seconds = time.perf_counter() - began
    labels, root = reviews.labels[split.test], Path(config.checkpoint_root)
    commonest = int(np.bincount(reviews.labels[learnt]).argmax())
    named = reviews.names[commonest]
    always = float((labels == commonest).mean())
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
            **report.score(verdicts.probabilities(), labels, reviews.names),
            "training_seconds": round(trainer.seconds, 3),
            "judging_seconds": round(judging, 3),
        },
        "reference": {
            "name": baseline.NAME,
            **report.score(expected, labels, reviews.names),
            "training_seconds": round(baseline_seconds, 3),
        },
        "commonest": {"label": named, "accuracy": always},
    }
    report.write(root, result, verdicts, expected, reviews.part(split.test))
    print(f"{path}, step {result['best']['step']}, on reviews kept for the test:")
    print(report.describe(result["test"]))
    print(f"baseline ({baseline.NAME}), on the same reviews:")
    print(report.describe(result["reference"]))
    print(f"always saying {named}, the most frequent: accuracy {100 * always:.2f} %")
    if result["test"]["accuracy"] <= always:
        step, last = result["best"]["step"], trainer.completed
        longer = f"more than {counted(last, 'step')} (max_epoch), " if step == last else ""
        note(
            f"warning: it is no better than always saying {named}; try {longer}"
            "more reviews, or a base_model that has read such texts"
        )
    note(f"written: {root / report.REPORT_FILE}, {report.PICTURE_FILE} and {report.VERDICTS_FILE}")
    note(task.how_to_use(path))
