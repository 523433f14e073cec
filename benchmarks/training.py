"""Speed of training: the plain recipe against our step, alternating in one run.

    python -m benchmarks.training                               12M and 90M on the CPU
    python -m benchmarks.training --device cuda --size 90M --size 300M

One JSON object a size. Characters a second count real characters only (`<sep>` and the end of a
dialogue included), positions padding as well. `utilisation` is 6 x parameters x positions a second,
the products of the layers and the head without attention, as a share of the fastest matrix product
measured in the same run in the same precision.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import (
    SIZES,
    Contestant,
    Size,
    benchmark_text,
    matmul_peak,
    print_json,
    size_named,
    timed,
)
from benchmarks.plain import PlainTrainer, padded_rows
from smallgpt import runtime
from smallgpt.cli.arguments import run_script
from smallgpt.config import Config
from smallgpt.config_file import load_config
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.model.gpt import GPT
from smallgpt.training.pretrain import DialogueTask
from smallgpt.training.rows import pack_corpus
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import note

WARM_UP_STEPS = 2
DIALOGUES = 4000
"""The plain recipe takes its rows from so many dialogues; more would only take time to pad."""


class PlainSide:
    """The plain recipe in a process of its own."""

    def __init__(self, size: Size, text: Path, device: str) -> None:
        corpus = open_corpus([text], text_chunks)
        rows = padded_rows(corpus, range(min(DIALOGUES, len(corpus))), 256)
        self.device = torch.device(device)
        self.trainer = PlainTrainer(
            rows,
            len(corpus.tokenizer),
            size.layers,
            size.heads,
            size.width,
            min(size.plain_rows, len(rows)),
            1000,
            self.device,
        )

    def step(self) -> tuple[int, int, float]:
        """Positions, real characters and seconds of a step."""
        seconds, characters = timed(self.trainer.step, self.device)
        return self.trainer.batch * 256, characters, seconds


class OurSide:
    """`Trainer.step`, as train.py runs it."""

    def __init__(self, config: Config) -> None:
        corpus = open_corpus(config.data_paths(), text_chunks)
        self.config = config
        self.here = runtime.with_attention(runtime.start(config), config)
        rows, held_back = pack_corpus(config, corpus, corpus.tokenizer)
        runtime.seed_everything(config.seed)
        model = GPT(config).to(self.here.device).train()
        self.parameters = model.parameter_count()
        task = DialogueTask(config, self.here, model, corpus.tokenizer, rows, held_back)
        self.trainer = Trainer(config, self.here, task)

    def step(self) -> tuple[int, int, float]:
        """Positions, real characters and seconds of a step."""
        seconds, result = timed(self.trainer.step, self.here.device)
        return self.config.train_batch * self.config.block_size, result.tokens, seconds

    def describe(self) -> tuple[int, str]:
        """Number of parameters without positions, and the precision."""
        return self.parameters, str(self.here.dtype).removeprefix("torch.")

    def peak(self) -> float:
        """Floating-point operations a second of a matrix product in our precision."""
        return matmul_peak(self.here.dtype, self.here.device)

    def peak_gpu_memory(self) -> int:
        """Bytes of GPU memory our tensors have taken at most; 0 on a CPU."""
        cuda = self.here.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.here.device) if cuda else 0


def our_config(name: str, text: Path, device: str, optimizer: Any, compile_step: bool) -> Config:
    """Ours for a size: on a GPU as shipped, batch, dropout and compile included."""
    vocabulary = len(open_corpus([text], text_chunks).tokenizer)
    if device != "cpu":
        changes = [f"data_path={text}", f"device={device}", f"vocab_size={max(vocabulary, 7587)}"]
        return load_config(f"config/train{name}.yaml", changes)
    return Config(
        **SIZES[name].keys(),  # type: ignore[arg-type]
        data_path=str(text),
        vocab_size=vocabulary,
        train_batch=SIZES[name].our_rows,
        optimizer=optimizer,
        compile=compile_step,
        device=device,
    )


def compare(name: str, config: Config, text: Path, rounds: int) -> None:
    """Time both, alternating, and print the figures."""
    with ExitStack() as held:
        plain = held.enter_context(Contestant(PlainSide, SIZES[name], text, config.device))
        ours = held.enter_context(Contestant(OurSide, config))
        for side in (plain, ours):
            for _ in range(WARM_UP_STEPS):
                side.call("step")
        memory = {"plain": plain.peak_memory(), "ours": ours.peak_memory()}
        plain_steps, our_steps, peaks = [], [], []
        for _ in range(rounds):
            plain_steps.append(plain.call("step"))
            our_steps.append(ours.call("step"))
            peaks.append(ours.call("peak"))
        parameters, precision = ours.call("describe")
        gpu_memory = ours.call("peak_gpu_memory")
    plain_positions, plain_characters = _rates(plain_steps)
    our_positions, our_characters = _rates(our_steps)
    on_gpu = {"gpu_memory_gb": gpu_memory / 1e9} if gpu_memory else {}
    print_json(
        size=name,
        parameters=parameters,
        plain_positions_per_second=plain_positions,
        plain_characters_per_second=plain_characters,
        our_positions_per_second=our_positions,
        our_characters_per_second=our_characters,
        ratio=our_characters / plain_characters,
        rows=config.train_batch,
        precision=precision,
        optimizer=config.optimizer,
        matmul_peak_gflops=median(peaks) / 1e9,
        utilisation=6 * parameters * our_positions / median(peaks),
        plain_peak_memory_gb=memory["plain"] / 1e9,
        our_peak_memory_gb=memory["ours"] / 1e9,
        **on_gpu,
    )


def _rates(steps: list[tuple[int, int, float]]) -> tuple[float, float]:
    """Positions and characters a second: median seconds, mean characters."""
    seconds = median(took for _, _, took in steps)
    characters = sum(count for _, count, _ in steps) / len(steps)
    return steps[0][0] / seconds, characters / seconds


def main(
    size: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SIZES)}.")] = None,
    data: Annotated[Path | None, typer.Option(help="Text of dialogues.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    optimizer: Annotated[str, typer.Option(help="adamw or muon (on a CPU).")] = "adamw",
    compile_step: Annotated[
        bool, typer.Option("--compile", help="torch.compile on a CPU.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each that are timed.")] = 7,
) -> None:
    """Print one JSON object a size."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        note("no CUDA GPU here: skipped")
        return
    names = size or ["12M", "90M"]
    for name in names:
        size_named(name)
    text = benchmark_text(data)
    for name in names:
        compare(name, our_config(name, text, device, optimizer, compile_step), text, rounds)


if __name__ == "__main__":
    run_script(main)
