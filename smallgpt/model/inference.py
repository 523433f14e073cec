"""Inference weights: a model's matrices in the form that is quickest to read.

Each new id takes little more than reading every weight once, so what counts is how many bytes
they have and how near to the speed of memory they are read (docs/log.md).
"""

import platform
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.model.gpt import GPT

_ON_X86 = platform.machine() in ("x86_64", "AMD64")
"""The quick kernels were tried there only; elsewhere torch chooses."""
FEW_ROWS = 8
"""Rows up to which the kernel for int8 is quicker than unpacking (docs/log.md)."""


@torch.no_grad()
def load_inference_weights(
    model: GPT,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    int8: bool,
    device: torch.device,
    between_layers: Callable[[], object] = lambda: None,
) -> GPT:
    """Give `model` these weights, ready for generation, and return it.

    Its `nn.Linear` modules are replaced where others are quicker. A tied output head stays one with
    the embedding, and so out of int8: it is 3 % of the large model's weights.

    Args:
        model: of the weights' shape and in evaluation mode; its own weights are not looked at.
        weights: float32, on the CPU.
        dtype: what is computed in, and what weights are kept in that are not int8.
        int8: keep the matrices of the layers as 8-bit integers, with a scale for each output
            channel.
        between_layers: called before each layer is made; what it raises ends the work.
    """
    rest = dict(weights)
    packed = device.type == "cpu" and _can_pack(dtype)
    for name, module in list(model.named_modules()):
        between_layers()
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, nn.Identity())
        if not isinstance(module, nn.Linear) or not (int8 or packed):
            continue
        weight = rest.pop(f"{name}.weight").to(device)
        bias = rest.pop(f"{name}.bias", None)
        bias = None if bias is None else bias.to(device, dtype)
        made = Int8Linear(weight, bias) if int8 else PackedLinear(weight.to(dtype), bias)
        model.set_submodule(name, made)
    rest = {name: weight.to(device, dtype).contiguous() for name, weight in rest.items()}
    model.load_state_dict(rest, assign=True)
    if device.type != "cpu":
        _load_kernels(model)
    return model


def _load_kernels(model: GPT) -> None:
    """Reply once, to half a context: a GPU loads its kernels when they are first used, and the
    first real reply need not wait for them."""
    prompt = [0] * (model.config.block_size // 2)
    two = SamplingConfig(temperature=0, max_new_tokens=2)
    for _ in generate(model, Request(prompt, two, [torch.Generator()])):
        pass


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and computes in `dtype`."""
    if not _ON_X86 or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


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


class Int8Linear(nn.Module):
    """A linear layer with int8 weights: output channel n is scale[n] times integers.

    Args:
        weight: (out, in), float32.
        bias: (out,), of the type of the inputs to come.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        # In the precision the kernel multiplies by, so that rounding goes to what is multiplied.
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30).to(torch.bfloat16)
        integers = (weight / self.scale.float()[:, None]).round_().clamp_(-127, 127)
        self.integers = integers.to(torch.int8).contiguous()
        # For other widths torch's kernel reads beyond the rows, and computes nonsense.
        self.has_kernel = _ON_X86 and weight.device.type == "cpu" and weight.shape[1] % 32 == 0

    @property
    def weight(self) -> Tensor:
        """The matrix that the integers stand for, (out, in), float32."""
        return self.integers.float() * self.scale.float()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out)."""
        rows, positions, _ = x.shape
        if self.has_kernel and x.dtype == torch.bfloat16 and positions == 1 and rows <= FEW_ROWS:
            y = torch._weight_int8pack_mm(x.squeeze(1), self.integers, self.scale).unsqueeze(1)
        else:  # of many, such as a prompt: unpacking once is quicker
            dense = torch.float32 if x.device.type == "cpu" and not _can_pack(x.dtype) else x.dtype
            y = F.linear(x.to(dense), self.integers.to(dense)).to(x.dtype) * self.scale.to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)
