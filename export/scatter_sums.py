"""Sums by scatter for TensorRT, whose ScatterElements overwrites: a product with ones where the indices say.

Histograms (CLAHE) and splatting add values at computed places. ``out[k] = data[k] + sum(updates[n] for index[n] == k)``
is a row of updates times a matrix of zeros and ones, in FP32 so that counts stay whole numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from export.graph_writer import Writer, axis_last, known_tensors, replace_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

#: Zeros and ones that one scatter may take, 256 MiB; a larger one stays, and the parser refuses it.
_MOST = 2**26
_FLOAT = 1  # TensorProto.FLOAT


def write_scatter_sums(model: ModelProto) -> int:
    """Write every ScatterElements that adds, of fixed shapes, as a product; in place.

    Returns:
        How many were written otherwise.
    """
    if not any(_adds(node) for node in model.graph.node):
        return 0
    known = known_tensors(model)
    shapes = {item.name: list(item.dims) for item in model.graph.initializer}
    shapes |= {name: [side.dim_value for side in kind.shape.dim] for name, kind in known.items()}
    types = {item.name: item.data_type for item in model.graph.initializer}
    types |= {name: kind.elem_type for name, kind in known.items()}

    def write(node: NodeProto) -> list[NodeProto] | None:
        if not _adds(node):
            return None
        data, index = (shapes.get(name, [0]) for name in node.input[:2])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0) % len(data)
        others = [place for place in range(len(data)) if place != axis]
        alike = len(index) == len(data) and all(data[place] == index[place] for place in others)
        if not alike or not 0 < math.prod(data) * index[axis] <= _MOST:
            return None
        return _product(Writer(model, node.name), node, data, index[axis], axis, types[node.input[0]])

    return replace_nodes(model, write)


def _adds(node: NodeProto) -> bool:
    return node.op_type == "ScatterElements" and any(item.s == b"add" for item in node.attribute)


def _product(writer: Writer, node: NodeProto, shape: list[int], given: int, axis: int, kind: int) -> list[NodeProto]:
    order, back = axis_last(len(shape), axis)
    rows, places = math.prod(shape) // shape[axis], shape[axis]

    def last(name: str, sides: list[int]) -> str:
        return writer.reshape(writer.add("Transpose", [name], perm=order), sides)

    numbers = writer.constant([[list(range(places))]])
    marks = writer.add("Equal", [last(node.input[1], [rows, given, 1]), numbers])
    marks = writer.add("Cast", [marks], to=_FLOAT)
    values = writer.add("Cast", [last(node.input[2], [rows, 1, given])], to=_FLOAT)
    sums = writer.add("Cast", [writer.add("MatMul", [values, marks])], to=kind)
    total = writer.add("Add", [last(node.input[0], [rows, 1, places]), sums])
    moved = writer.reshape(total, [shape[place] for place in order])
    writer.add("Transpose", [moved], output=node.output[0], perm=back)
    return writer.nodes
