"""What a second process brings: one against two, each with one thread.

    python -m benchmarks.scaling                      12M, 32 rows of 256 a process and step
    python -m benchmarks.scaling --strong             the same rows in all for one as for two

torchrun starts them as a user would; they stay alive and take turns: one process alone; two that
know nothing of each other, which shows what sharing the machine costs; two that train one model.
Tokens are targets; figures are medians; `efficiency` is the rate of two by twice the rate of one in
the same round. A process computes 8 rows at once (`accumulate`): its cache holds them better, and
one process alone is no slower for it.

Bytes are what each of two sent on the loopback interface during their steps, headers included, less
what it carries at rest; in a network namespace of their own where the system permits one
(`bytes_measured_in`). `all_reduce_share` is the time that the gradients take to be summed when
nothing else is done, as a share of a step of two.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from benchmarks.measure import SIZES, benchmark_text, print_json, size_named
from benchmarks.torchrun import NETWORK_COUNTERS, Group, answer, bytes_on_loopback, own_network
from smallgpt import runtime
from smallgpt.cli.arguments import run_script
from smallgpt.config import Config
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.distributed.world import World
from smallgpt.model.gpt import GPT
from smallgpt.training.pretrain import DialogueTask
from smallgpt.training.rows import pack_corpus
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError

MODULE = "benchmarks.scaling"
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Turn:
    """Several steps of one process: its clock and bytes sent on lo, before and after; targets."""

    began: float
    ended: float
    sent_before: int
    sent_after: int
    tokens: int


class Worker:
    """One of the processes: `Trainer.step` as train.py runs it."""

    def __init__(self, config: Config, world: World) -> None:
        here = runtime.start(config, world.local_rank)
        corpus = open_corpus(config.data_paths(), text_chunks)
        rows, held_back = pack_corpus(config, corpus, corpus.tokenizer)
        runtime.seed_everything(config.seed)
        model = GPT(config).to(here.device).train()
        self.world = world
        self.parameters = sum(p.numel() for p in model.parameters())
        task = DialogueTask(config, here, model, corpus.tokenizer, rows, held_back, world)
        self.trainer = Trainer(config, here, task, world)

    def steps(self, rows: int, at_once: int, count: int) -> Turn:
        """Take `count` steps of so many rows for each process, some of them at once."""
        config, task = self.trainer.config, self.trainer.task
        assert isinstance(task, DialogueTask)
        self.trainer.config = task.config = replace(
            config, train_batch=rows * self.world.size, accumulate=rows // at_once
        )
        began, before, tokens = time.monotonic(), bytes_on_loopback(), 0
        for _ in range(count):
            tokens += self.trainer.step().tokens
        return Turn(began, time.monotonic(), before, bytes_on_loopback(), tokens)

    def all_reduce(self) -> float:
        """Seconds to sum as many float32 numbers as there are gradients over all processes."""
        gradients = torch.zeros(self.parameters)
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(gradients)
        return time.monotonic() - began

    def describe(self) -> dict[str, Any]:
        """Parameters, positions included, precision and threads."""
        dtype = str(self.trainer.runtime.dtype).removeprefix("torch.")
        threads = torch.get_num_threads()
        return {"parameters": self.parameters, "precision": dtype, "threads": threads}


def rate(groups: Sequence[Group], *steps: int) -> tuple[float, list[Turn]]:
    """Tokens a second of groups that work at the same time, and the turns of their first ones.

    Args:
        steps: what `Worker.steps` takes.
    """
    for group in groups:
        group.begin("steps", *steps)
    turns: list[list[Turn]] = [group.finish() for group in groups]
    every = [turn for group in turns for turn in group]
    seconds = max(turn.ended for turn in every) - min(turn.began for turn in every)
    first = [group[0] for group in turns]
    return sum(turn.tokens for turn in first) / seconds, first


def bytes_a_step(turns: Sequence[Turn], steps: int) -> float:
    """Bytes that steps sent on lo, all processes together, less what it carries without them."""
    rests = list(itertools.pairwise(turns))
    idle = sum(after.sent_before - before.sent_after for before, after in rests)
    idle_seconds = sum(after.began - before.ended for before, after in rests)
    sent = sum(turn.sent_after - turn.sent_before for turn in turns)
    seconds = sum(turn.ended - turn.began for turn in turns)
    return (sent - (idle / idle_seconds * seconds if rests else 0)) / (len(turns) * steps)


def compare(
    size: str, config: Config, rows: int, at_once: int, strong: bool, steps: int, rounds: int
) -> None:
    """Time one process, two apart and two together, alternating, and print the figures."""
    prefix = own_network()
    with ExitStack() as held:
        one = held.enter_context(Group(MODULE, 1))
        other = held.enter_context(Group(MODULE, 1))
        two = held.enter_context(Group(MODULE, 2, prefix))
        for group in (one, other, two):
            group.meet(config)
        contests: dict[str, Callable[[int], tuple[float, list[Turn]]]] = {
            "one": lambda n: rate([one], 2 * rows if strong else rows, at_once, n),
            "apart": lambda n: rate([one, other], rows, at_once, n),
            "two": lambda n: rate([two], rows, at_once, n),
        }
        for contest in contests.values():
            contest(WARM_UP_STEPS)
        rates: dict[str, list[float]] = {name: [] for name in contests}
        turns: list[Turn] = []
        for _ in range(rounds):
            for name, contest in contests.items():
                tokens_a_second, first = contest(steps)
                rates[name].append(tokens_a_second)
                turns += first if name == "two" else []
        alone = [max(two.call("all_reduce")) for _ in range(2 * rounds)]
        described = two.call("describe")[0]
    efficiencies = {
        name: [rate / (2 * one) for one, rate in zip(rates["one"], values, strict=True)]
        for name, values in rates.items()
    }
    step_seconds = median((turn.ended - turn.began) / steps for turn in turns)
    gradient_bytes = 4 * described["parameters"]
    sent = bytes_a_step(turns, steps) / 2 if NETWORK_COUNTERS.exists() else None
    print_json(
        size=size,
        scaling="strong" if strong else "weak",
        rows_a_process=rows,
        rows_at_once=at_once,
        **described,
        tokens_per_second_one=median(rates["one"]),
        tokens_per_second_two=median(rates["two"]),
        efficiency=median(efficiencies["two"]),
        efficiency_of_rounds=[round(value, 3) for value in sorted(efficiencies["two"])],
        efficiency_of_two_apart=median(efficiencies["apart"]),
        step_seconds_of_two=step_seconds,
        gradient_bytes=gradient_bytes,
        bytes_sent_a_step=None if sent is None else round(sent),
        bytes_by_gradients=None if sent is None else sent / gradient_bytes,
        bytes_measured_in="a network of their own" if prefix else "the machine's lo",
        all_reduce_seconds=median(alone),
        all_reduce_share=median(alone) / step_seconds,
    )


def our_config(size: str, text: Path, rows: int) -> Config:
    """A model of one of `SIZES` on one's own text."""
    return Config(
        **size_named(size).keys(),  # type: ignore[arg-type]
        data_path=str(text),
        vocab_size=len(open_corpus([text], text_chunks).tokenizer),
        train_batch=2 * rows,
        device="cpu",
        ddp=True,
    )


def main(
    size: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "12M",
    data: Annotated[Path | None, typer.Option(help="Text of dialogues.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of 256 of each of two; else as the size's.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Rows computed at once, at most.")] = 8,
    strong: Annotated[bool, typer.Option("--strong", help="One gets the rows of both.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    address: Annotated[Path | None, typer.Option("--serve", hidden=True)] = None,
) -> None:
    """Print one JSON object."""
    if address:
        answer(address, Worker)
        return
    rows = rows or size_named(size).our_rows
    at_once = min(at_once, rows)
    if rows % at_once:
        raise UserError(f"--rows: {rows} is not divisible by {at_once}", "change --at-once")
    text = benchmark_text(data)
    compare(size, our_config(size, text, rows), rows, at_once, strong, steps, rounds)


if __name__ == "__main__":
    run_script(main)
