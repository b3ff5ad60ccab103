"""The last touch on every ONNX graph that is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from models.errors import ExportError, explain, require

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

#: Operators that have weights to multiply with.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Bytes from which it pays to look for a constant's twin.
_LARGE = 4096


def finish(model: ModelProto) -> None:
    """Sort the nodes, drop the shapes in between (every reader infers them), and check the graph; in place.

    Raises:
        ExportError: ``onnx.checker`` finds a fault.
    """
    sort_nodes(model)
    model.graph.ClearField("value_info")
    try:
        require("onnx", "onnx").checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises its own exceptions, which share no base class
        fix = "report it with the network"
        raise ExportError(explain("onnx.checker", expected="a valid graph", got=error, fix=fix)) from error


def sort_nodes(model: ModelProto) -> None:
    """Put the nodes in an order in which every tensor is written before it is read; in place."""
    ready = {item.name for item in model.graph.initializer} | {item.name for item in model.graph.input} | {""}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            ordered += later  # a loop; onnx.checker explains it
            break
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def share_constants(model: ModelProto) -> None:
    """Write large constants of equal content once, under the name of the first; in place.

    The exporter computes what every layer makes for itself (masks of shifted windows, tables of a Fourier transform)
    once a layer: 265 MB of 428 in a network with windows at 512x512.
    """
    first: dict[str, str] = {}  # content -> name
    twins: dict[str, str] = {}  # name -> that of the first
    for item in model.graph.initializer:
        if item.ByteSize() >= _LARGE:
            name = item.name
            item.name = ""
            content = hashlib.sha256(item.SerializeToString(deterministic=True)).hexdigest()
            item.name = name
            if first.setdefault(content, name) != name:
                twins[name] = first[content]
    given = {value.name for value in (*model.graph.input, *model.graph.output)}  # those keep their names
    twins = {name: other for name, other in twins.items() if not {name, other} & given}
    if not twins:
        return
    for node in _nodes(model.graph):
        for index, name in enumerate(node.input):
            node.input[index] = twins.get(name, name)
    kept = [item for item in model.graph.initializer if item.name not in twins]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
