"""MIL operations between integers and floating point, and the compile-time forms of compressed weights.

Source: MIL reference, ``iOS16/constexpr_ops.py``, ``iOS17/quantization_ops.py``, ``iOS18/compression.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.mil.call import Call, Result


def _along(call: Call, name: str, rank: int) -> Tensor | None:
    """A scalar, or a vector shaped to broadcast along ``axis``."""
    if not call.has(name):
        return None
    value = call.raw(name).float()
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    shape = [1] * rank
    shape[call.integer("axis")] = -1
    return value.reshape(shape)


def _quantize(call: Call) -> Tensor:
    """clip(round(input / scale) + zero_point), halves rounded to even."""
    x, kind = call.tensor("input"), call.text("output_dtype")
    scale, zero = _along(call, "scale", x.ndim), _along(call, "zero_point", x.ndim)
    level = torch.round(x / scale) if scale is not None else torch.round(x)
    level = level if zero is None else level + zero
    low, high = (0, 255) if kind == "uint8" else (-128, 127)
    return level.clamp(low, high).to(torch.uint8 if kind == "uint8" else torch.int8)


def _dequantize(call: Call, name: str = "input") -> Tensor:
    """scale * (input - zero_point)."""
    level = call.raw(name).float()
    scale, zero = _along(call, "scale", level.ndim), _along(call, "zero_point", level.ndim)
    level = level if zero is None else level - zero
    return level if scale is None else level * scale


def _blockwise(call: Call) -> Tensor:
    data, scale, offset = call.raw("data").float(), call.raw("scale").float(), call.maybe("offset")
    data = data if offset is None else data - _repeat(offset.float(), data)
    return data * _repeat(scale, data)


def _repeat(value: Tensor, data: Tensor) -> Tensor:
    for axis in range(data.ndim):
        if value.shape[axis] not in (1, data.shape[axis]):
            value = value.repeat_interleave(data.shape[axis] // value.shape[axis], dim=axis)
    return value


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack ``count`` numbers of ``bits`` bits, least significant bit first, from bytes."""
    stream = (packed.long()[:, None] >> torch.arange(8)) & 1
    fields = stream.reshape(-1)[: bits * count].reshape(count, bits)
    return (fields << torch.arange(bits)).sum(dim=1)


def _lut_to_dense(call: Call) -> Tensor:
    lut = call.raw("lut")
    if lut.ndim != 1:
        raise call.unsupported("a grouped or vector table", expected="one table of scalars")
    shape = call.integers("shape")
    indices = _unpack(call.raw("indices"), int(math.log2(len(lut))), math.prod(shape))
    return lut[indices].reshape(shape)


def _sparse_to_dense(call: Call) -> Tensor:
    values, shape = call.raw("nonzero_data"), call.integers("shape")
    dense = torch.zeros(math.prod(shape), dtype=values.dtype)
    dense[_unpack(call.raw("mask"), 1, len(dense)).bool()] = values
    return dense.reshape(shape)


QUANTIZATION: Mapping[str, Callable[[Call], Result]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": lambda call: _dequantize(call, "quantized_data"),
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_cast": lambda call: call.tensor("source_val"),
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
"""Integers and compressed weights."""
