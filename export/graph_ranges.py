"""Which range of values INT8 resolves, for every tensor of a float ONNX graph: the same for all dialects of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.artifact import write_json
from models.controls import graph_feeds
from models.errors import RunFolderError, require
from models.spec import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from export.quantization import Quantization

OUTLIER, RARE = 4.0, 0.1
_KINDS = ("tensors", "channels")
_AXES = "extremes.axes"


def activation_ranges(
    model: onnx.ModelProto, quantization: Quantization, nodes: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """Return the range of every float tensor of ``model``: the record's for what INT8 layers read, else typical.

    Where several layers read one tensor the widest of their ranges counts. What a layer in higher precision reads is
    rounded only where a dialect rounds the outputs of the layer before; a fitted range, which cuts strange photos,
    would take from it there what it stays in higher precision for (measured: 0.0046 LPIPS; 0.0010 with the typical
    one).
    """
    inputs = {node.name: node.input[0] for node in model.graph.node}
    fitted: dict[str, tuple[float, float]] = {}
    for layer, (low, high) in quantization.ranges.items():
        if layer in nodes and layer not in quantization.float_layers:
            name = inputs[nodes[layer]]
            old = fitted.get(name, (low, high))
            fitted[name] = (min(low, old[0]), max(high, old[1]))
    return {**_typical_ranges(model, quantization)["tensors"], **fitted}


def channel_ranges(model: onnx.ModelProto, quantization: Quantization) -> dict[str, tuple[list[float], list[float]]]:
    """Return the typical smallest and largest value of every channel of every output of a 2D convolution."""
    return _typical_ranges(model, quantization)["channels"]


def _typical_ranges(model: onnx.ModelProto, quantization: Quantization) -> dict[str, dict[str, Any]]:
    """Return the typical range over the calibration inputs of every float tensor, and of the channels of some.

    The answer is cached in the folder ``cache`` beside the calibration file: a second target need not measure again.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    key = hashlib.sha256(model.SerializeToString(deterministic=True) + quantization.sha256.encode()).hexdigest()
    cache = quantization.calibration.parent / "cache" / f"ranges-{key[:16]}.json"
    if quantization.sha256 and cache.is_file():
        try:
            known = json.loads(cache.read_text())
            return {kind: {name: (low, high) for name, (low, high) in known[kind].items()} for kind in _KINDS}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            cache.unlink(missing_ok=True)
    ranges = _measure_ranges(model, quantization.inputs())
    if quantization.sha256:
        with contextlib.suppress(RunFolderError):  # a read-only run folder: measure again next time
            write_json(cache, ranges)
    return ranges


def _measure_ranges(model: onnx.ModelProto, inputs: np.ndarray[Any, Any]) -> dict[str, dict[str, Any]]:
    specs = graph_specs(model)
    ranges: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
    for name, (lows, highs) in _extremes(model, (graph_feeds(item[None], specs) for item in inputs)).items():
        ranges["tensors"][name] = typical_range([min(low) for low in lows], [max(high) for high in highs])
        if len(lows[0]) > 1:
            channels = zip(zip(*lows, strict=True), zip(*highs, strict=True), strict=True)
            pairs = [typical_range(*channel) for channel in channels]
            ranges["channels"][name] = ([low for low, _ in pairs], [high for _, high in pairs])
    return ranges


def tensor_extremes(
    model: onnx.ModelProto, feeds: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Run a float graph and return the smallest and the largest value of every float tensor, of each run.

    The graph computes them itself, so that no more tensors are in memory at a time than without.

    Args:
        model: Float graph; not changed.
        feeds: Input name -> array, of each run.

    Returns:
        Tensor -> (smallest, largest), a value a run; weights are not among them.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    found = _extremes(model, feeds)
    return {
        name: (tuple(min(low) for low in lows), tuple(max(high) for high in highs))
        for name, (lows, highs) in found.items()
    }


def _extremes(
    model: onnx.ModelProto, feeds: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[list[list[float]], list[list[float]]]]:
    """Do what ``tensor_extremes`` says; of the output of a 2D convolution, those of each channel."""
    onnx_module, ort = require("onnx", "onnx"), require("onnxruntime", "onnx")
    helper, types = onnx_module.helper, onnx_module.TensorProto
    probe = onnx_module.shape_inference.infer_shapes(model)
    graph = probe.graph
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    names = [name for name, value in known.items() if value.type.tensor_type.elem_type == types.FLOAT]
    convolved = {name for node in graph.node if node.op_type == "Conv" for name in node.output}
    convolved = {name for name in convolved & set(names) if len(known[name].type.tensor_type.shape.dim) == 4}
    del graph.output[:]
    graph.initializer.append(helper.make_tensor(_AXES, types.INT64, (3,), (0, 2, 3)))
    old = _opset(probe) < 18  # axes were an attribute before
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    # The runtime starts from the leaf that was added last: earliest tensors there, so that each is read as it is made.
    for name in sorted(names, key=lambda name: -places.get(name, -1)):
        inputs = [name, _AXES] if name in convolved and not old else [name]
        given = {"axes": (0, 2, 3)} if name in convolved and old else {}
        for kind in ("ReduceMin", "ReduceMax"):
            graph.node.append(helper.make_node(kind, inputs, [f"{name}:{kind}"], keepdims=0, **given))
    outputs = [f"{name}:{kind}" for name in names for kind in ("ReduceMin", "ReduceMax")]
    graph.output.extend(helper.make_tensor_value_info(name, types.FLOAT, None) for name in outputs)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.enable_mem_pattern = False  # as in export.ort_runner: 346 -> 254 MB for restormer_lite at 128x128
    session = ort.InferenceSession(probe.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    rows = [[value.reshape(-1).tolist() for value in session.run(outputs, dict(item))] for item in feeds]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return {name: (columns[2 * place], columns[2 * place + 1]) for place, name in enumerate(names)} if rows else {}


def _opset(model: onnx.ModelProto) -> int:
    return int(next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")))


def graph_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return what a float graph takes: the image, then its controls."""
    specs = []
    for value in model.graph.input:
        sides = value.type.tensor_type.shape.dim
        specs.append(TensorSpec(value.name, tuple(side.dim_value or side.dim_param or "N" for side in sides)))
    return tuple(specs)


def typical_range(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """Return the range of a tensor over photos, without those photos that leave the usual range by far.

    One photo in a hundred may drive a network to a hundred times its usual values; a range that holds it leaves the
    others a few levels of 255. A photo counts where it stays within OUTLIER times the median of all; and where more
    than RARE of all do not, they are no exceptions (exposures of a dark scene), and all but that share count.

    Args:
        lows: Smallest value in each photo.
        highs: Largest value in each photo.
    """
    return -_typical([-low for low in lows]), _typical(list(highs))


def _typical(largest: list[float]) -> float:
    ordered = sorted(largest)
    common = ordered[len(ordered) - 1 - int(RARE * len(ordered))]
    limit = max(OUTLIER * statistics.median(ordered), common)
    return max(value for value in ordered if value <= limit) if limit > 0 else ordered[-1]
