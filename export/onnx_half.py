"""FP16 in the graph: weights and arithmetic in half precision, FP32 in and out, what would overflow kept in FP32.

ONNX Runtime, TensorRT (strongly typed) and OpenVINO all take the same cast graph. A node stays in FP32 when one of its
tensors gets near the largest half (65504) on inputs of the contract's range, when its operator is one that sums or
exponentiates, or when the caller names its layer; of a network that rounding spoils, all but convolutions and matrix
products do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from export.contract import Contract
from export.graph_ranges import tensor_extremes
from export.onnx_graph import LAYERS, finish
from export.screens import ASKED, LIMIT, RANGE, ROUNDING
from models.controls import graph_feeds
from models.errors import UsageError, explain, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

_ALWAYS_FLOAT = (
    "CumSum",
    "Exp",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LpNormalization",
    "NonMaxSuppression",
    "Pow",
    "Range",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "ReduceSumSquare",
    "Reciprocal",
    "TopK",
)


def to_half(
    model: ModelProto,
    contract: Contract,
    *,
    keep: tuple[str, ...] = (),
    layers_only: bool = False,
    photos: Sequence[NDArray[np.float32]] = (),
) -> tuple[ModelProto, dict[str, str]]:
    """Cast a float graph to FP16 with FP32 inputs and outputs.

    Args:
        model: Float graph of ``float_onnx``; not changed.
        contract: Ranges and shapes of its inputs, which are probed for overflow.
        keep: Torch module names of layers that stay in FP32.
        layers_only: Only layers with weights are cast (``export.screens``).
        photos: Prepared photos (1, C, H, W) of the graph's size, probed too (``export.screens.probes``).

    Returns:
        The graph, and the nodes that stayed in FP32, by name, with the reason: ``asked``, ``range``, ``rounding``,
        or the operator.

    Raises:
        UsageError: ``keep`` names no layer of the graph.
    """
    onnx = require("onnx", "onnx")
    converter = require("onnxruntime.transformers.float16", "onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    reasons = dict.fromkeys(_without_weights(model) if layers_only else (), ROUNDING)
    reasons |= {node.name: node.op_type for node in model.graph.node if node.op_type in _ALWAYS_FLOAT}
    reasons |= dict.fromkeys(_overflowing(model, contract, photos), RANGE) | dict.fromkeys(_named(model, keep), ASKED)
    kept = dict(sorted(reasons.items()))
    half: ModelProto = converter.convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=False,
        op_block_list=list(_ALWAYS_FLOAT),
        node_block_list=list(kept),
    )
    _merge_casts(half)
    finish(half)
    return half, kept


def _without_weights(model: ModelProto) -> list[str]:
    """Return all nodes but layers: a product of two activations is none."""
    weights = {item.name for item in model.graph.initializer}
    layers = {node.name for node in model.graph.node if node.op_type in LAYERS and not weights.isdisjoint(node.input)}
    return [node.name for node in model.graph.node if node.name not in layers]


def _named(model: ModelProto, keep: tuple[str, ...]) -> list[str]:
    found = []
    for module in keep:
        names = [node.name for node in model.graph.node if node.name == module or node.name.startswith(module + ".")]
        if not names:
            from export.to_onnx import layer_nodes

            fix = "use the name of a layer with weights"
            raise UsageError(explain("keep_fp32", expected=" | ".join(layer_nodes(model)), got=repr(module), fix=fix))
        found += names
    return found


def _overflowing(model: ModelProto, contract: Contract, photos: Sequence[NDArray[np.float32]]) -> list[str]:
    """Return the nodes that read or write a value above ``LIMIT`` on photos, zeros, ones and noise in the range."""
    peaks = _peaks(model, contract, photos)
    return [
        node.name
        for node in model.graph.node
        if any(peaks.get(name, 0.0) > LIMIT for name in (*node.input, *node.output))
    ]


def _peaks(model: ModelProto, contract: Contract, photos: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    import numpy as np

    onnx = require("onnx", "onnx")
    peaks: dict[str, float] = {}
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            values = np.abs(onnx.numpy_helper.to_array(item))
            peaks[item.name] = float(values.max()) if values.size else 0.0
    feeds = (*_probes(contract), *(graph_feeds(photo, contract.inputs) for photo in photos))
    for name, extremes in tensor_extremes(model, feeds).items():
        peaks[name] = max(abs(value) for values in extremes for value in values)
    return peaks


def _probes(contract: Contract) -> list[dict[str, NDArray[np.float32]]]:
    import numpy as np

    rng = np.random.default_rng(0)
    sides: dict[str, int] = {"N": 1, "H": contract.input_size[0], "W": contract.input_size[1]}

    def fill(kind: str) -> dict[str, Any]:
        feeds = {}
        for spec in contract.inputs:
            low, high = spec.value_range or (0.0, 1.0)
            shape = [sides.get(side, 1) if isinstance(side, str) else side for side in spec.shape]
            values = {"low": np.full(shape, low), "high": np.full(shape, high), "noise": rng.uniform(low, high, shape)}
            feeds[spec.name] = values[kind].astype(np.float32)
        return feeds

    return [fill(kind) for kind in ("low", "high", "noise")]


def _merge_casts(model: ModelProto) -> None:
    """Drop casts that are there twice, and the detour over FP16 between two nodes that stay in FP32 (it overflows)."""
    onnx = require("onnx", "onnx")
    nodes = list({(node.op_type, *node.output): node for node in model.graph.node}.values())
    casts = {node.output[0]: (node.attribute[0].i, node.input[0]) for node in nodes if node.op_type == "Cast"}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    detours = {}
    for output, (kind, source) in casts.items():
        if kind == single and source in casts and casts[source][0] == half:
            detours[output] = casts[source][1]
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in detours:
                node.input[index] = detours[name]
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    nodes = [node for node in nodes if node.op_type != "Cast" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
