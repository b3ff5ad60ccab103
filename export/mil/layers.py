"""MIL operations with weights, windows or statistics: convolution, pooling, normalization, products, attention.

Source: MIL reference, ``iOS15/conv.py``, ``pool.py``, ``normalization.py``, ``linear.py``, ``reduction.py``,
``iOS18/transformers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from export.mil.call import Call, Result

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

_Pads = list[tuple[int, int]]


def _pads(call: Call, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int]) -> _Pads:
    """Elements before and after each spatial dimension; ``extents``: window sizes with dilation."""
    kind = call.text("pad_type", "valid").lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        flat = call.integers("pad", [0] * 2 * len(sizes))
        return list(zip(flat[::2], flat[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise call.unsupported(f"pad_type {kind!r}", expected="valid, custom, same or same_lower")
    pads = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return pads


def _flat(pads: _Pads) -> list[int]:
    """The order of ``F.pad``: last dimension first."""
    return [value for pair in reversed(pads) for value in pair]


def _symmetric(pads: _Pads) -> bool:
    return all(before == after for before, after in pads)


def _conv(call: Call) -> Tensor:
    x, weight, bias = call.tensor("x"), call.tensor("weight"), call.maybe("bias")
    rank = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(call, x.shape[2:], extents, strides)
    if not _symmetric(pads):
        x, pads = F.pad(x, _flat(pads)), [(0, 0)] * rank
    padding = [before for before, _ in pads]
    result: Tensor = _CONV[rank](x, weight, bias, strides, padding, dilations, call.integer("groups", 1))
    return result


def _conv_transpose(call: Call) -> Tensor:
    x, weight, bias = call.tensor("x"), call.tensor("weight"), call.maybe("bias")
    rank = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    groups, kind = call.integer("groups", 1), call.text("pad_type", "valid").lower()
    full: Tensor = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
    wanted = call.integers("output_shape")[2:] or None
    crops = []
    pad = call.integers("pad", [0] * 2 * rank) if kind == "custom" else [0] * 2 * rank
    for index, size in enumerate(full.shape[2:]):
        if kind == "same":
            target = wanted[index] if wanted else x.shape[2 + index] * strides[index]
            before = max(size - target, 0) // 2
        else:
            before = pad[2 * index]
            target = wanted[index] if wanted else size - before - pad[2 * index + 1]
        crops.append((-before, target - (size - before)))
    if any(pair != (0, 0) for pair in crops):
        full = F.pad(full, _flat(crops))
    return full if bias is None else full + bias.reshape(1, -1, *[1] * rank)


def _window(call: Call, x: Tensor) -> tuple[list[int], list[int], _Pads, bool]:
    rank = x.ndim - 2
    kernel, strides = call.integers("kernel_sizes"), call.integers("strides", [1] * rank)
    return kernel, strides, _pads(call, x.shape[2:], kernel, strides), call.flag("ceil_mode")


def _fits_torch(kernel: list[int], pads: _Pads) -> bool:
    return _symmetric(pads) and all(2 * before <= k for k, (before, _) in zip(kernel, pads, strict=True))


def _average(x: Tensor, kernel: list[int], strides: list[int], pads: _Pads, ceil: bool, exclude: bool) -> Tensor:
    pool = _AVERAGE[x.ndim - 2]
    if _fits_torch(kernel, pads):
        result: Tensor = pool(x, kernel, strides, [before for before, _ in pads], ceil, not exclude)
        return result
    mean: Tensor = pool(F.pad(x, _flat(pads)), kernel, strides, 0, ceil)
    if exclude:
        mean = mean / pool(F.pad(torch.ones_like(x[:1, :1]), _flat(pads)), kernel, strides, 0, ceil)
    return mean


def _avg_pool(call: Call) -> Tensor:
    x = call.tensor("x")
    return _average(x, *_window(call, x), call.flag("exclude_padding_from_average"))


def _l2_pool(call: Call) -> Tensor:
    x = call.tensor("x")
    kernel, strides, pads, ceil = _window(call, x)
    return (_average(x.square(), kernel, strides, pads, ceil, False) * math.prod(kernel)).sqrt()


def _max_pool(call: Call) -> Tensor:
    x = call.tensor("x")
    kernel, strides, pads, ceil = _window(call, x)
    if not _fits_torch(kernel, pads):
        x, pads = F.pad(x, _flat(pads), value=-math.inf), [(0, 0)] * len(kernel)
    result: Tensor = _MAXIMUM[x.ndim - 2](x, kernel, strides, [before for before, _ in pads], ceil_mode=ceil)
    return result


def _per_channel(value: Tensor | None, rank: int) -> Tensor | None:
    return None if value is None else value.reshape(1, -1, *[1] * (rank - 2))


def _scale_shift(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    x = x if gamma is None else x * gamma
    return x if beta is None else x + beta


def _batch_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    mean, variance = call.tensor("mean"), call.tensor("variance")
    return F.batch_norm(
        x, mean, variance, call.maybe("gamma"), call.maybe("beta"), False, 0.0, call.number("epsilon", 1e-5)
    )


def _normalize(x: Tensor, dims: Sequence[int], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=list(dims), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _instance_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    normal = _normalize(x, range(2, x.ndim), call.number("epsilon", 1e-5))
    return _scale_shift(normal, _per_channel(call.maybe("gamma"), x.ndim), _per_channel(call.maybe("beta"), x.ndim))


def _layer_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = sorted(axis % x.ndim for axis in call.integers("axes", range(x.ndim)))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    gamma, beta = call.maybe("gamma"), call.maybe("beta")
    normal = _normalize(x, axes, call.number("epsilon", 1e-5))
    shaped = [None if value is None else value.reshape(shape) for value in (gamma, beta)]
    return _scale_shift(normal, shaped[0], shaped[1])


def _l2_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    return x * torch.rsqrt(x.square().sum(dim=(-3, -2, -1), keepdim=True) + call.number("epsilon", 1e-6))


def _local_response_norm(call: Call) -> Tensor:
    alpha, beta, k = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("k", 1.0)
    return F.local_response_norm(call.tensor("x"), call.integer("size"), alpha, beta, k)


def _linear(call: Call) -> Tensor:
    return F.linear(call.tensor("x"), call.tensor("weight"), call.maybe("bias"))


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    x = x.transpose(-1, -2) if call.flag("transpose_x") and x.ndim > 1 else x
    y = y.transpose(-1, -2) if call.flag("transpose_y") and y.ndim > 1 else y
    return torch.matmul(x, y)


def _einsum(call: Call) -> Tensor:
    x, y = call.tensors("values")
    result: Tensor = torch.einsum(call.text("equation"), x, y)
    return result


def _attention(call: Call) -> Tensor:
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if call.has("attn_mask"):
        mask = call.tensor("attn_mask")
        score = score.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else score + mask
    return torch.softmax(score, dim=-1) @ value


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Call], Tensor]:
    def run(call: Call) -> Tensor:
        x = call.tensor("x")
        axes = call.integers("axes", range(x.ndim))
        return function(x, axes, call.flag("keep_dims"))

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.float().mean(axes, keep)


def _arg(function: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), dim=call.integer("axis", -1), keepdim=call.flag("keep_dims"))


LAYERS: Mapping[str, Callable[[Call], Result]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "avg_pool": _avg_pool,
    "l2_pool": _l2_pool,
    "max_pool": _max_pool,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "l2_norm": _l2_norm,
    "local_response_norm": _local_response_norm,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "reduce_l1_norm": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_log_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "reduce_log_sum_exp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_mean": _reduce(_mean),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _reduce(_product),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
}
"""Weights, windows and statistics."""
