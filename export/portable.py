"""Operations that some target lacks, written in ones that all of them have, while a network is traced.

Resizes are in ``export.resizes``.
The rewrites compute the same numbers. They hold for a fixed size; where H and W are open, the operation stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from export.attention import ATTENTION
from export.fourier import TRANSFORMS, filled
from export.picked import computed, is_picked
from export.portable_algebra import ALGEBRA
from export.portable_arithmetic import ARITHMETIC
from export.portable_shapes import SHAPES, cut, is_open, pair, windows
from export.sampling import grid_sample
from export.unpooling import pool, unpool

_CLAMPS = frozenset(("clamp", "clip", "clamp_", "clip_"))


class Portable(TorchFunctionMode):
    """Replaces what ``REWRITES`` and ``BY_NAME`` list; everything else runs as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _CLAMPS:
            return func(*_float_bounds(args, args), **_float_bounds(args, given))
        rewrite = REWRITES.get(func) or BY_NAME.get(name)
        if func in TRANSFORMS and not is_open(*args[0].shape):
            rewrite = TRANSFORMS[func]
        if is_picked((*args, *given.values())) and rewrite is not SHAPES["__setitem__"]:
            return computed(func, lambda *args, **given: self.__torch_function__(func, types, args, given), args, given)
        answer = NotImplemented if rewrite is None else rewrite(*args, **given)
        return func(*args, **given) if answer is NotImplemented else answer


class StableSorts(TorchFunctionMode):
    """Inside the block equal values stay in their order; without ``stable`` it is any, and another on each processor.

    ONNX Runtime and OpenVINO keep it too. Networks that sort pixels by a few categories depend on it (ATD).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") not in ("sort", "argsort") or given.get("stable") or len(args) > 3:
            return func(*args, **given)
        return func(args[0], **{**dict(zip(("dim", "descending"), args[1:], strict=False)), **given, "stable": True})


def _float_bounds(args: Sequence[Any], bounds: Any) -> Any:
    """Make the bounds of a clamp of floats floats: the exporter of torch 2.13 fails on ``x.clamp(1e-4, 1)``."""
    if not (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
        return bounds
    if isinstance(bounds, Mapping):
        return {name: float(value) if type(value) is int else value for name, value in bounds.items()}
    return [float(value) if type(value) is int else value for value in bounds]


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Circular padding: slices of the other side, one dimension after the other. Less than none: a slice."""
    if is_open(*pad):
        return NotImplemented
    if min(pad) < 0 and mode != "circular":
        for place in range(len(pad) // 2):
            axis = x.ndim - 1 - place
            first, last = max(-pad[2 * place], 0), max(-pad[2 * place + 1], 0)
            x = cut(x, axis, slice(first, -last if last else None)) if first or last else x
        rest = [max(count, 0) for count in pad]
        return functional.pad(x, rest, mode, value) if any(rest) else x
    if mode != "circular" or min(pad) < 0:
        return NotImplemented
    for place in range(len(pad) // 2):
        axis, before, after = x.ndim - 1 - place, pad[2 * place], pad[2 * place + 1]
        parts = [cut(x, axis, slice(-before, None))] if before else []
        parts += [x, cut(x, axis, slice(0, after))] if after else [x]
        x = torch.cat(parts, dim=axis) if len(parts) > 1 else x
    return x


def _fold(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Fold, the sum of overlapping patches: a transposed convolution that puts each channel in its place."""
    size, kernel, dilations, pads, strides = map(pair, (output_size, kernel_size, dilation, padding, stride))
    if x.ndim != 3 or is_open(*size):
        return NotImplemented
    cells = kernel[0] * kernel[1]
    spans = [size[axis] + 2 * pads[axis] - dilations[axis] * (kernel[axis] - 1) - 1 for axis in (0, 1)]
    counts = [span // strides[axis] + 1 for axis, span in enumerate(spans)]
    channels = int(x.shape[1]) // cells
    patches = x.reshape(x.shape[0], channels * cells, *counts)
    one_hot = np.eye(cells, dtype=np.float32).reshape(cells, 1, *kernel)
    weight = torch.from_numpy(np.tile(one_hot, (channels, 1, 1, 1))).to(x.dtype)
    left = [span % strides[axis] for axis, span in enumerate(spans)]
    return functional.conv_transpose2d(patches, weight, None, strides, pads, left, channels, dilations)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Instance norm with running statistics: a batch norm; coremltools computes the statistics of the input."""
    if use_input_stats or running_mean is None:
        return NotImplemented
    return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def _sort(function: Callable[..., Any]) -> Callable[..., Any]:
    """Sort without asking for a stable order, which no target promises."""

    def run(x: Tensor, *args: Any, stable: bool | None = None, **kwargs: Any) -> Any:
        return NotImplemented if stable is None else function(x, *args, **kwargs)

    return run


def _scatter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Scatter a number in the type of the tensor: coremltools wants the same type, and makes whole numbers of 1."""

    def run(x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else kwargs.get("value")
        if type(value) is not int or not x.is_floating_point() or len(args) > 1:
            return NotImplemented
        return function(x, dim, index, float(value))

    return run


REWRITES: Mapping[Any, Callable[..., Any]] = {
    functional.pad: _pad,
    functional.fold: _fold,
    functional.grid_sample: grid_sample,
    functional.instance_norm: _instance_norm,
    Tensor.unfold: windows,
    torch.zeros: filled(torch.zeros),
    torch.ones: filled(torch.ones),
    Tensor.data.__get__: lambda x: x.detach(),  # type: ignore[attr-defined]  # PyTorch's exporter crashes on it
    Tensor.mT.__get__: lambda x: x.transpose(-1, -2),  # type: ignore[attr-defined]
}
"""By function of PyTorch. A rewrite returns NotImplemented for what needs none."""


def _in_place(rewrite: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        new = rewrite(x, *args, **kwargs)
        return new if new is NotImplemented else x.copy_(new)

    return run


_NEW: Mapping[str, Callable[..., Any]] = {**ALGEBRA, **ARITHMETIC, **ATTENTION, **SHAPES}

BY_NAME: Mapping[str, Callable[..., Any]] = {
    **{f"{name}_": _in_place(rewrite) for name, rewrite in _NEW.items() if hasattr(Tensor, f"{name}_")},
    **_NEW,
    "argsort": _sort(torch.argsort),
    "max_pool2d_with_indices": pool,
    "max_unpool2d": unpool,
    "scatter": _scatter(torch.scatter),
    "scatter_": _scatter(Tensor.scatter_),
    "sort": _sort(torch.sort),
}
"""By name, for what is a function and a method of tensors too."""
