"""Sorts of more values than TensorRT takes at once, in windows that it takes: the same order, equal values too.

Its TopK ends at 3,840 values; a network that sorts its pixels by category (ATD) has 4,096 of them at 64x64. Two
neighbouring blocks at a time are sorted together, the first of them at an even place and at an odd one in turn, as
often as there are blocks.

Source: Knuth, The Art of Computer Programming 3, 5.3.4: networks of comparators, which here are sorts of two blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.graph_writer import Writer, axis_last, known_tensors, replace_nodes
from models.errors import require

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from onnx import ModelProto, NodeProto

#: Values that TensorRT sorts at once.
MOST = 3840


def split_long_sorts(model: ModelProto) -> int:
    """Write every TopK of more than ``MOST`` values, along an axis of fixed length, as several; in place.

    Returns:
        How many were written otherwise.
    """
    onnx = require("onnx", "onnx")
    if not any(node.op_type == "TopK" for node in model.graph.node):
        return 0
    numbers = {item.name: item for item in model.graph.initializer}
    known = known_tensors(model)

    def split(node: NodeProto) -> list[NodeProto] | None:
        kept = numbers.get(node.input[1]) if node.op_type == "TopK" else None
        kind = known.get(node.input[0]) if kept is not None else None
        if kept is None or kind is None:
            return None
        length = int(onnx.numpy_helper.to_array(kept).item())
        shape = [side.dim_value for side in kind.shape.dim]
        if length <= MOST or not all(shape):
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return _Sort(model, node.name).sorted(node, shape, dtype, length)

    return replace_nodes(model, split)


class _Sort(Writer):
    """Writes the nodes that take the place of one TopK."""

    def sorted(self, node: NodeProto, shape: list[int], dtype: DTypeLike, kept: int) -> list[NodeProto]:
        """Return the nodes; ``kept`` values of the axis are asked for."""
        import numpy as np

        given = {item.name: item.i for item in node.attribute}
        axis, largest = given.get("axis", -1) % len(shape), given.get("largest", 1)
        order, back = axis_last(len(shape), axis)
        rows, length = int(np.prod(shape)) // shape[axis], shape[axis]
        blocks, block = _blocks(length)
        values = self.reshape(self.add("Transpose", [node.input[0]], perm=order), [rows, length])
        if more := blocks * block - length:
            limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
            last = np.full((rows, more), limits.min if largest else limits.max, dtype)
            values = self.add("Concat", [values, self.constant(last)], axis=1)
        values = self.reshape(values, [rows, blocks, block])
        numbers = np.broadcast_to(np.arange(blocks * block).reshape(1, blocks, block), (rows, blocks, block))
        pair = (values, self.constant(numbers))
        for turn in range(blocks):
            pair = self._round(pair, rows, blocks, block, turn % 2, largest)
        moved = [shape[place] for place in order[:-1]]
        for value, name in zip(pair, node.output, strict=True):
            if name:
                flat = self.slice(self.reshape(value, [rows, blocks * block]), 0, kept)
                self.add("Transpose", [self.reshape(flat, [*moved, kept])], output=name, perm=back)
        return self.nodes

    def _round(
        self, pair: tuple[str, str], rows: int, blocks: int, block: int, first: int, largest: int
    ) -> tuple[str, str]:
        """Sort blocks ``first`` and ``first + 1`` together, and so on: values, numbers (rows, blocks, block)."""
        windows = (blocks - first) // 2
        end, width = first + 2 * windows, 2 * block
        inner = [self.reshape(self.slice(value, first, end), [rows, windows, width]) for value in pair]
        length = self.constant([width])
        values, places = self.add("TopK", [inner[0], length], outputs=2, axis=2, largest=largest, sorted=1)
        numbers = self.add("GatherElements", [inner[1], places], axis=2)
        found = []
        for old, new in zip(pair, (values, numbers), strict=True):
            parts = [self.slice(old, 0, first)] if first else []
            parts.append(self.reshape(new, [rows, 2 * windows, block]))
            parts += [self.slice(old, end, blocks)] if end < blocks else []
            found.append(self.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0])
        return found[0], found[1]


def _blocks(length: int) -> tuple[int, int]:
    """Return how many blocks of how many values: two are one sort, and up to twice as many blocks avoid a remainder."""
    least = -(-length // (MOST // 2))
    count = next((number for number in range(least, 2 * least) if length % number == 0), least)
    return count, -(-length // count)
