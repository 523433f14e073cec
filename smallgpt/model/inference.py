"""Inference weights: a model's matrices in the form that is quickest to read.

Each new id takes little more than reading every weight once, so what counts is how many bytes
they have and how near to the speed of memory they are read (docs/log.md).
"""

import ctypes
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.model.gpt import GPT
from smallgpt.model.native import NativeForward
from smallgpt.model.quantized import Int4Linear, Int8Linear, has_fast, padded


@torch.no_grad()
def load_inference_weights(
    model: GPT,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    bits: Literal[4, 8] | None,
    device: torch.device,
    library: ctypes.CDLL | None = None,
    between_layers: Callable[[], object] = lambda: None,
) -> GPT:
    """Give `model` these weights, ready for generation, and return it.

    Its `nn.Linear` modules are replaced where others are quicker. A tied output head stays one with
    the embedding, and so out of int8 and int4, except where the head is read in C.

    Args:
        model: of the weights' shape and in evaluation mode; its own weights are not looked at.
        weights: float32, on the CPU.
        dtype: what is computed in, and what weights are kept in that are not integers.
        bits: of the integers that the layers' matrices are kept as; None for none. 4 is for a CPU.
        library: on a CPU, what runs the layers in C (see native.SOURCE); None leaves it to torch.
        between_layers: called before each layer is made; what it raises ends the work.
    """
    rest = dict(weights)
    on_cpu = device.type == "cpu"
    in_c = library is not None and on_cpu
    packed = on_cpu and not in_c and has_fast(dtype)
    for name, module in list(model.named_modules()):
        between_layers()
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, nn.Identity())
        if not isinstance(module, nn.Linear) or not (bits or packed):
            continue
        weight = rest.pop(f"{name}.weight").to(device)
        bias = rest.pop(f"{name}.bias", None)
        bias = None if bias is None else bias.to(device, dtype)
        if bits == 4:
            made: nn.Module = Int4Linear(weight, bias, in_c)
        else:
            made = Int8Linear(weight, bias, in_c) if bits else PackedLinear(weight.to(dtype), bias)
        model.set_submodule(name, made)
    rest = {name: weight.to(device, dtype) for name, weight in rest.items()}
    rest = {n: padded(w) if in_c and w.dim() == 2 else w.contiguous() for n, w in rest.items()}
    model.load_state_dict(rest, assign=True)
    if in_c:
        assert library is not None
        model.native = NativeForward(library, model)
    if not on_cpu:
        _load_kernels(model)
    return model


def _load_kernels(model: GPT) -> None:
    """Reply once, to half a context: a GPU loads its kernels when they are first used, and the
    first real reply need not wait for them."""
    prompt = [0] * (model.config.block_size // 2)
    two = SamplingConfig(temperature=0, max_new_tokens=2)
    for _ in generate(model, Request(prompt, two, [torch.Generator()])):
        pass


class PackedLinear(nn.Module):
    """A linear layer whose weights, (out, in), lie in the order in which oneDNN reads them.

    Twice as quick as `F.linear` for one row in float32, half as quick again in bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)

    @property
    def weight(self) -> Tensor:
        """The matrix, (out, in), unpacked."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
