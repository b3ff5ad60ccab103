"""MIL operations that read or write at computed positions: gather and scatter.

Source: MIL reference, ``iOS15/scatter_gather.py``, ``iOS17/scatter_gather.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.mil.call import Call, Result

_REDUCE = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


def _gather(call: Call) -> Tensor:
    x, indices = call.raw("x"), call.raw("indices").long()
    axis, batch = call.integer("axis", 0) % max(x.ndim, 1), call.integer("batch_dims", 0)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    lead, inner = x.shape[:batch], indices.shape[batch:]
    rows = x.reshape(-1, *x.shape[batch:])
    picks = indices.reshape(rows.shape[0], -1) if batch else indices.reshape(1, -1)
    parts = (
        [row.index_select(axis - batch, pick) for row, pick in zip(rows, picks, strict=True)]
        if batch
        else [x.index_select(axis, picks[0])]
    )
    picked = torch.stack(parts).reshape((*lead, *parts[0].shape)) if batch else parts[0]
    return picked.reshape((*picked.shape[:axis], *inner, *picked.shape[axis + 1 :]))


def _gather_along_axis(call: Call) -> Tensor:
    x, indices, axis = call.raw("x"), call.raw("indices").long(), call.integer("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(call: Call) -> Tensor:
    x, indices, batch = call.raw("x"), call.raw("indices").long(), call.integer("batch_dims", 0)
    if not batch:
        return x[indices.unbind(-1)]
    rows, picks = x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:])
    parts = torch.stack([row[pick.unbind(-1)] for row, pick in zip(rows, picks, strict=True)])
    return parts.reshape((*x.shape[:batch], *parts.shape[1:]))


def _write(data: Tensor, positions: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Write ``updates`` into ``data`` at flat ``positions`` (as many as updates), combined by ``mode``."""
    flat, positions, updates = data.reshape(-1).clone(), positions.reshape(-1), updates.reshape(-1).to(data.dtype)
    if mode == "update":
        flat[positions] = updates
    elif mode in ("add", "sub"):
        flat.index_add_(0, positions, updates if mode == "add" else -updates)
    else:
        updates = updates.reciprocal() if mode == "div" else updates
        flat.scatter_reduce_(0, positions, updates, _REDUCE[mode])
    return flat.reshape(data.shape)


def _flat_positions(data: Tensor, index: list[Tensor]) -> Tensor:
    """Flat positions of a list of broadcastable index tensors, one for each dimension of ``data``."""
    position = torch.zeros((), dtype=torch.long)
    for axis, (values, size) in enumerate(zip(index, data.shape, strict=True)):
        wrapped = torch.where(values < 0, values + size, values)
        position = position + wrapped * math.prod(data.shape[axis + 1 :])
    return position


def _grid(shape: tuple[int, ...]) -> list[Tensor]:
    axes = [torch.arange(size) for size in shape]
    return [values.reshape([-1 if i == axis else 1 for i in range(len(shape))]) for axis, values in enumerate(axes)]


def _scatter(call: Call) -> Tensor:
    data, indices, updates = call.tensor("data"), call.raw("indices").long(), call.tensor("updates")
    axis = call.integer("axis", 0) % data.ndim
    index = _grid((*data.shape[:axis], len(indices), *data.shape[axis + 1 :]))
    index[axis] = indices.reshape(index[axis].shape)
    positions = _flat_positions(data, index).expand(updates.shape)
    return _write(data, positions, updates, call.text("mode", "update"))


def _scatter_along_axis(call: Call) -> Tensor:
    data, indices, updates = call.tensor("data"), call.raw("indices").long(), call.tensor("updates")
    index = _grid(tuple(indices.shape))
    index[call.integer("axis", 0) % data.ndim] = indices
    return _write(data, _flat_positions(data, index), updates, call.text("mode", "add"))


def _scatter_nd(call: Call) -> Tensor:
    data, indices, updates = call.tensor("data"), call.raw("indices").long(), call.tensor("updates")
    depth = indices.shape[-1]
    rest = _grid(tuple(data.shape[depth:]))
    given = [values.reshape((*values.shape, *[1] * len(rest))) for values in indices.unbind(-1)]
    positions = _flat_positions(data, given + rest).expand(updates.shape)
    return _write(data, positions, updates, call.text("mode", "add"))


INDEXING: Mapping[str, Callable[[Call], Result]] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}
"""Reading and writing at computed positions."""
