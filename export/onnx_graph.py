"""The last touch on every ONNX graph that is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import ExportError, explain, require

if TYPE_CHECKING:
    from onnx import ModelProto


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
