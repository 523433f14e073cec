"""How much memory training takes, and whether a GPU has as much.

tests/training/test_memory.py holds `expected` against the bytes of every tensor of a step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from smallgpt.config import Config
from smallgpt.model.gpt import Block
from smallgpt.model.loss import CHUNK
from smallgpt.model.parameters import parameter_groups
from smallgpt.runtime import Runtime
from smallgpt.utils.errors import UserError, note

PROGRAM = 0.4 * 2**30
"""Bytes of Python and torch, which share the memory of a CPU with the model."""
HEAP = 1.2
"""How much more than the tensors on a CPU their heap takes, by measurement (docs/log.md)."""
MARGIN = 0.1
"""How far `expected` may be off, as a share: a compiled step takes about 5 % less, and what a GPU
cannot use between its tensors some percent more."""


class Part(NamedTuple):
    """How a step can be split.

    setting: what the config must say for it.
    positions: of the largest part.
    whole: whether it is all of the step, on one device: gradients then come as activations go.
    texts: that attention keeps apart in it.
    """

    setting: str
    positions: int
    whole: bool
    texts: float = 0.0


def rows_apart(config: Config, processes: int, texts_a_row: float = 0.0) -> Iterator[Part]:
    """The ways to split the rows of a step by `accumulate`, from the config's on."""
    for count in range(config.accumulate, config.train_batch // processes + 1):
        rows, rest = divmod(config.train_batch, count * processes)
        if not rest:
            whole = count * processes == 1
            positions, texts = rows * config.block_size, rows * texts_a_row
            yield Part(f"accumulate: {count}", positions, whole, texts)


def positions_apart(bound: int, most: int, least: int) -> Iterator[Part]:
    """The ways to split a step of reviews by `max_positions`, from `bound` on.

    Args:
        most: positions of what a process computes of a step, at most.
        least: positions of the largest review, which is never split.
    """
    while True:
        yield Part(f"max_positions: {bound}", min(most, max(least, bound)), False)
        if bound <= least:
            return
        bound = max(least, bound // 2)


def expected(
    config: Config, here: Runtime, model: nn.Module, part: Part, of_tokens: bool = True
) -> float:
    """Bytes at the peak of a step in one process.

    Weights that learn, gradients and moments are float32. For its gradient a layer keeps of each
    position, of width E: two states of the residual stream in float32; with dropout two masks of a
    byte; and in the precision of matrix products 14 E numbers: the outputs of both norms (2), of
    queries, keys and values (3), of attention (1), and before and after GELU (8).

    Args:
        of_tokens: whether the loss is that of a language model, or reads one position a row, for
            which alone the last layer is computed.
    """
    on_cpu, size = here.device.type == "cpu", here.dtype.itemsize
    width, positions = config.n_embd, part.positions
    learnt = [sum(p.numel() for _, p in group) for group in parameter_groups(model)]
    weights, gradients = sum(float(p.nbytes) for p in model.parameters()), 4.0 * sum(learnt)
    moments = 2 * gradients - (4 * learnt[1] if config.optimizer == "muon" else 0)  # it has one

    mask = (size if on_cpu else 1) if config.dropout else 0
    of_layer = (8 + 2 * mask + 14 * size) * width + 4 * config.n_head
    if on_cpu and size < 4:  # attention is written out, see gpt.attend
        of_layer += config.n_head * config.block_size * size * (3 if config.dropout else 1)
    layers = sum(_learns(module) for module in model.modules() if isinstance(module, Block))
    if of_tokens:
        kept = positions * (layers * of_layer + (8 + size) * width)
        kept += min(CHUNK, positions) * config.vocab_size * (8 + 2 * size)  # see next_token_loss
        kept += config.vocab_size * width * (4 + size)
    else:
        kept = positions * ((layers - 1) * of_layer + 12 * size * width)
    if size < 4:
        kept += size * learnt[1]  # autocast's copies of matrices
    if here.varlen:  # flash attention's gradient of the queries, in blocks of 128 for each text
        kept += round(4 * width * (positions + 128 * part.texts))
    together = max(gradients, kept) if part.whole else gradients + kept
    total = weights + moments + together
    return PROGRAM + HEAP * total if on_cpu else total


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def check(
    config: Config, here: Runtime, model: nn.Module, parts: Iterator[Part], of_tokens: bool = True
) -> float:
    """The bytes expected for the first of the `parts`. Where an NVIDIA GPU clearly has less, a run
    ends before it has begun; where it has hardly more, that is said.

    Raises:
        UserError: it names the first of the other parts that would fit.
    """
    needed, *others = ((part, expected(config, here, model, part, of_tokens)) for part in parts)
    if here.device.type != "cuda":
        return needed[1]
    free, total = torch.cuda.mem_get_info(here.device)
    free += torch.cuda.memory_reserved(here.device)  # held by this process already
    if torch.cuda.get_device_properties(here.device).is_integrated:
        free = total  # shared with the system, whose file cache does not count as free
    safe = (1 - MARGIN) * free
    if needed[1] <= safe:
        return needed[1]
    fitting = next((other for other in others if other[1] <= safe), None)
    least, takes = fitting or (others or [needed])[-1]
    if fitting:
        advice = f"set {least.setting}, with which it takes {gib(takes)}: the result is the same, "
        advice += "to rounding and to where dropout falls"
    else:
        advice = f"even {least.setting} takes {gib(takes)}: train a smaller model (n_layer, n_embd)"
        advice += ", or take a smaller base_model" if config.base_model else ""
    if free < 0.8 * total:
        advice += "\n     or end what else uses the GPU (nvidia-smi lists it)"
    problem = f"training takes about {gib(needed[1])} of memory"
    problem += f", {here.device} has {gib(free)} free of {gib(total)}"
    if needed[1] > (1 + MARGIN) * free:
        raise UserError(problem, advice)
    note(f"warning: {problem}\n  -> if it runs out, {advice}")
    return needed[1]


def tell_peak(here: Runtime, needed: float) -> None:
    """Say what training has taken of a GPU's memory, beside what was expected."""
    if here.device.type == "cuda":
        taken = torch.cuda.max_memory_allocated(here.device)
        reserved = torch.cuda.max_memory_reserved(here.device)
        note(f"memory: {gib(taken)} at most ({gib(reserved)} reserved), {gib(needed)} expected")


def gib(size: float) -> str:
    """Bytes in GiB, for messages."""
    return f"{size / 2**30:.1f} GiB"
