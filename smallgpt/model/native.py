"""The forward pass in C (forward.c) for generation on a CPU: pointers into a model's tensors."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.model.cache import Reading
from smallgpt.model.gpt import GPT
from smallgpt.model.quantized import Int4Linear, Int8Linear

SOURCE = Path(__file__).with_name("forward.c")
PURPOSE = "the forward pass"
FLOAT32, BFLOAT16, INT8, INT4 = range(4)


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("outputs", c_int32),
        ("stride", c_int32),
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("ln_1", "ln_2")),
        *((name, _Matrix) for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("layers", "heads", "width", "tanh_gelu")),
        ("epsilon", c_float),
        ("tokens", _Matrix),
        ("positions", _Matrix),
        ("ln_f", _Norm),
        ("head", _Matrix),
        ("layer", ctypes.POINTER(_Layer)),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("memory", c_void_p),
        *((name, c_int64) for name in ("layer_step", "value_step", "row_step", "head_step")),
    )


class NativeForward:
    """Runs a model's layers in C.

    It keeps the model's tensors and points into them or into copies: a model whose weights change
    needs another of these.

    Args:
        library: of `SOURCE`.
        model: on the CPU, in evaluation mode, in float32 or bfloat16. The rows of its matrices are
            a multiple of 64 apart, see `quantized.padded`.
    """

    def __init__(self, library: ctypes.CDLL, model: GPT) -> None:
        self._run = library.smallgpt_forward
        self._kept = list[object]()
        config = model.config
        layers = (_Layer * config.n_layer)()
        blocks: Any = model.h
        for layer, block in zip(layers, blocks, strict=True):
            layer.ln_1, layer.ln_2 = self._norm(block.ln_1), self._norm(block.ln_2)
            layer.c_attn = self._matrix(block.attn.c_attn)
            layer.attn_proj = self._matrix(block.attn.c_proj)
            layer.c_fc = self._matrix(block.mlp.c_fc)
            layer.mlp_proj = self._matrix(block.mlp.c_proj)
        head: Any = model.wte if config.tied else model.lm_head
        if config.tied and isinstance(blocks[0].mlp.c_fc, Int4Linear | Int8Linear):
            # A character needs all of the head, and one row of the embedding.
            head = Int8Linear(head.weight.float(), None, in_c=True)
        self._model = _Model(
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.activation == "gelu_new",
            config.layer_norm_epsilon,
            self._matrix(model.wte),
            self._matrix(model.wpe),
            self._norm(model.ln_f),
            self._matrix(head),
            layers,
        )
        self._config, self._ngrams = config, model.ngrams

    def logits(self, reading: Reading, places_P: Tensor | None) -> Tensor:
        """Read ids, and return the logits behind those at `places_P`, or all, (P, V), float32.

        Those of an id do not depend on what else is read with it, to the bit.

        Args:
            reading: of a cache on the CPU.

        Raises:
            IndexError: an id is not in the vocabulary, or a row has more ids than the context.
        """
        memory = reading.cache.memory
        steps = [memory.stride(dim) for dim in range(4)]
        ids = reading.ids
        limits = ((ids, self._config.vocab_size), (reading.positions, self._config.block_size))
        if any(min(numbers) < 0 or max(numbers) >= limit for numbers, limit in limits):
            raise IndexError("an id or a position that the model does not have")  # C would go there
        added_NE = None
        if self._ngrams is not None:
            added_N1E = self._ngrams(reading.windows_NS, reading.positions_N1)
            added_NE = added_N1E.flatten(0, 1).float().contiguous()
        places = range(len(ids)) if places_P is None else places_P.tolist()
        logits_PV = torch.empty(len(places), self._config.vocab_size)
        tokens, rows, positions, wanted = (
            (c_int32 * len(numbers))(*numbers)
            for numbers in (ids, reading.rows, reading.positions, places)
        )
        failed = self._run(
            ctypes.byref(self._model),
            ctypes.byref(_Cache(memory.data_ptr(), *steps)),
            len(ids),
            tokens,
            rows,
            positions,
            None if added_NE is None else c_void_p(added_NE.data_ptr()),
            len(places),
            wanted,
            c_void_p(logits_PV.data_ptr()),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory to read {len(ids)} tokens")
        reading.finish()
        return logits_PV

    def _pointer(self, tensor: Tensor) -> int:
        assert tensor.stride(-1) == 1
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _float32(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        return self._pointer(tensor.detach().to(torch.float32).contiguous())

    def _norm(self, norm: Any) -> _Norm:
        return _Norm(self._float32(norm.weight), self._float32(norm.bias))

    def _matrix(self, layer: Any) -> _Matrix:
        bias = self._float32(getattr(layer, "bias", None))
        if isinstance(layer, Int4Linear):
            weight, scales = self._pointer(layer.integers), self._pointer(layer.scales)
            outputs, half = layer.integers.shape
            return _Matrix(INT4, outputs, 2 * half, weight, None, scales, bias)
        if isinstance(layer, Int8Linear):
            kind, matrix, scale = INT8, layer.integers, self._float32(layer.scale)
        else:
            matrix, scale = layer.weight.detach(), None
            kind = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}[matrix.dtype]
        stride = matrix.stride(0)
        return _Matrix(kind, len(matrix), stride, self._pointer(matrix), scale, None, bias)
