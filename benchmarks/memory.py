"""Memory of a training step on a GPU, counted without one.

    python -m benchmarks.memory [CONFIG …]            the 90M and the 300M model as shipped

Two steps are taken with tensors that have no contents (torch's FakeTensorMode), and the bytes of
those that are alive are counted; attention and dropout are the GPU's. It is not compiled: compiled
layers keep 5 % less. What a GPU needs besides is not in it: CUDA itself, some 0.4 GB, and what lies
unused between tensors.

In GB: weights, gradients, moments; 16-bit copies of weights and the activations, both kept from the
forward pass to the backward pass; what the loss, chiefly its logits, takes besides for a moment;
the peak; and what `smallgpt.training.memory` expects, by which a run is refused.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import print_json
from smallgpt.cli.arguments import run_script
from smallgpt.config import Config
from smallgpt.config_file import load_config
from smallgpt.model import gpt
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.training.memory import expected, rows_apart
from smallgpt.training.optimizer import make_optimizers

CONFIGS = (Path("config/train90M.yaml"), Path("config/train300M.yaml"))
Build = Callable[[], tuple[nn.Module, Callable[[], Tensor]]]
"""Makes a model, and the function that computes its loss."""


@dataclass(frozen=True)
class Taken:
    """Bytes of a step: see above."""

    weights: int
    gradients: int
    moments: int
    copies: int
    activations: int
    loss: int
    peak: int


class _Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it and still alive, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: Counter[str] = Counter()
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), "copies" if is_cast else "others")
        return made

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive[kind] += size
        self.peak = max(self.peak, self.alive.total())
        weakref.finalize(storage, self._remove, key, kind, size)

    def _remove(self, key: int, kind: str, size: int) -> None:
        self.known.remove(key)
        self.alive[kind] -= size


def measure(config: Config, dtype: torch.dtype, build: Build, parts: int = 1) -> Taken:
    """The second step of a model, whose gradient is computed in so many parts."""
    with _as_on_a_gpu(), FakeTensorMode(), _Counting() as count:
        model, loss = build()
        weights = count.alive.total()
        optimizers = make_optimizers(model, config)
        for _ in range(2):
            before, peaks = count.alive.total(), []
            for _ in range(parts):
                count.peak = 0
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    value = loss()
                kept = count.alive.total(), count.alive["copies"]
                of_loss = count.peak - kept[0]
                value.backward()
                del value
                peaks.append(count.peak)
            gradients = count.alive.total() - before
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            peaks.append(count.peak)
            model.zero_grad(set_to_none=True)
    earlier = gradients if parts > 1 else 0
    activations = kept[0] - kept[1] - before - earlier
    moments = before - weights
    return Taken(weights, gradients, moments, kept[1], activations, of_loss, max(peaks))


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Tensors without contents must be the CPU's where torch was built for no other device; the
    kernels that keep something else on a GPU are exchanged."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        attended: Tensor = kernel(q, k, v, mask, True, dropout, mask is None)[0]
        return attended

    def dropout(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if training and p else x

    with (
        mock.patch.object(gpt, "attend", attend),
        mock.patch("torch.nn.functional.dropout", dropout),
    ):
        yield


def dialogue_step(config: Config, rows: int) -> Build:
    """A GPT and its loss on rows of packed dialogues."""

    def build() -> tuple[nn.Module, Callable[[], Tensor]]:
        model = GPT(config).train()

        def loss() -> Tensor:
            ids = torch.zeros(rows, config.block_size, dtype=torch.long)
            summed: Tensor = model(ids, ids, ids, None, ids)
            return summed

        return model, loss

    return build


def main(
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG …]")] = None,
) -> None:
    """Print one JSON line a config."""
    here = Runtime(torch.device("cuda"), torch.bfloat16, "")
    for path in configs or CONFIGS:
        config = load_config(path, [])
        part = next(rows_apart(config, 1))
        build = dialogue_step(config, part.positions // config.block_size)
        taken = measure(config, here.dtype, build, config.accumulate)
        needed = expected(config, here, build()[0], part)
        layers = config.n_layer * part.positions
        print_json(
            config=str(path),
            positions=part.positions,
            kept_bytes_per_position_and_layer=round(taken.activations / layers),
            **{f"{name}_gb": round(size / 1e9, 2) for name, size in asdict(taken).items()},
            expected_gb=round(needed / 1e9, 2),
        )


if __name__ == "__main__":
    run_script(main)
