"""What moves values and some target lacks, in operations that all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.picked import Picked, pick
from export.resizes import in_planes


def is_open(*sides: Any) -> bool:
    """Return whether one of the sides is left open while a network is traced."""
    return any(isinstance(side, (torch.SymInt, torch.fx.Proxy)) for side in sides)


def pair(value: Any) -> list[Any]:
    """Return height and width of a setting that may be one number for both."""
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def cut(x: Tensor, axis: int, part: slice) -> Tensor:
    """Slice along ``axis``; coremltools takes ``narrow`` from a negative start for nothing."""
    return x[(slice(None),) * (axis % x.ndim) + (part,)]


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    """Numbers one after the other: coremltools makes one tensor of a list of them before it stacks."""
    return torch.cat([x.reshape(1) for x in tensors]) if tensors[0].ndim == 0 else NotImplemented


def _blocks(*tensors: Tensor) -> Tensor:
    """Matrices along a diagonal."""
    widths = [int(x.shape[1]) for x in tensors]
    ends = [sum(widths[: place + 1]) for place in range(len(widths))]
    rows = [functional.pad(x, (end - w, ends[-1] - end)) for x, w, end in zip(tensors, widths, ends, strict=True)]
    return torch.cat(rows)


def _move(x: Tensor, source: Any, destination: Any) -> Tensor:
    goes = dict(zip(*([place % x.ndim for place in _listed(value)] for value in (destination, source)), strict=True))
    rest = iter(axis for axis in range(x.ndim) if axis not in goes.values())
    return x.permute(*(goes[place] if place in goes else next(rest) for place in range(x.ndim)))


def windows(x: Tensor, dimension: int, size: int, step: int) -> Any:
    """Windows along one axis, which become the last one: one look-up, as coremltools has no such operator."""
    if is_open(*x.shape):
        return NotImplemented
    axis = dimension % x.ndim
    count = (int(x.shape[axis]) - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)
    return _move(x.index_select(axis, places.flatten()).unflatten(axis, (count, size)), axis + 1, -1)


def _channel_shuffle(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _turn(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Quarters of a turn from the first axis of ``dims`` to the second."""
    first, second = dims
    if k % 4 == 2:
        return x.flip([first, second])
    if k % 4 == 0:
        return x
    turned = x.transpose(first, second)
    return turned.flip([first if k % 4 == 1 else second])


def _parts(x: Tensor, sections: Any, dim: int = 0) -> Any:
    """Parts of ``tensor_split``: so many, nearly equal, or between indices."""
    if isinstance(sections, Tensor) or is_open(x.shape[dim]):
        return NotImplemented
    count = int(x.shape[dim])
    if isinstance(sections, int):
        small, more = divmod(count, sections)
        ends = [place * small + min(place, more) for place in range(1, sections)]
    else:
        ends = list(sections)
    edges = [0, *ends, count]
    return tuple(cut(x, dim, slice(*pair)) for pair in pairwise(edges))


def _tensor_split(x: Tensor, *args: Any, dim: int = 0, **kwargs: Any) -> Any:
    sections = args[0] if args else kwargs.get("indices_or_sections", kwargs.get("sections", kwargs.get("indices")))
    return _parts(x, sections, args[1] if len(args) > 1 else dim)


def _split_along(axis: Callable[[Tensor], int]) -> Callable[..., Any]:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _tensor_split(x, *args, dim=axis(x), **kwargs)

    return run


def _joined(axis: Callable[[Tensor], int], rank: int) -> Callable[..., Any]:
    """``hstack`` and its like, for tensors that have the axis already."""

    def run(tensors: Sequence[Tensor]) -> Any:
        if min(x.ndim for x in tensors) < rank:
            return NotImplemented
        return torch.cat(list(tensors), axis(tensors[0]))

    return run


def _take_along(x: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    if dim is None:
        return NotImplemented
    axis = dim % x.ndim
    shape = torch.broadcast_shapes(*([*t.shape[:axis], 1, *t.shape[axis + 1 :]] for t in (x, indices)))
    whole, looked = ([*shape[:axis], t.shape[axis], *shape[axis + 1 :]] for t in (x, indices))
    return x.expand(whole).gather(axis, indices.expand(looked))


def _chosen(x: Tensor, dim: int, index: Tensor) -> tuple[list[Tensor], list[int]] | None:
    """Return the parts of ``x`` along ``dim`` and the places that a constant index names; None where it is computed."""
    if is_open(x.shape[dim]) or type(index) is not Tensor or index.dim() > 1:
        return None
    try:
        places = [int(place) for place in index.reshape(-1).tolist()]
    except Exception:  # a traced index has no numbers; torch raises another error for each way of tracing
        return None
    return list(x.split(1, dim)), places


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
    found = _chosen(x, dim, index)
    if found is None:
        return NotImplemented
    for part, place in zip(source.split(1, dim), found[1], strict=True):
        found[0][place] = found[0][place] + part * alpha
    return torch.cat(found[0], dim)


def _index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    found = _chosen(x, dim, index)
    if found is None:
        return NotImplemented
    for part, place in zip(source.split(1, dim), found[1], strict=True):
        found[0][place] = part
    return torch.cat(found[0], dim)


def _index_fill(x: Tensor, dim: int, index: Tensor, value: Any) -> Any:
    found = _chosen(x, dim, index)
    if found is None or isinstance(value, Tensor):
        return NotImplemented
    for place in found[1]:
        found[0][place] = torch.full_like(found[0][place], value)
    return torch.cat(found[0], dim)


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Diagonal of matrices as a sum under a mask."""
    sides = (x.shape[dim1], x.shape[dim2])
    if offset or is_open(*sides) or sides[0] != sides[1]:
        return NotImplemented
    return (_move(x, (dim1, dim2), (-2, -1)) * torch.eye(int(sides[0]), dtype=x.dtype)).sum(-1)


def _diagonal_matrix(x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    if offset or (dim1, dim2) != (-2, -1) or is_open(x.shape[-1]):
        return NotImplemented
    return x.unsqueeze(-1) * torch.eye(int(x.shape[-1]), dtype=x.dtype)


def _bins(boundaries: Tensor, x: Any, right: bool, whole: bool) -> Any:
    """Count the boundaries below each value; those of more than one dimension belong to the rows of ``x``."""
    if not isinstance(x, Tensor):
        return NotImplemented
    boundaries = boundaries if boundaries.ndim == 1 else boundaries.unsqueeze(-2)
    steps = x.unsqueeze(-1) >= boundaries if right else x.unsqueeze(-1) > boundaries
    return steps.to(torch.int32 if whole else torch.int64).sum(-1)


def _bucketize(x: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
    return _bins(boundaries, x, right, out_int32)


def _search_sorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:
    if sorter is not None:
        return NotImplemented
    return _bins(sorted_sequence, input, right or side == "right", out_int32)


def _scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    """Values beyond the index are not read: ONNX wants as many of both."""
    if index.shape == src.shape:
        return NotImplemented
    for axis, side in enumerate(index.shape):
        src = src.narrow(axis, 0, int(side))
    return x.scatter_add(dim, index, src)


def masked(x: Tensor, index: Any, value: Any) -> Any:
    """Return ``x`` after ``x[mask] = value``: one for all places of a mask, or what was picked from the same ones."""
    if not isinstance(index, Tensor) or index.dtype != torch.bool or index.ndim > x.ndim:
        return NotImplemented
    if isinstance(value, Picked):
        if value.mask.shape != index.shape:
            return NotImplemented
        value = value.values.to(x.dtype)
    elif isinstance(value, Tensor):
        if value.numel() != 1:
            return NotImplemented
        value = value.reshape(()).to(x.dtype)
    elif x.is_floating_point():
        value = float(value)
    return torch.where(index.reshape(*index.shape, *(1,) * (x.ndim - index.ndim)), value, x)


def _assign(x: Tensor, index: Any, value: Any) -> Any:
    """Assign by a mask without counting its places, which TensorRT cannot."""
    new = masked(x, index, value)
    return NotImplemented if new is NotImplemented else x.copy_(new)


def _shift(half: Callable[[int], int]) -> Callable[..., Any]:
    def run(x: Tensor, dim: Any = None) -> Any:
        axes = list(range(x.ndim)) if dim is None else _listed(dim)
        if is_open(*(x.shape[axis] for axis in axes)):
            return NotImplemented
        return torch.roll(x, [half(int(x.shape[axis])) for axis in axes], axes)

    return run


def _pool_volume(pool: Callable[..., Tensor]) -> Callable[..., Any]:
    """Pool a volume to a fixed size in two steps of pictures."""

    def run(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        if x.ndim != 5 or return_indices:
            return NotImplemented
        sides = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * 3
        return in_planes(
            x, lambda planes, part: pool(planes, sides[part] if len(sides[part]) > 1 else (sides[0], None))
        )

    return run


SHAPES: Mapping[str, Callable[..., Any]] = {
    "__getitem__": pick,
    "__setitem__": _assign,
    "adaptive_avg_pool3d": _pool_volume(functional.adaptive_avg_pool2d),
    "adaptive_max_pool3d": _pool_volume(functional.adaptive_max_pool2d),
    "block_diag": _blocks,
    "broadcast_to": lambda x, *size: x.expand(*(size if len(size) > 1 else size[0])),
    "bucketize": _bucketize,
    "channel_shuffle": _channel_shuffle,
    "column_stack": _joined(lambda x: 1, 2),
    "diag_embed": _diagonal_matrix,
    "diagonal": _diagonal,
    "dsplit": _split_along(lambda x: 2),
    "dstack": _joined(lambda x: 2, 3),
    "fft_fftshift": _shift(lambda count: count // 2),
    "fft_ifftshift": _shift(lambda count: -(count // 2)),
    "fliplr": lambda x: x.flip(1),
    "flipud": lambda x: x.flip(0),
    "hsplit": _split_along(lambda x: min(1, x.ndim - 1)),
    "hstack": _joined(lambda x: min(1, x.ndim - 1), 1),
    "index_add": _index_add,
    "index_copy": _index_copy,
    "index_fill": _index_fill,
    "moveaxis": _move,
    "movedim": _move,
    "msort": lambda x: x.sort(0)[0],
    "ravel": lambda x: x.reshape(-1),
    "rot90": _turn,
    "row_stack": _joined(lambda x: 0, 2),
    "scatter_add": _scatter_add,
    "searchsorted": _search_sorted,
    "stack": _stack,
    "take_along_dim": _take_along,
    "tensor_split": _tensor_split,
    "view_as": lambda x, other: x.view(other.shape),
    "vsplit": _split_along(lambda x: 0),
    "vstack": _joined(lambda x: 0, 2),
}
"""By name, a function or a method of tensors. A rewrite returns NotImplemented for what needs none, or has none."""
