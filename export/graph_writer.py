"""Writing a few ONNX nodes in the place of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.errors import require

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def known_tensors(model: ModelProto) -> Mapping[str, Any]:
    """Infer type and shape (``TypeProto.Tensor``) of the inputs and of what lies between, by name."""
    inferred = require("onnx", "onnx").shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input, *inferred.output)}


def replace_nodes(model: ModelProto, rewrite: Callable[[NodeProto], list[NodeProto] | None]) -> int:
    """Put what ``rewrite`` makes of a node in its place, in place; None leaves it. Return how many it made."""
    nodes, count = [], 0
    for node in model.graph.node:
        made = rewrite(node)
        nodes += [node] if made is None else made
        count += made is not None
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def axis_last(rank: int, axis: int) -> tuple[list[int], list[int]]:
    """Return the permutation that puts ``axis`` behind the others, and the one back."""
    order = [place for place in range(rank) if place != axis] + [axis]
    return order, [order.index(place) for place in range(rank)]


class Writer:
    """Collects nodes; constants go into the graph at once.

    Args:
        model: Where the nodes will be.
        name: Start of the names of nodes and tensors, unique in the graph.
    """

    def __init__(self, model: ModelProto, name: str) -> None:
        self.nodes: list[NodeProto] = []
        self._onnx, self._graph, self._name, self._count = require("onnx", "onnx"), model.graph, name, 0

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, output: str | None = None, **given: Any) -> Any:
        """Add a node and return the name of its output, or their names; ``output`` names the only one."""
        names = [output or self._next() for _ in range(outputs)]
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, names, name=self._next(), **given))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any) -> str:
        """Add a constant and return its name."""
        import numpy as np

        name = self._next()
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Add a Reshape."""
        return str(self.add("Reshape", [value, self.constant(shape)]))

    def slice(self, value: str, start: int, end: int) -> str:
        """Cut out ``start`` to ``end`` of the second axis."""
        return str(self.add("Slice", [value, *(self.constant([number]) for number in (start, end, 1))]))

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}.part{self._count}"
