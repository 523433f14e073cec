"""Time to the same quality: how long the plain recipe trains, and how long ours for that loss.

    python -m benchmarks.time_to_loss --budget 900
    python -m benchmarks.time_to_loss --budget 900 --plot docs/pictures/time_to_loss.png

The plain recipe (12M, 32 rows a step) trains for the budget; its loss on held-out dialogues is the
target; then ours trains until it is at or below it on the same dialogues. Seconds are pure training
time: steps x the median step, so what else the machine does and validation do not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.measure import benchmark_text, print_json, timed
from benchmarks.plain import PlainTrainer, padded_rows
from smallgpt import runtime
from smallgpt.cli.arguments import run_script
from smallgpt.config import Config
from smallgpt.data.corpus import Corpus, open_corpus, split
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.packing import PackedRows
from smallgpt.model.gpt import GPT
from smallgpt.training.pretrain import DialogueTask
from smallgpt.training.trainer import Trainer
from smallgpt.training.validation import validate
from smallgpt.utils.errors import note

HELD_OUT = 1000
"""Dialogues the loss is measured on; only such as fit a row whole, so that both see the same."""
PLAIN_ROWS = 32
TRIAL_STEPS = 4
"""Steps that are timed beforehand, to turn seconds into steps for the schedule."""
POINTS = 16
"""Validations of each."""
GIVE_UP = 5
"""Ours ends without success after so many times its planned steps."""


@dataclass(frozen=True)
class Point:
    """Loss in nats a character after so many steps."""

    steps: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """The run of one contestant; seconds: of a step, the median."""

    points: list[Point]
    step_seconds: float

    @property
    def seconds(self) -> float:
        """Pure training time of the whole run."""
        return self.points[-1].steps * self.step_seconds


@dataclass(frozen=True)
class Task:
    """Text, shape of the model, and which dialogues train and which are held out."""

    corpus: Corpus
    shape: dict[str, int]
    train: Any
    held_out: Any
    seed: int


def prepare(text: Path, layers: int, heads: int, width: int, seed: int) -> Task:
    """Open the text and set dialogues apart, by `seed`."""
    corpus = open_corpus([text], text_chunks)
    train, held_out = split(len(corpus), 0.9, seed)
    length = np.diff(corpus.ends, prepend=0)
    shape = {
        "block_size": 256,
        "vocab_size": len(corpus.tokenizer),
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
    }
    fitting = held_out[length[held_out] <= shape["block_size"]][:HELD_OUT]
    return Task(corpus, shape, train, fitting, seed)


def plain_curve(task: Task, budget: float) -> Curve:
    """Train the plain recipe for `budget` seconds of pure training time.

    The cosine's end is where the budget will be used up by the median of the steps so far.
    """
    rows = padded_rows(task.corpus, task.train, task.shape["block_size"])
    held_out = padded_rows(task.corpus, task.held_out, task.shape["block_size"])
    contestant = PlainTrainer(
        rows,
        task.shape["vocab_size"],
        task.shape["n_layer"],
        task.shape["n_head"],
        task.shape["n_embd"],
        PLAIN_ROWS,
        steps=1,
        device=torch.device("cpu"),
        seed=task.seed,
    )
    points: list[Point] = []
    seconds: list[float] = []
    for step, took in _steps(contestant):
        seconds.append(took)
        contestant.steps = max(1, round(budget / median(seconds)))
        last = step >= contestant.steps
        if last or step >= (len(points) + 1) * contestant.steps / POINTS:
            points.append(_point("plain", step, contestant.loss(held_out), median(seconds)))
        if last:
            break
    return Curve(points, median(seconds))


def our_curve(task: Task, planned_seconds: float, target: float) -> Curve:
    """Train ours until its loss is at most `target`; the schedule ends at `planned_seconds`."""
    config = our_config(task, decay_steps=1)
    here = runtime.start(config)
    rows = PackedRows(task.corpus, task.train, config.block_size, task.seed)
    held_out = PackedRows(task.corpus, task.held_out, config.block_size, task.seed)

    def trainer(config: Config) -> Trainer:
        runtime.seed_everything(config.seed)
        model = GPT(config).train()
        return Trainer(
            config, here, DialogueTask(config, here, model, task.corpus.tokenizer, rows, held_out)
        )

    steps = max(10, round(planned_seconds / _step_seconds(trainer(config))))
    note(f"ours: the schedule has {steps} steps")
    contestant = trainer(our_config(task, decay_steps=steps))
    points, seconds = [], []
    for step, took in _steps(contestant):
        seconds.append(took)
        if step % max(1, steps // POINTS) == 0:
            validation = validate(contestant.model, held_out, here, np.arange(len(held_out)), 32)
            assert validation is not None
            points.append(_point("ours", step, validation.validation_loss, median(seconds)))
            if points[-1].loss <= target or step >= GIVE_UP * steps:
                break
    return Curve(points, median(seconds))


def our_config(task: Task, decay_steps: int) -> Config:
    """Our recipe for the first minutes: small batches, Muon, a high rate, hardly any warm-up."""
    return Config(
        **task.shape,  # type: ignore[arg-type]
        train_batch=8,
        optimizer="muon",
        lr=8e-3,
        min_lr=4e-4,
        warmup_steps=min(5, decay_steps),
        decay_steps=decay_steps,
        unk_rate=0.0,
        device="cpu",
        seed=task.seed,
    )


def _step_seconds(trainer: Trainer) -> float:
    """Of a trainer that is thrown away; the first step, which warms up, does not count."""
    seconds = [took for _, took in itertools.islice(_steps(trainer), TRIAL_STEPS + 1)]
    return median(seconds[1:])


def _steps(trainer: PlainTrainer | Trainer) -> Iterator[tuple[int, float]]:
    """Train without end: the number of each step, and its seconds."""
    while True:
        seconds, _ = timed(trainer.step)
        yield trainer.completed, seconds


def _point(contestant: str, step: int, loss: float, step_seconds: float) -> Point:
    print_json(contestant=contestant, step=step, seconds=step * step_seconds, loss=loss)
    return Point(step, loss)


def draw(plain: Curve, ours: Curve, file: Path) -> None:
    """Loss against seconds of both, as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=100)
    for curve, label in ((plain, "plain recipe"), (ours, "Small GPT")):
        seconds = [point.steps * curve.step_seconds for point in curve.points]
        axes.plot(seconds, [point.loss for point in curve.points], marker=".", label=label)
    axes.axhline(plain.points[-1].loss, linewidth=0.8, linestyle=":", color="grey")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training (logarithmic)")
    axes.set_ylabel("held-out loss (nats a character)")
    axes.legend()
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main(
    budget: Annotated[float, typer.Option(help="Seconds the plain recipe trains.")] = 900,
    data: Annotated[Path | None, typer.Option(help="Text of dialogues to train on.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    heads: Annotated[int, typer.Option(min=1)] = 6,
    width: Annotated[int, typer.Option(min=8)] = 384,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the order.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the two curves into.")] = None,
) -> None:
    """Print the points of both runs, then the ratio of training times, one JSON object a line."""
    task = prepare(benchmark_text(data), layers, heads, width, seed)
    plain = plain_curve(task, budget)
    target = plain.points[-1].loss
    ours = our_curve(task, budget / 60, target)
    reached = ours.points[-1].loss <= target
    print_json(
        budget=budget,
        plain_seconds=plain.seconds,
        plain_loss=target,
        our_seconds=ours.seconds,
        our_loss=ours.points[-1].loss,
        reached=reached,
        ratio=plain.seconds / ours.seconds if reached else None,
    )
    if plot:
        draw(plain, ours, plot)


if __name__ == "__main__":
    run_script(main)
