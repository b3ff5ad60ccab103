"""What each operator does to channels: the table behind ``optimize.channel_trace``.

A rule gets the tracer, the arguments and the result of one ATen operator, joins or freezes atoms, and returns the
labels of the result (or a list of them). An operator without a rule that keeps the rank and the sizes of the dimensions
followed is taken for element-wise; any other one freezes what it touches. Both are safe: groups are checked with
numbers afterwards (``optimize.channel_groups.verify``).
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from optimize.channel_trace import FREE, ChannelTracer, Free, Ids, Label, Labels, flatten

Rule = Callable[..., Any]
_RULES: dict[str, tuple[Rule, bool]] = {}
_SKIPPED = frozenset(("empty", "zeros", "ones", "full", "arange", "rand", "randn", "scalar_tensor", "uniform", "fill"))


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators; it gets the result too when it has a parameter ``out``."""

    def register(function: Rule) -> Rule:
        wants_result = "out" in inspect.signature(function).parameters
        _RULES.update(dict.fromkeys(names, (function, wants_result)))
        return function

    return register


def apply_rule(tracer: ChannelTracer, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Find the rule of ``func``, apply it, and label ``result``."""
    name = func.overloadpacket.__name__.rstrip("_") if hasattr(func, "overloadpacket") else str(func)
    tensors = flatten([args, list(kwargs.values())])
    followed = any(tracer.has_labels(tensor) for tensor in tensors)
    if name in _SKIPPED or not (followed or name == "expand"):  # what is expanded follows any number of channels
        return
    labels: Any = None
    if name in _RULES:
        rule, wants_result = _RULES[name]
        with contextlib.suppress(
            TypeError, ValueError, IndexError, StopIteration
        ):  # a form that the rule does not foresee
            labels = rule(tracer, *args, **kwargs, **({"out": result} if wants_result else {}))
    if labels is None:
        labels = _unknown(tracer, name, tensors, result)
    if isinstance(result, Tensor):
        tracer.set_labels(result, labels[0] if isinstance(labels, list) else labels)
    elif isinstance(result, (list, tuple)):
        each = labels if isinstance(labels, list) else [labels]
        for tensor, own in zip(result, each, strict=False):
            tracer.set_labels(tensor, own)


def _unknown(tracer: ChannelTracer, name: str, tensors: Sequence[Tensor], result: Any) -> Labels | list[Labels]:
    """Element-wise and spatial operators: the dimensions followed keep their size and label."""
    results = flatten(result)
    followed = [tensor for tensor in tensors if tracer.has_labels(tensor)]
    if len(results) == 1 and len(followed) == 1 and results[0].ndim == followed[0].ndim:
        labels = tracer.labels(followed[0])
        same = [a == b for a, b in zip(results[0].shape, followed[0].shape, strict=True)]
        if all(equal or label is None for equal, label in zip(same, labels, strict=True)):
            return labels
    tracer.freeze_all(followed, f"goes through the operator {name}, which pruning does not know")
    return [(None,) * tensor.ndim for tensor in results]


_BROADCAST = "add sub mul div maximum minimum where addcmul addcdiv lerp rsub pow atan2 fmod remainder copy hypot"
_COMPARE = "eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or"


@rule(*_BROADCAST.split(), *_COMPARE.split(), "_prelu_kernel")
def _broadcast(tracer: ChannelTracer, *args: Any, out: Tensor, **kwargs: Any) -> Labels:
    tensors = [tensor for tensor in flatten([args, list(kwargs.values())]) if tensor.ndim]
    labels: list[Label] = [None] * out.ndim
    for dim in range(-1, -out.ndim - 1, -1):
        met = [tracer.labels(t)[dim] for t in tensors if t.ndim >= -dim and t.shape[dim] == out.shape[dim]]
        if met and out.shape[dim] > 1:
            label = met[0]
            for other in met[1:]:
                label = tracer.tie(label, other, size=out.shape[dim])
            labels[dim] = label
    return tuple(labels)


def join_rows(tracer: ChannelTracer, table: Ids) -> None:
    """Join the atoms of each row of ``table``."""
    for row in table:
        tracer.atoms.join_all(row)


def mix(tracer: ChannelTracer, label: Label, reason: str) -> None:
    """Note that ``reason`` computes over the channels of a dimension."""
    if isinstance(label, np.ndarray):
        tracer.atoms.mix(label, f"{reason} in {tracer.layer}")


@rule("cat")
def _cat(tracer: ChannelTracer, tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> Labels:
    parts = [tensor for tensor in tensors if tensor.ndim == out.ndim]
    dim %= out.ndim
    labels: list[Label] = []
    for axis in range(out.ndim):
        label = tracer.labels(parts[0])[axis]
        if axis != dim:
            for part in parts[1:]:
                label = tracer.tie(label, tracer.labels(part)[axis], size=out.shape[axis])
        labels.append(label)
    own = [tracer.labels(part)[dim] for part in parts]
    labels[dim] = None
    if any(isinstance(label, np.ndarray) for label in own):
        labels[dim] = np.concatenate([_or_fixed(tracer, a, b.shape[dim]) for a, b in zip(own, parts, strict=True)])
    return tuple(labels)


def _or_fixed(tracer: ChannelTracer, label: Label, size: int) -> Ids:
    if isinstance(label, np.ndarray):
        return label
    fixed = tracer.atoms.new(size)
    tracer.freeze(fixed, "is joined to a tensor whose channels are fixed")
    return fixed


@rule("stack")
def _stack(tracer: ChannelTracer, tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> Labels:
    labels = list(tracer.labels(tensors[0]))
    for axis in range(len(labels)):
        for other in tensors[1:]:
            labels[axis] = tracer.tie(labels[axis], tracer.labels(other)[axis], size=other.shape[axis])
    labels.insert(dim % out.ndim, None)
    return tuple(labels)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def _split(tracer: ChannelTracer, x: Tensor, sizes: Any, dim: int = 0, *, out: Any) -> list[Labels]:
    """Equal parts lose the same places, so that code that halves the channels stays right; unequal ones are kept."""
    labels, dim = tracer.labels(x), dim % x.ndim
    label = labels[dim]
    widths = [part.shape[dim] for part in out]
    if not isinstance(label, np.ndarray):
        return [labels] * len(out)
    if len(set(widths)) > 1:
        tracer.freeze(label, "is split into parts of fixed sizes")
    else:
        join_rows(tracer, label.reshape(len(widths), widths[0]).T)
    edges = np.cumsum([0, *widths])
    return [(*labels[:dim], label[a:b], *labels[dim + 1 :]) for a, b in itertools.pairwise(edges.tolist())]


@rule("slice")
def _slice(
    tracer: ChannelTracer, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1, *, out: Tensor
) -> Labels:
    labels = list(tracer.labels(x))
    dim %= x.ndim
    label, size, width = labels[dim], x.shape[dim], out.shape[dim]
    if isinstance(label, np.ndarray) and width != size:
        first = (start or 0) % size if (start or 0) < 0 else (start or 0)
        if step != 1 or (width and (size % width or first % width)):
            tracer.freeze(label, "is sliced at fixed places")
        elif width:  # nothing of it stays nothing
            join_rows(tracer, label.reshape(size // width, width).T)
        labels[dim] = label[first : first + width * step : step]
    return tuple(labels)


@rule("select", "unbind")
def _select(tracer: ChannelTracer, x: Tensor, dim: int = 0, index: int = 0, *, out: Any) -> Labels | list[Labels]:
    labels, dim = list(tracer.labels(x)), dim % x.ndim
    tracer.freeze(labels.pop(dim), "is picked apart channel by channel")
    return tuple(labels) if isinstance(out, Tensor) else [tuple(labels)] * len(out)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(tracer: ChannelTracer, x: Tensor, *_: Any, out: Tensor) -> Labels:
    labels: list[Label] = [None] * out.ndim
    old = [dim for dim in range(x.ndim) if x.shape[dim] > 1]
    new = [dim for dim in range(out.ndim) if out.shape[dim] > 1]
    own = tracer.labels(x)
    while old and new:
        ins, outs = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(x.shape[d] for d in ins)) != (b := math.prod(out.shape[d] for d in outs)):
            (ins if a < b else outs).append((old if a < b else new).pop(0))
        block = _reshape_block(tracer, [own[d] for d in ins], [x.shape[d] for d in ins], [out.shape[d] for d in outs])
        for dim, label in zip(outs, block, strict=True):
            labels[dim] = label
    return tuple(labels)


def _reshape_block(tracer: ChannelTracer, own: list[Label], sizes: list[int], wanted: list[int]) -> list[Label]:
    """Labels of dimensions of sizes ``wanted`` that hold the same elements as ``own`` of ``sizes``."""
    if sizes == wanted:
        return own
    followed = [axis for axis, label in enumerate(own) if isinstance(label, np.ndarray)]
    if not followed:
        return [FREE if all(isinstance(label, Free) for label in own) else None] * len(wanted)
    nothing: list[Label] = [None] * len(wanted)
    if len(followed) > 1:
        for label in own:
            tracer.freeze(label, "is merged with another channel dimension")
        return nothing
    ids = own[followed[0]]
    assert isinstance(ids, np.ndarray)
    shape = [size if axis == followed[0] else 1 for axis, size in enumerate(sizes)]
    grid = np.broadcast_to(ids.reshape(shape), sizes).reshape(wanted)
    varying = [axis for axis in range(len(wanted)) if (grid != grid.take([0], axis)).any()]
    if not varying:
        tracer.freeze(ids, "is reshaped")
        return nothing
    keep = varying[-1]
    if len(varying) > 1:
        tracer.sites.append(ids)
        if len(tracer.sites) - 1 in tracer.outer_sites:
            keep = varying[0]
        join_rows(tracer, np.moveaxis(grid, keep, 0).reshape(wanted[keep], -1))
    nothing[keep] = np.ascontiguousarray(np.moveaxis(grid, keep, 0).reshape(wanted[keep], -1)[:, 0])
    return nothing


@rule("gather")
def _gather(tracer: ChannelTracer, x: Tensor, dim: int, index: Tensor, *_: Any, **__: Any) -> Labels:
    """Other places of each channel: the index was expanded over the channels, or follows them."""
    labels, places = list(tracer.labels(x)), tracer.labels(index)
    for axis, label in enumerate(labels):
        if axis == dim % x.ndim or index.shape[axis] != x.shape[axis]:
            tracer.freeze(label, "is gathered from places of its own")
            labels[axis] = None
        else:
            labels[axis] = tracer.tie(label, places[axis], size=x.shape[axis])
    return tuple(labels)


@rule("sort")
def _sort(tracer: ChannelTracer, x: Tensor, dim: int = -1, *_: Any, **__: Any) -> list[Labels]:
    """The values of each channel in their order, and the places where they were."""
    labels = list(tracer.labels(x))
    tracer.freeze(labels[dim], "is sorted along its channels")
    labels[dim] = None
    return [tuple(labels)] * 2


@rule("topk")
def _topk(tracer: ChannelTracer, x: Tensor, _: int, dim: int = -1, *__: Any, **___: Any) -> list[Labels]:
    return _sort(tracer, x, dim)


@rule("permute")
def _permute(tracer: ChannelTracer, x: Tensor, dims: Sequence[int]) -> Labels:
    labels = tracer.labels(x)
    return tuple(labels[dim] for dim in dims)


@rule("transpose", "t", "numpy_T")
def _transpose(tracer: ChannelTracer, x: Tensor, first: int = 0, second: int = 1) -> Labels:
    labels = list(tracer.labels(x))
    if x.ndim > 1:
        labels[first], labels[second] = labels[second], labels[first]
    return tuple(labels)


@rule("squeeze", "unsqueeze")
def _squeeze(tracer: ChannelTracer, x: Tensor, *_: Any, out: Tensor) -> Labels:
    left = iter([label for label, size in zip(tracer.labels(x), x.shape, strict=True) if size > 1])
    return tuple(next(left) if size > 1 else None for size in out.shape)


@rule("expand")
def _expand(tracer: ChannelTracer, x: Tensor, *_: Any, out: Tensor, **__: Any) -> Labels:
    labels, extra = tracer.labels(x), out.ndim - x.ndim
    kept = [a if x.shape[d] == out.shape[d + extra] else FREE for d, a in enumerate(labels)]
    return (*(FREE,) * extra, *kept)


@rule("repeat")
def _repeat(tracer: ChannelTracer, x: Tensor, times: Sequence[int], *, out: Tensor) -> Labels:
    labels, extra = tracer.labels(x), out.ndim - x.ndim
    kept = [
        np.tile(a, n) if isinstance(a, np.ndarray) else (a if n == 1 else None)
        for a, n in zip(labels, times[extra:], strict=True)
    ]
    return (*(None,) * extra, *kept)


@rule("pixel_shuffle")
def _pixel_shuffle(tracer: ChannelTracer, x: Tensor, factor: int) -> Labels:
    labels = list(tracer.labels(x))
    label = labels[-3]
    if isinstance(label, np.ndarray):
        table = label.reshape(-1, factor**2)
        join_rows(tracer, table)
        labels[-3] = np.ascontiguousarray(table[:, 0])
    return tuple(labels)


@rule("pixel_unshuffle")
def _pixel_unshuffle(tracer: ChannelTracer, x: Tensor, factor: int) -> Labels:
    labels = list(tracer.labels(x))
    label = labels[-3]
    labels[-3] = np.repeat(label, factor**2) if isinstance(label, np.ndarray) else label
    return tuple(labels)


@rule("im2col")
def _im2col(tracer: ChannelTracer, x: Tensor, kernel: Sequence[int], *_: Any) -> Labels:
    label = tracer.labels(x)[-3]
    spread = np.repeat(label, math.prod(kernel)) if isinstance(label, np.ndarray) else label
    return (*(None,) * (x.ndim - 3), spread, None)


@rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "var_mean", "logsumexp")
def _reduce(tracer: ChannelTracer, x: Tensor, *args: Any, out: Any, **kwargs: Any) -> list[Labels]:
    """A statistic over channels is allowed: it changes a little when one is removed, like that of a norm layer."""
    labels = tracer.labels(x)
    given = kwargs.get("dim", next((a for a in args if isinstance(a, (list, tuple))), None))
    dims = {dim % x.ndim for dim in given} if given else set(range(x.ndim))
    for dim in dims:
        mix(tracer, labels[dim], "a statistic over channels")
    results = flatten(out)
    keep = results[0].ndim == x.ndim
    left = tuple(None if dim in dims else label for dim, label in enumerate(labels) if keep or dim not in dims)
    return [left] * len(results)


@rule("max", "min", "median", "prod", "any", "all", "argmax", "argmin")
def _extreme(tracer: ChannelTracer, x: Tensor, dim: int | None = None, *_: Any, out: Any, **__: Any) -> list[Labels]:
    """A statistic over all values, or along one dimension: ``x.max(1, keepdim=True)``."""
    return _reduce(tracer, x, [] if dim is None else [dim], out=out)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def _softmax(tracer: ChannelTracer, x: Tensor, dim: int, *_: Any, **__: Any) -> Labels:
    labels = tracer.labels(x)
    mix(tracer, labels[dim], "a softmax over channels")
    return labels


@rule("max_pool2d_with_indices", "adaptive_max_pool2d")
def _pool(tracer: ChannelTracer, x: Tensor, *_: Any, **__: Any) -> list[Labels]:
    labels = tracer.labels(x)
    for label in labels[-2:]:
        tracer.freeze(label, "is pooled along its channels")
    followed = (*labels[:-2], None, None)
    return [followed, followed]


@rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sample(tracer: ChannelTracer, x: Tensor, grid: Tensor, *_: Any) -> Labels:
    tracer.freeze_all([grid], "is a sampling grid")
    labels = tracer.labels(x)
    return (*labels[:2], *(None,) * (grid.ndim - 2))


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(tracer: ChannelTracer, v: Tensor, g: Tensor, *_: Any, **__: Any) -> list[Labels]:
    labels, scale = tracer.labels(v), tracer.labels(g)
    for dim, size in enumerate(v.shape):
        if g.shape[dim] == size:
            mix(tracer, tracer.tie(labels[dim], scale[dim], size=size), "weight normalization")
    return [labels, scale]


@rule("flip", "roll")
def _shift(tracer: ChannelTracer, x: Tensor, *args: Any) -> Labels:
    labels = tracer.labels(x)
    dims = args[-1] if isinstance(args[-1], (list, tuple)) else range(x.ndim)
    for dim in dims:
        tracer.freeze(labels[dim], "is flipped or rolled along its channels")
    return labels


@rule("glu")
def _glu(tracer: ChannelTracer, x: Tensor, dim: int = -1) -> Labels:
    labels = list(tracer.labels(x))
    label = labels[dim]
    if isinstance(label, np.ndarray):
        join_rows(tracer, label.reshape(2, -1).T)
        labels[dim] = label[: len(label) // 2]
    return tuple(labels)
