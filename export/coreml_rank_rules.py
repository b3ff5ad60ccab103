"""How each kind of MIL operation is done on wide tensors in at most five dimensions; see ``export.coreml_ranks``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from export.coreml_ranks import LIMIT, Rewrite, grouped, runs_of, shape_of

Rule = Callable[[Rewrite], "list[Any] | None"]
"""What stands for each output, or None where it cannot be done."""


def _layout(do: Rewrite) -> list[Any]:
    """The same elements in the same order."""
    return [do.current(do.x)]


def _single(name: str = "x") -> Rule:
    """One element in, one out."""
    return lambda do: [do.again(**{name: do.current(do.operation.inputs[name])})]


def _elementwise(*names: str) -> Rule:
    """Broadcast."""
    return lambda do: [do.again(**do.together({name: do.operation.inputs[name] for name in names}, do.out))]


def _matmul(do: Rewrite) -> list[Any]:
    values = {name: do.operation.inputs[name] for name in ("x", "y")}
    return [do.again(**do.together(values, do.out[:-2], limit=LIMIT - 2, tail=2))]


def _linear(do: Rewrite) -> list[Any]:
    shape = shape_of(do.x)
    return [do.again(x=do.shaped(do.x, (math.prod(shape[:-1]), shape[-1])))]


def _transpose(do: Rewrite) -> list[Any]:
    """One step, or swaps of neighbouring blocks until five groups or less are left to move."""
    shape = shape_of(do.x)
    order = [axis % len(shape) for axis in do.constant("perm")]
    order = [axis for axis in order if shape[axis] != 1]
    value, now = do.x, sorted(order)
    while len(blocks := _blocks(now, order)) > LIMIT:
        cuts = [(i, j, k) for k in range(2, len(blocks) + 1) for j in range(1, k) for i in range(j)]
        i, j, k = min(cuts, key=lambda cut: len(_blocks(_axes(_swapped(blocks, cut)), order)))
        parts = [_axes(part) for part in (blocks[:i], blocks[i:j], blocks[j:k], blocks[k:])]
        value = do.make("transpose", x=do.shaped(value, grouped(shape, parts)), perm=[0, 2, 1, 3])
        now = _axes(_swapped(blocks, (i, j, k)))
    if len(blocks) == 1:
        return [do.current(value)]
    last = sorted(range(len(blocks)), key=lambda place: order.index(blocks[place][0]))
    return [do.make("transpose", x=do.shaped(value, grouped(shape, blocks)), perm=last)]


def _blocks(now: list[int], order: list[int]) -> list[list[int]]:
    """Group the axes ``now`` that follow each other in ``order`` too."""
    found: list[list[int]] = []
    for axis in now:
        if found and order.index(axis) == order.index(found[-1][-1]) + 1:
            found[-1].append(axis)
        else:
            found.append([axis])
    return found or [[]]


def _axes(blocks: list[list[int]]) -> list[int]:
    return [axis for block in blocks for axis in block]


def _swapped(blocks: list[list[int]], cut: tuple[int, int, int]) -> list[list[int]]:
    i, j, k = cut
    return blocks[:i] + blocks[j:k] + blocks[i:j] + blocks[k:]


def _reduce(do: Rewrite) -> list[Any] | None:
    shape = shape_of(do.x)
    axes = {axis % len(shape) for axis in do.constant("axes", range(len(shape)))}
    marks = [axis in axes for axis in range(len(shape))]
    runs = runs_of(marks, shape)
    sizes = grouped(shape, runs)
    places = [place for place, run in enumerate(runs) if marks[run[0]] and sizes[place] != 1]
    if len(runs) > LIMIT:
        return _reduced_by_turns(do, sizes, places)
    if not places:
        return [do.again(x=do.shaped(do.x, (math.prod(shape), 1)), axes=[1], keep_dims=False)]
    return [do.again(x=do.shaped(do.x, sizes), axes=places, keep_dims=False)]


def _reduced_by_turns(do: Rewrite, sizes: tuple[int, ...], places: list[int]) -> list[Any] | None:
    if do.operation.op_type not in _SEPARABLE:
        return None
    value = do.x
    for place in places:
        value = do.again(x=do.along(value, sizes, place), axes=[1], keep_dims=False)
        sizes = (*sizes[:place], 1, *sizes[place + 1 :])
    return [value]


def _along(do: Rewrite, **more: Any) -> list[Any]:
    """Along one axis: the same sizes, or another size of that axis; all outputs alike."""
    shape = shape_of(do.x)
    answer = do.again(x=do.along(do.x, shape, do.axis(len(shape))), axis=1, **more)
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]


def _largest(do: Rewrite) -> list[Any]:
    """Where the largest or smallest element is."""
    return _along(do, keep_dims=False)


def _gather(do: Rewrite) -> list[Any] | None:
    return _along(do) if do.operation.inputs["indices"].rank < 2 and not do.constant("batch_dims", 0) else None


def _gather_nd(do: Rewrite) -> list[Any] | None:
    """Elements, or slices of the last dimensions, in the places of ``indices`` (..., depth)."""
    shape, indices = shape_of(do.x), do.operation.inputs["indices"]
    places = shape_of(indices)
    depth = places[-1]
    whole = (*shape[:depth], math.prod(shape[depth:])) if depth < len(shape) else shape
    if do.constant("batch_dims", 0) or len(whole) > LIMIT:
        return None
    return [do.again(x=do.shaped(do.x, whole), indices=do.shaped(indices, (math.prod(places[:-1]), depth)))]


def _gather_along(do: Rewrite) -> list[Any] | None:
    shape, indices = shape_of(do.x), do.operation.inputs["indices"]
    axis, places = do.axis(len(shape)), shape_of(indices)
    if any(shape[i] != places[i] for i in range(len(shape)) if i != axis):
        return None
    return [do.again(x=do.along(do.x, shape, axis), indices=do.along(indices, places, axis), axis=1)]


def _concat(do: Rewrite) -> list[Any] | None:
    values = do.operation.inputs["values"]
    axis = do.axis(values[0].rank)
    if do.constant("interleave", False):
        return None
    return [do.again(values=[do.along(value, shape_of(value), axis) for value in values], axis=1)]


def _stack(do: Rewrite) -> list[Any]:
    values = do.operation.inputs["values"]
    axis = do.axis(values[0].rank + 1)
    whole = shape_of(values[0])
    parts = [do.shaped(value, (math.prod(whole[:axis]), 1, math.prod(whole[axis:]))) for value in values]
    return [do.make("concat", values=parts, axis=1)]


def _slice(do: Rewrite) -> list[Any] | None:
    shape, inputs = shape_of(do.x), do.operation.inputs
    if any(inputs[name].val is None for name in ("begin", "end")):
        return None
    rank = len(shape)
    begin, end = do.constant("begin"), do.constant("end")
    stride = do.constant("stride", [1] * rank)
    free, open_end, gone = (do.constant(f"{name}_mask", [False] * rank) for name in ("begin", "end", "squeeze"))
    value, now = do.x, shape
    for axis in range(rank):
        start, stop = None if free[axis] else begin[axis], None if open_end[axis] else end[axis]
        if gone[axis]:
            start, stop = begin[axis] % shape[axis], begin[axis] % shape[axis] + 1
        part = range(*slice(start, stop, 1 if gone[axis] else stride[axis]).indices(shape[axis]))
        if part.step < 0:
            return None
        value = _cut(do, value, now, axis, part)
        now = (*now[:axis], len(part), *now[axis + 1 :])
    return [do.current(value)]


def _cut(do: Rewrite, value: Any, shape: tuple[int, ...], axis: int, part: range) -> Any:
    if part == range(shape[axis]):
        return value
    single = do.along(value, shape, axis)
    sides = shape_of(single)
    return do.make(
        "slice_by_index",
        x=single,
        begin=[0, part.start, 0],
        end=[sides[0], part.stop, sides[2]],
        stride=[1, part.step, 1],
    )


def _slice_by_size(do: Rewrite) -> list[Any] | None:
    begin, size = do.constant("begin"), do.constant("size")
    if begin is None or size is None:
        return None
    value, now = do.x, shape_of(do.x)
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % now[axis]
        part = range(start, now[axis] if count == -1 else start + count)
        value = _cut(do, value, now, axis, part)
        now = (*now[:axis], len(part), *now[axis + 1 :])
    return [do.current(value)]


def _tile(do: Rewrite) -> list[Any] | None:
    reps = do.constant("reps")
    if reps is None:
        return None
    value, now = do.x, shape_of(do.x)
    for axis, count in enumerate(reps):
        if count != 1:
            value = do.make("tile", x=do.along(value, now, axis), reps=[1, count, 1])
            now = (*now[:axis], count * now[axis], *now[axis + 1 :])
    return [do.current(value)]


def _pad(do: Rewrite) -> list[Any] | None:
    flat = do.constant("pad")
    if flat is None:
        return None
    value, now = do.x, shape_of(do.x)
    pads = [(0, 0)] * (len(now) - len(flat) // 2) + list(zip(flat[::2], flat[1::2], strict=True))
    for axis, (before, after) in enumerate(pads):
        if before or after:
            value = do.again(x=do.along(value, now, axis), pad=[0, 0, before, after, 0, 0])
            now = (*now[:axis], now[axis] + before + after, *now[axis + 1 :])
    return [do.current(value)]


def _reverse(do: Rewrite) -> list[Any]:
    shape = shape_of(do.x)
    value = do.x
    for axis in do.constant("axes", range(len(shape))):
        value = do.again(x=do.along(value, shape, axis % len(shape)), axes=[1])
    return [do.current(value)]


def _layer_norm(do: Rewrite) -> list[Any] | None:
    shape = shape_of(do.x)
    axes = sorted(axis % len(shape) for axis in do.constant("axes", range(len(shape))))
    if axes != list(range(axes[0], len(shape))):
        return None
    count = math.prod(shape[axes[0] :])
    scales = {name: do.operation.inputs.get(name) for name in ("gamma", "beta")}
    given = {name: do.shaped(value, (count,)) for name, value in scales.items() if value is not None}
    return [do.again(x=do.shaped(do.x, (math.prod(shape) // count, count)), axes=[1], **given)]


def _fill(do: Rewrite) -> list[Any]:
    return [do.again(shape=[math.prod(do.out)])]


_UNARY = (
    *("abs", "acos", "asin", "atan", "atanh", "ceil", "clip", "cos", "cosh", "erf", "exp", "exp2", "floor", "inverse"),
    *(
        "log",
        "logical_not",
        "round",
        "rsqrt",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tan",
        "tanh",
        "threshold",
        "cast",
    ),
    *("clamped_relu", "elu", "gelu", "leaky_relu", "linear_activation", "relu", "relu6", "scaled_tanh", "sigmoid"),
    *("sigmoid_hard", "silu", "softplus", "softsign", "thresholded_relu", "identity"),
)
_BINARY = (
    *("add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum", "equal", "not_equal"),
    *("greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or", "logical_xor"),
)
_SEPARABLE = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
_REDUCTIONS = (
    *_SEPARABLE,
    *("reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_sum_square"),
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("reshape", "expand_dims", "squeeze"), _layout),
    **dict.fromkeys(_UNARY, _single()),
    **dict.fromkeys(("quantize", "dequantize"), _single("input")),
    **dict.fromkeys(_BINARY, _elementwise("x", "y")),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("softmax", "cumsum", "argsort", "topk", "split", "sliding_windows"), _along),
    **dict.fromkeys(("reduce_argmax", "reduce_argmin"), _largest),
    "select": _elementwise("cond", "a", "b"),
    "matmul": _matmul,
    "linear": _linear,
    "transpose": _transpose,
    "gather": _gather,
    "gather_along_axis": _gather_along,
    "gather_nd": _gather_nd,
    "concat": _concat,
    "stack": _stack,
    "slice_by_index": _slice,
    "slice_by_size": _slice_by_size,
    "tile": _tile,
    "pad": _pad,
    "reverse": _reverse,
    "layer_norm": _layer_norm,
    "fill": _fill,
}
"""By type of operation."""
