"""MIL operations that move, join, cut or make elements without computing on them.

Source: MIL reference, ``iOS15/tensor_transformation.py``, ``tensor_operation.py`` and their later versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export.mil.call import Call, Result


def _reshape(call: Call) -> Tensor:
    x, shape = call.raw("x"), call.integers("shape")
    if 0 in shape and len(shape) == x.ndim:
        shape = [size or old for size, old in zip(shape, x.shape, strict=True)]
    return x.reshape(shape)


def _reshape_like(call: Call) -> Tensor:
    shape: list[int] = []
    begins, ends = call.tensors("begins"), call.tensors("ends")
    for index, reference in enumerate(call.tensors("ref_tensors")):
        end = None if bool(call.tensors("end_masks")[index]) else int(ends[index])
        shape += reference.shape[int(begins[index]) : end]
    return call.raw("x").reshape(shape)


def _expand_dims(call: Call) -> Tensor:
    x, axes = call.raw("x"), call.integers("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    x = call.raw("x")
    axes = call.integers("axes", range(x.ndim))
    return x.squeeze(tuple(axes))


def _transpose(call: Call) -> Tensor:
    return call.raw("x").permute(call.integers("perm"))


def _flatten2d(call: Call) -> Tensor:
    x = call.raw("x")
    axis = call.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _reverse(call: Call) -> Tensor:
    x = call.raw("x")
    return x.flip(call.integers("axes", range(x.ndim)))


def _slice(x: Tensor, axis: int, part: slice) -> Tensor:
    picked = range(*part.indices(x.shape[axis]))
    if picked.step > 0:
        index = [slice(None)] * axis + [slice(picked.start, max(picked.stop, picked.start), picked.step)]
        return x[tuple(index)]
    return x.index_select(axis, torch.tensor(list(picked), dtype=torch.long))


def _slice_by_index(call: Call) -> Tensor:
    x = call.raw("x")
    begin, end, stride = call.integers("begin"), call.integers("end"), call.integers("stride", [1] * x.ndim)
    from_start, to_end = call.flags("begin_mask", x.ndim), call.flags("end_mask", x.ndim)
    squeeze = call.flags("squeeze_mask", x.ndim)
    for axis in range(x.ndim):
        if squeeze[axis]:
            index = begin[axis] % x.shape[axis]
            x = _slice(x, axis, slice(index, index + 1))
            continue
        start, stop = None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis]
        x = _slice(x, axis, slice(start, stop, stride[axis]))
    return x.squeeze(tuple(axis for axis, gone in enumerate(squeeze) if gone)) if any(squeeze) else x


def _slice_by_size(call: Call) -> Tensor:
    x = call.raw("x")
    for axis, (begin, size) in enumerate(zip(call.integers("begin"), call.integers("size"), strict=True)):
        start = begin % x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


def _slice_update(call: Call) -> Tensor:
    x, update = call.raw("x").clone(), call.raw("update")
    begin, end, stride = call.integers("begin"), call.integers("end"), call.integers("stride", [1] * x.ndim)
    from_start, to_end = call.flags("begin_mask", x.ndim), call.flags("end_mask", x.ndim)
    squeeze = call.flags("squeeze_mask", x.ndim)
    index: list[slice | int] = []
    for axis in range(x.ndim):
        start, stop = None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis]
        index.append(begin[axis] if squeeze[axis] else slice(start, stop, stride[axis]))
    x[tuple(index)] = update.to(x.dtype)
    return x


def _concat(call: Call) -> Tensor:
    values, axis = [torch.atleast_1d(value) for value in call.tensors("values")], call.integer("axis")
    if call.flag("interleave"):
        axis = axis % values[0].ndim
        return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, dim=axis)


def _stack(call: Call) -> Tensor:
    return torch.stack(call.tensors("values"), dim=call.integer("axis"))


def _split(call: Call) -> list[Tensor]:
    x, axis = call.raw("x"), call.integer("axis")
    sizes = call.integers("split_sizes")
    if not sizes:
        count = call.integer("num_splits")
        sizes = [x.shape[axis] // count] * count
    return list(x.split(sizes, dim=axis))


def _tile(call: Call) -> Tensor:
    return call.raw("x").repeat(call.integers("reps"))


def _fill(call: Call) -> Tensor:
    value = call.raw("value") if call.has("value") else torch.tensor(0.0)
    return value.reshape(()).expand(call.integers("shape")).clone()


def _fill_like(call: Call) -> Tensor:
    value = call.raw("value") if call.has("value") else torch.tensor(0.0)
    return value.reshape(()).expand(call.raw("ref_tensor").shape).clone()


def _range_1d(call: Call) -> Tensor:
    start, end, step = (call.tensor(name) for name in ("start", "end", "step"))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _pad(call: Call) -> Tensor:
    x, mode = call.tensor("x"), call.text("mode", "constant")
    flat = call.integers("pad")
    pads = list(zip(flat[::2], flat[1::2], strict=True))
    if mode == "constant":
        order = [value for pair in reversed(pads) for value in pair]
        return F.pad(x, order, value=call.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise call.unsupported(f"mode {mode!r}", expected="constant, reflect or replicate")
    for axis, (before, after) in enumerate(pads, start=x.ndim - len(pads)):
        if before or after:
            x = x.index_select(axis, _border_index(x.shape[axis], before, after, mode))
    return x


def _border_index(size: int, before: int, after: int, mode: str) -> Tensor:
    index = torch.arange(-before, size + after)
    if mode == "reflect":
        index = index.abs()
        index = torch.where(index >= size, 2 * (size - 1) - index, index)
    return index.clamp(0, size - 1)


def _band_part(call: Call) -> Tensor:
    x, lower, upper = call.raw("x"), call.integer("lower", -1), call.integer("upper", -1)
    down = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None, :]
    keep = ((down <= lower) | (lower < 0)) & ((-down <= upper) | (upper < 0))
    return torch.where(keep, x, torch.zeros_like(x))


def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    x = x.flip(axis) if call.flag("reverse") else x
    total = x.cumsum(axis)
    total = total - x if call.flag("exclusive") else total
    return total.flip(axis) if call.flag("reverse") else total


def _one_hot(call: Call) -> Tensor:
    indices, size, axis = call.raw("indices").long(), call.integer("one_hot_vector_size"), call.integer("axis", -1)
    on = call.tensor("on_value") if call.has("on_value") else torch.tensor(1)
    off = call.tensor("off_value") if call.has("off_value") else torch.tensor(0)
    hot = torch.where(indices[..., None] == torch.arange(size), on, off)
    return hot.movedim(-1, axis)


def _argsort(call: Call) -> Tensor:
    return torch.argsort(
        call.tensor("x"), dim=call.integer("axis", -1), descending=not call.flag("ascending"), stable=True
    )


def _topk(call: Call) -> tuple[Tensor, Tensor]:
    x, axis = call.tensor("x"), call.integer("axis", -1)
    order = torch.argsort(x, dim=axis, descending=not call.flag("ascending"), stable=True)
    order = order.narrow(axis, 0, call.integer("k", 1))
    return x.gather(axis, order), order


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.raw("x"), call.integer("block_size")
    n, c, h, w = x.shape
    depth = x.reshape(n, block, block, c // block**2, h, w)
    return depth.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.raw("x"), call.integer("block_size")
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // block, block, w // block, block)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def _space_to_batch(call: Call) -> Tensor:
    x, (rows, columns) = call.raw("x"), call.integers("block_shape")
    top, bottom, left, right = call.integers("paddings")
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // rows, rows, w // columns, columns).permute(3, 5, 0, 1, 2, 4)
    return cells.reshape(n * rows * columns, c, h // rows, w // columns)


def _batch_to_space(call: Call) -> Tensor:
    x, (rows, columns) = call.raw("x"), call.integers("block_shape")
    top, bottom, left, right = call.integers("crops")
    n, c, h, w = x.shape
    cells = x.reshape(rows, columns, n // (rows * columns), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = cells.reshape(n // (rows * columns), c, h * rows, w * columns)
    return whole[:, :, top : h * rows - bottom, left : w * columns - right]


def _sliding_windows(call: Call) -> Tensor:
    x, axis = call.raw("x"), call.integer("axis")
    axis = axis % x.ndim
    return x.unfold(axis, call.integer("size"), call.integer("stride", 1)).movedim(-1, axis + 1)


SHAPES: Mapping[str, Callable[[Call], Result]] = {
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "flatten2d": _flatten2d,
    "reverse": _reverse,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "tile": _tile,
    "fill": _fill,
    "fill_like": _fill_like,
    "range_1d": _range_1d,
    "pad": _pad,
    "band_part": _band_part,
    "cumsum": _cumsum,
    "one_hot": _one_hot,
    "argsort": _argsort,
    "topk": _topk,
    "shape": lambda call: torch.tensor(call.raw("x").shape, dtype=torch.int32),
    "non_zero": lambda call: call.raw("x").nonzero(),
    "pixel_shuffle": lambda call: F.pixel_shuffle(call.raw("x"), call.integer("upscale_factor")),
    "pixel_unshuffle": lambda call: F.pixel_unshuffle(call.raw("x"), call.integer("downscale_factor")),
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "space_to_batch": _space_to_batch,
    "batch_to_space": _batch_to_space,
    "sliding_windows": _sliding_windows,
}
"""Moving, joining, cutting and making."""
