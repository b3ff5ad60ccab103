"""Resizes that some target lacks, as two products with constants: the same numbers at a fixed size.

Bicubic and ``nearest-exact`` resizes are refused by coremltools, and antialiased ones lose their filter in it. ONNX
Runtime does not load INT8 graphs with a bicubic resize, TensorRT has no antialiasing, and that of OpenVINO was off by
1.6% of the range. Every row of a resized side is a weighted sum of the rows before, so the resize is a product with a
matrix of weights on each side (``models.layers.upsample_bilinear`` does so by itself). coremltools lacks the resizes
of volumes: height and width are resized as those of pictures, and the depth after them.

Source: Keys 1981 (cubic convolution; a = -0.75, antialiased -0.5, as PyTorch).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(functional.interpolate)


class ConstantResizes(TorchFunctionMode):
    """Inside the block ``interpolate`` of pictures (N, C, H, W) is two products where some target has no resize.

    That of volumes (N, C, D, H, W) is two of pictures.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.interpolate:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            x, mode, smooth = (given.arguments[name] for name in ("input", "mode", "antialias"))
            if x.ndim == 4 and (mode in ("bicubic", "nearest-exact") or smooth):
                return _resized(**given.arguments)
            if x.ndim == 5:
                return in_planes(x, lambda planes, part: self._plane(types, planes, part, given.arguments))
        return func(*args, **(kwargs or {}))

    def _plane(self, types: Any, x: Tensor, part: slice, given: Mapping[str, Any]) -> Any:
        """Resize (N, C, H, W) by what ``given`` says of the axes ``part``; an axis beside the depth stays."""
        settings = {**given, "input": x}
        for name in ("size", "scale_factor"):
            value = given[name]
            if value is not None:
                sides = list(value if isinstance(value, (tuple, list)) else (value,) * 3)[part]
                settings[name] = sides if len(sides) > 1 else [*sides, x.shape[-1] if name == "size" else 1.0]
        if settings["mode"] == "trilinear":
            settings["mode"] = "bilinear"
        return self.__torch_function__(functional.interpolate, types, (), settings)


def in_planes(x: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Do to a volume what is done along each axis by itself, in two steps of pictures: height and width, then depth.

    Args:
        x: (N, C, D, H, W).
        function: Called with (N, C * D, H, W), then with (N, C, D, H' * W'), and which of the three axes it is for.
    """
    count, channels, depth = x.shape[:3]
    flat = function(x.reshape(count, channels * depth, *x.shape[3:]), slice(1, 3))
    sides = flat.shape[2:]
    deep = function(flat.reshape(count, channels, depth, sides[0] * sides[1]), slice(0, 1))
    return deep.reshape(count, channels, deep.shape[2], *sides)


def _resized(
    input: Tensor,
    size: Any,
    scale_factor: Any,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> Tensor:
    """Do what ``interpolate`` does: (N, C, H, W) -> (N, C, H', W')."""
    sides = []
    for axis in (0, 1):
        length = int(input.shape[2 + axis])
        scale = _of(scale_factor, axis)
        wanted = int(length * float(scale)) if scale is not None else int(_of(size, axis))
        step = length / wanted if scale is None or recompute_scale_factor else 1 / float(scale)
        if align_corners:
            step = (length - 1) / (wanted - 1) if wanted > 1 else 0.0
        weights = resize_weights(length, wanted, step, mode=mode, align_corners=bool(align_corners), smooth=antialias)
        sides.append(torch.from_numpy(weights.astype(np.float32)).to(input.device))
    return torch.matmul(torch.matmul(sides[0], input), sides[1].transpose(0, 1))


def _of(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, (tuple, list)) else value


def resize_weights(
    length: int, wanted: int, step: float, *, mode: str, align_corners: bool = False, smooth: bool = False
) -> NDArray[np.float64]:
    """Return the weights (wanted, length) of a resize along one side.

    Args:
        length: Pixels before.
        wanted: Pixels after.
        step: Pixels before for each pixel after.
        mode: ``bicubic``, ``nearest-exact``, or with ``smooth`` also ``bilinear``.
        align_corners: The centres of the first and last pixels stay where they are.
        smooth: Antialiased: the kernel is as wide as the step.
    """
    places, columns = np.arange(wanted)[:, None], np.arange(length)[None]
    if smooth:
        kernel = _cubic if mode == "bicubic" else _triangle
        weights = kernel((columns + 0.5 - (places + 0.5) * step) / max(step, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    if mode == "nearest-exact":
        single = (places.astype(np.float32) + np.float32(0.5)) * np.float32(step)  # rounded as PyTorch rounds
        nearest = np.floor(single).clip(0, length - 1)
        return (nearest == columns).astype(np.float64)
    centre = places * step if align_corners else (places + 0.5) * step - 0.5
    first = np.floor(centre)
    weights = np.zeros((wanted, length))
    for tap in (-1, 0, 1, 2):
        held = (first + tap).clip(0, length - 1)  # beyond the border the last pixel goes on
        weights += _cubic(first + tap - centre, -0.75) * (held == columns)
    return weights


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _triangle(distance: NDArray[np.float64], _: float) -> NDArray[np.float64]:
    return (1 - np.abs(distance)).clip(0)
