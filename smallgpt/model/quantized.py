"""Linear layers whose weights are 8-bit or 4-bit integers.

Their matrices lie as forward.c reads them. It multiplies integers by integers, so it rounds inputs,
too; and so do these layers where they stand for it (`in_c`), such as in an evaluation. Where it
cannot be had, kernels of torch compute one position of a few rows; of many, such as a prompt,
unpacking once is quicker.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ON_X86 = platform.machine() in ("x86_64", "AMD64")
"""torch's quick kernels were tried there only; elsewhere torch chooses."""
FEW_ROWS = 8
"""Rows up to which they are quicker than unpacking (docs/log.md)."""
ALIGNED = 64
"""forward.c wants the rows of a matrix a multiple of so many weights apart."""
INT4_GROUP = 32
"""Neighbouring weights that share a scale."""


def padded(weight: Tensor) -> Tensor:
    """The same matrix, (out, in), its rows a multiple of 64 apart and zeros between them."""
    outputs, inputs = weight.shape
    if inputs % ALIGNED == 0:
        return weight.contiguous()
    rows = weight.new_zeros(outputs, -(-inputs // ALIGNED) * ALIGNED)
    rows[:, :inputs] = weight
    return rows[:, :inputs]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights: output channel n is scale[n] times integers.

    Args:
        weight: (out, in), float32.
        bias: (out,), of the type of the inputs to come.
        in_c: keep rows as forward.c wants them, and round inputs as it does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, in_c: bool = False) -> None:
        super().__init__()
        self.bias, self.in_c = bias, in_c
        # In the precision torch's kernel multiplies by: rounding goes to what is multiplied.
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30).to(torch.bfloat16)
        integers = (weight / self.scale.float()[:, None]).round_().clamp_(-127, 127)
        integers = integers.to(torch.int8)
        self.integers = padded(integers) if in_c else integers.contiguous()
        # For other widths torch's kernel reads beyond the rows, and computes nonsense.
        self.has_kernel = ON_X86 and weight.device.type == "cpu" and weight.shape[1] % 32 == 0

    @property
    def weight(self) -> Tensor:
        """The matrix that the integers stand for, (out, in), float32."""
        return self.integers.float() * self.scale.float()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out)."""
        if self.in_c:
            x = in_8_bits(x)
        elif self.has_kernel and _few(x):
            y = torch._weight_int8pack_mm(x.flatten(0, 1), self.integers, self.scale)
            return _with_bias(y.view(*x.shape[:2], -1), self.bias)
        return _with_bias(_unpacked(x, self.integers) * self.scale.to(x.dtype), self.bias)


class Int4Linear(nn.Module):
    """A linear layer with int4 weights: -8 to 7, times a scale for each 32 inputs of an output.

    Args:
        weight: (out, in), float32, on the CPU.
        bias: (out,), of the type of the inputs to come.
        in_c: round inputs as forward.c does. Otherwise the integers are kept in the form of torch's
            kernel as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, in_c: bool = False) -> None:
        super().__init__()
        self.bias, self.in_c = bias, in_c
        outputs, self.inputs = weight.shape
        whole = F.pad(weight.contiguous(), (0, -self.inputs % ALIGNED))
        groups = whole.view(outputs, -1, INT4_GROUP)
        # The largest becomes -8, as there is no 8 (the form is llama.cpp's q4_0).
        largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        scales = (largest / -8).to(torch.bfloat16)
        divisor = scales.float().masked_fill_(scales == 0, 1)
        unsigned = (groups / divisor).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        self.scales = scales.view(outputs, -1)
        pairs = unsigned.view(outputs, -1, 2, INT4_GROUP)
        self.integers = (pairs[:, :, 0] | pairs[:, :, 1] << 4).view(outputs, -1)
        """(out, in / 2), uint8: 32 bytes hold 64 weights, the first 32 in the low halves."""
        self.packed: Tensor | None = None
        if not in_c and ON_X86 and self.inputs % ALIGNED == 0 and outputs % 16 == 0:
            rows = unsigned.view(outputs, -1).int()
            self.packed = torch._convert_weight_to_int4pack_for_cpu(rows, 1)
            zeros = torch.zeros_like(self.scales)
            self.scales_zeros = torch.stack([self.scales, zeros], 2).transpose(0, 1).contiguous()

    @property
    def weight(self) -> Tensor:
        """The matrix that the integers stand for, (out, in), float32."""
        return self._dense(torch.float32)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        pairs = self.integers.view(len(self.integers), -1, 1, INT4_GROUP)
        unsigned = torch.cat([pairs & 15, pairs >> 4], 2).flatten(1, 2)
        weights = (unsigned.to(dtype) - 8) * self.scales.to(dtype)[:, :, None]
        return weights.flatten(1)[:, : self.inputs]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out)."""
        if self.in_c:
            x = in_8_bits(x)
        elif self.packed is not None and _few(x):
            y = torch._weight_int4pack_mm_for_cpu(
                x.flatten(0, 1), self.packed, INT4_GROUP, self.scales_zeros
            )
            return _with_bias(y.view(*x.shape[:2], -1), self.bias)
        return _with_bias(_unpacked(x, self._dense(x.dtype)), self.bias)


def in_8_bits(x: Tensor) -> Tensor:
    """Rounded to 127 steps on either side of 0. Of (…, in), 64 neighbours share a step's size."""
    width = x.shape[-1]
    groups = F.pad(x.float(), (0, -width % ALIGNED)).unflatten(-1, (-1, ALIGNED))
    step = groups.abs().amax(-1, keepdim=True) / 127
    rounded = (groups / step.clamp(min=1e-30)).round_() * step
    return rounded.flatten(-2)[..., :width].to(x.dtype)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)


def _few(x: Tensor) -> bool:
    """Whether torch's kernels are for these inputs, (B, T, in)."""
    return x.dtype == torch.bfloat16 and x.shape[0] * x.shape[1] <= FEW_ROWS


def _unpacked(x: Tensor, weights: Tensor) -> Tensor:
    """`F.linear` with the weights in the type of x, or in float32 where a CPU has no other."""
    dtype = torch.float32 if x.device.type == "cpu" and not has_fast(x.dtype) else x.dtype
    return F.linear(x.to(dtype), weights.to(dtype)).to(x.dtype)


def has_fast(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and computes in `dtype`."""
    if not ON_X86 or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
