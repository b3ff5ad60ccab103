"""MIL operations that sample an image at other positions: resizing, cropping, resampling.

A resize is computed from the positions that the MIL reference lists for each sampling mode, not by a resize of torch.

Source: MIL reference, ``iOS15/image_resizing.py``, ``iOS16/image_resizing.py``, ``iOS17/image_resizing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from export.mil.call import Call, Result


def sample_positions(size: int, target: int, mode: str) -> Tensor:
    """Return where along an axis of ``size`` pixels each of ``target`` output pixels samples, float64 (target,).

    Args:
        size: Input size, pixels.
        target: Output size, pixels.
        mode: A sampling mode of ``resize_bilinear``.
    """
    index = torch.arange(target, dtype=torch.float64)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and target > 1):
        position = index * ((size - 1) / max(target - 1, 1))
    elif mode == "ALIGN_CORNERS":
        position = torch.full_like(index, (size - 1) / 2)
    elif mode == "DEFAULT":
        position = index * ((size - size / target) / max(target - 1, 1))
    elif mode == "OFFSET_CORNERS":
        step = max(1, size - 1) / target
        position = 0.5 * step + index * step
    else:  # UNALIGN_CORNERS
        position = (index + 0.5) * (size / target) - 0.5
    return position.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, position: Tensor) -> Tensor:
    low = position.floor().long()
    high = (low + 1).clamp_max(x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (position - low).to(x.dtype).reshape(shape)
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def _resize_axes(x: Tensor, targets: Mapping[int, int], mode: str, *, nearest: bool = False) -> Tensor:
    """Resize the axes of ``targets`` to their sizes; nearest with DEFAULT takes the pixel to the left."""
    for axis, target in targets.items():
        size = x.shape[axis]
        if size == target:
            continue
        if nearest and mode == "DEFAULT":
            x = x.index_select(axis, torch.arange(target) * size // target)
        elif nearest:
            x = x.index_select(axis, (sample_positions(size, target, mode) + 0.5).floor().long().clamp_max(size - 1))
        else:
            x = _linear(x, axis, sample_positions(size, target, mode))
    return x


def _scaled(call: Call, x: Tensor) -> dict[int, int]:
    height, width = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    return {x.ndim - 2: int(x.shape[-2] * height), x.ndim - 1: int(x.shape[-1] * width)}


def _targets(call: Call, x: Tensor) -> dict[int, int]:
    height, width = call.integer("target_size_height", 1), call.integer("target_size_width", 1)
    return {x.ndim - 2: height, x.ndim - 1: width}


def _upsample_bilinear(call: Call) -> Tensor:
    x, align = call.tensor("x"), call.flag("align_corners", True)
    half = call.flag("half_pixel_centers", not align)
    mode = "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _resize_axes(x, _scaled(call, x), mode)


def _resize_bilinear(call: Call) -> Tensor:
    x = call.tensor("x")
    return _resize_axes(x, _targets(call, x), call.text("sampling_mode", "DEFAULT"))


def _upsample_nearest(call: Call) -> Tensor:
    x = call.raw("x")
    return _resize_axes(x, _scaled(call, x), "DEFAULT", nearest=True)


def _resize_nearest(call: Call) -> Tensor:
    x = call.raw("x")
    return _resize_axes(x, _targets(call, x), "DEFAULT", nearest=True)


def _resize(call: Call) -> Tensor:
    x, count = call.tensor("x"), call.integer("resized_dims")
    sizes = call.integers("shape")[-count:]
    axes = range(x.ndim - count, x.ndim)
    targets = {axis: size or x.shape[axis] for axis, size in zip(axes, sizes, strict=True)}
    nearest = call.text("interpolation_mode", "LINEAR") == "NEAREST_NEIGHBOR"
    return _resize_axes(x, targets, call.text("sampling_mode", "DEFAULT"), nearest=nearest)


def _crop(call: Call) -> Tensor:
    x = call.raw("x")
    (top, bottom), (left, right) = call.integers("crop_height"), call.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _pixels(grid: Tensor, sizes: tuple[int, int], coordinates: str, align: bool) -> Tensor:
    """Turn coordinates (..., 2) in x, y order into pixel positions."""
    limits = torch.tensor([sizes[1], sizes[0]], dtype=grid.dtype)
    if coordinates == "unnormalized":
        return grid
    unit = (grid + 1) / 2 if coordinates == "normalized_minus_one_to_one" else grid
    return unit * (limits - 1) if align else unit * limits - 0.5


def _sample(x: Tensor, pixels: Tensor, mode: str, padding: str, fill: float) -> Tensor:
    """Sample x (B, C, H, W) at pixel positions (B, h, w, 2) in x, y order."""
    align = padding != "symmetric"  # torch reflects about pixel centres when aligned, about pixel edges when not
    limits = torch.tensor([x.shape[-1], x.shape[-2]], dtype=pixels.dtype)
    grid = 2 * pixels / (limits - 1).clamp_min(1) - 1 if align else (2 * pixels + 1) / limits - 1
    outside = {"constant": "zeros", "border": "border"}.get(padding, "reflection")
    return F.grid_sample(x - fill, grid, mode, outside, align_corners=align) + fill


def _resample(call: Call) -> Tensor:
    x, grid = call.tensor("x"), call.tensor("coordinates").float()
    coordinates, align = call.text("coordinates_mode"), call.flag("align_corners")
    pixels = _pixels(grid, (x.shape[-2], x.shape[-1]), coordinates, align)
    padding = call.text("padding_mode")
    fill = call.number("padding_value", 0.0) if padding == "constant" else 0.0
    return _sample(x, pixels, call.text("sampling_mode"), padding, fill)


def _affine(call: Call) -> Tensor:
    x, matrix = call.tensor("x"), call.tensor("transform_matrix").reshape(-1, 2, 3)
    height, width = call.integer("output_height"), call.integer("output_width")
    grid = F.affine_grid(matrix.expand(x.shape[0], 2, 3), [x.shape[0], 1, height, width], align_corners=True)
    pixels = _pixels(grid, (x.shape[-2], x.shape[-1]), "normalized_minus_one_to_one", True)
    return _sample(x, pixels, "bilinear", "constant", 0.0)


RESIZE: Mapping[str, Callable[[Call], Result]] = {
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": _resize_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
    "resize_nearest_neighbor": _resize_nearest,
    "resize": _resize,
    "crop": _crop,
    "resample": _resample,
    "affine": _affine,
}
"""Sampling at other positions."""
