"""INT8 for OpenVINO: NNCF places the FakeQuantize operations, the one calibration of all targets sets their ranges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.graph_ranges import activation_ranges, graph_specs
from models.controls import graph_feeds
from models.errors import ConfigError, explain, require

if TYPE_CHECKING:
    import onnx

    from export.quantization import Quantization

_LEVELS = 255
_PHOTOS = 8
_WEIGHT = ".weight"


def lower_nncf(
    model: Any,
    graph: onnx.ModelProto,
    quantization: Quantization,
    nodes: Mapping[str, str],
    ignored: Sequence[str],
    *,
    preset: str = "mixed",
) -> Any:
    """Quantize an OpenVINO model after training with NNCF.

    Every range is the one that the other dialects use (``export.graph_ranges.activation_ranges``), and biases get the
    record's corrections. Measured on a trained student: mean error 0.16 of chroma, against 0.94 with NNCF's own bias
    correction and its 7-bit first layer, which is meant for processors without VNNI, where the sums of INT8 saturate.

    Args:
        model: Float model, converted from ``graph``; changed in place, use what is returned.
        graph: Float ONNX graph, its first input the image and the others controls.
        quantization: Calibration record.
        nodes: ONNX node name of each torch module.
        ignored: Friendly names of the operations that stay float.
        preset: ``mixed`` (asymmetric activations where they are signed) or ``performance`` (symmetric).

    Raises:
        ConfigError: Another preset.
        MissingExtraError: nncf is not installed.
    """
    nncf = require("nncf", "openvino")
    presets = {"mixed": nncf.QuantizationPreset.MIXED, "performance": nncf.QuantizationPreset.PERFORMANCE}
    if preset not in presets:
        fix = "choose one of these"
        raise ConfigError(explain("NNCF preset", expected=" | ".join(presets), got=repr(preset), fix=fix))
    _correct(_layers(model), quantization.bias_corrections())
    float_operations = [*ignored, *_plain_products(model), *_steered(model, image=graph.graph.input[0].name)]
    float_operations += _behind_the_layers(model)
    float_operations += [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if _is_norm(operation) or _is_in_a_norm(operation)
    ]
    inputs = quantization.inputs()[:_PHOTOS]  # only for ranges of what is not in the ONNX graph
    specs = graph_specs(graph)
    with _earliest_first():
        quantized = nncf.quantize(
            model,
            nncf.Dataset([graph_feeds(item[None], specs) for item in inputs]),
            preset=presets[preset],
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=float_operations) if float_operations else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=_estimator(),
                disable_bias_correction=True,
                overflow_fix=nncf.OverflowFix.DISABLE,
            ),
        )
    ranges = activation_ranges(graph, quantization, nodes)
    tensors = {node.name: node.output[0] for node in graph.graph.node}
    tensors.update({value.name: value.name for value in graph.graph.input})
    known = {name: ranges[tensor] for name, tensor in tensors.items() if tensor in ranges}
    _set_ranges(quantized, known, symmetric=preset == "performance")
    return quantized


def _estimator() -> Any:
    """Median over the inputs of the smallest and the largest value: one strange photo does not widen the range."""
    tools = require("nncf.quantization.range_estimator", "openvino")
    median = tools.AggregatorType.MEDIAN

    def collector(kind: Any) -> Any:
        return tools.StatisticsCollectorParameters(statistics_type=kind, aggregator_type=median)

    return tools.RangeEstimatorParameters(
        min=collector(tools.StatisticsType.MIN), max=collector(tools.StatisticsType.MAX)
    )


@contextlib.contextmanager
def _earliest_first() -> Iterator[None]:
    """Let NNCF measure each tensor as soon as it is there, so that memory can be used again.

    NNCF adds what it measures behind the results of the network, and the processor plugin works from the first result
    on: it went through the whole network first and kept every tensor for later. ``restormer_lite`` at 128x128 took
    1.1 GB, and 0.2 GB this way.
    """
    openvino = require("openvino", "openvino")
    factory = require("nncf.common.factory", "openvino").EngineFactory
    create = factory.create

    def ordered(model: Any) -> Any:
        places = {operation.get_friendly_name(): place for place, operation in enumerate(model.get_ordered_ops())}

        def place(result: Any) -> int:
            measured = result.input_value(0).get_node()
            if measured.get_type_name() in ("ReduceMin", "ReduceMax"):
                measured = measured.input_value(0).get_node()
            return places[measured.get_friendly_name()]

        return create(openvino.Model(sorted(model.get_results(), key=place), model.get_parameters()))

    factory.create = staticmethod(ordered)
    try:
        yield
    finally:
        factory.create = staticmethod(create)


def _layers(model: Any) -> dict[str, Any]:
    """Return the operation of each layer, by torch module name: the one that reads ``NAME.weight``."""
    found = {}
    for operation in model.get_ops():
        for value in operation.input_values():
            name = _constant_name(value.get_node())
            if name.endswith(_WEIGHT):
                found[name.removesuffix(_WEIGHT)] = operation
    return found


def _constant_name(node: Any) -> str:
    """Return the name of a constant, also behind a reshape for groups or a conversion; "" for anything else."""
    while node.get_type_name() in ("Reshape", "Convert"):
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name()) if node.get_type_name() == "Constant" else ""


def _plain_products(model: Any) -> list[str]:
    """Return the friendly names of the matrix products without a trained weight: they resize or attend.

    The converter joins two products and the softmax between them to one operation. With quantizers at its inputs the
    processor plugin of OpenVINO 2026.4 does not refuse it but crashes.
    """

    def has_weight(operation: Any) -> bool:
        return any(_constant_name(value.get_node()).endswith(_WEIGHT) for value in operation.input_values())

    kinds = ("MatMul", "ScaledDotProductAttention")
    products = [operation for operation in model.get_ops() if operation.get_type_name() in kinds]
    return [operation.get_friendly_name() for operation in products if not has_weight(operation)]


def _is_norm(operation: Any) -> bool:
    """Say whether an operation is a norm: the plugin computes it in floats, whatever goes in.

    Rounding what goes in, all channels with one scale, is what a norm amplifies in the weak ones. Measured on a U-Net
    and a residual generator with InstanceNorm: 37.1 and 31.3 dB to the float network with it, 44.6 and 38.4 dB without,
    at the same speed.
    """
    return operation.get_type_name() in ("MVN", "GroupNormalization")


def _is_in_a_norm(operation: Any) -> bool:
    """Say whether an operation is part of a norm that is written out: a root, power, division, or what leads to one.

    Its values, variances above all, must be right relative to themselves, which INT8 is not: the deviation of a weak
    channel became zero, and a network with adaptive instance norm was off by 70% of its span.
    """
    kind = operation.get_type_name()
    parents = [value.get_node() for value in operation.input_values()]
    kinds = {parent.get_type_name() for parent in parents}
    if kind == "ReduceMean":
        return "Power" in kinds or (parents[0].get_type_name() == "Multiply" and _squares(parents[0]))
    if kind == "Divide":
        return parents[1].get_type_name() != "Constant"
    leads = (kind == "Subtract" and "ReduceMean" in kinds) or (kind == "Multiply" and bool({"Power", "Sqrt"} & kinds))
    return leads or kind in ("Power", "Sqrt") or (kind == "Multiply" and _squares(operation))


def _squares(operation: Any) -> bool:
    first, second = (value.get_node().get_friendly_name() for value in operation.input_values())
    return bool(first == second)


def _steered(model: Any, *, image: str) -> list[str]:
    """Return the friendly names of the operations that read a value computed from controls alone.

    A level in INT8 would end at the largest one that was calibrated, and move in steps.
    """
    seen: dict[str, bool] = {}  # friendly name -> whether the image reaches it; constants are not in it
    found = []
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        if operation.get_type_name() == "Parameter":
            seen[name] = image in operation.output(0).get_names()
            continue
        parents = [value.get_node().get_friendly_name() for value in operation.input_values()]
        known = [seen[parent] for parent in parents if parent in seen]
        if known:
            seen[name] = any(known)
        if not all(known) and operation.get_type_name() != "Result":
            found.append(name)
    return found


def _behind_the_layers(model: Any) -> list[str]:
    """Return the friendly names of the operations from which no layer is reached; see ``export.qdq_lowering``."""
    layers = {operation.get_friendly_name() for operation in _layers(model).values()}
    read: set[str] = set()  # operations on the way to a layer
    found = []
    for operation in reversed(model.get_ordered_ops()):
        name = operation.get_friendly_name()
        if name in layers or name in read:
            read.update(value.get_node().get_friendly_name() for value in operation.input_values())
        elif operation.get_type_name() not in ("Parameter", "Constant", "Result"):
            found.append(name)
    return found


def _correct(layers: Mapping[str, Any], corrections: Mapping[str, Any]) -> None:
    """Add the corrections to the biases: to the constant that is added to a layer's output, or as a new one."""
    opset = require("openvino.opset13", "openvino")
    for layer, shift in corrections.items():
        operation = layers.get(layer)
        if operation is None:
            continue
        output = operation.output(0)
        readers = list(output.get_target_inputs())
        product = operation.get_type_name() == "MatMul"
        sides = operation.get_output_partial_shape(0)
        shape = (-1,) if product else (1, -1) + (1,) * (len(sides) - 2)
        if not product:  # one for all places of a channel: ``export.transposed``
            shift = shift.repeat(sides[1].get_length() // shift.size)
        constant = _added_constant(readers)
        if constant is not None:
            data = constant.get_source_output().get_node().data
            new = opset.constant((data.reshape(-1) + shift).astype("float32").reshape(data.shape))
            constant.replace_source_output(new.output(0))
        else:
            bias = opset.add(output, opset.constant(shift.reshape(shape)))
            for reader in readers:
                reader.replace_source_output(bias.output(0))


def _added_constant(readers: Sequence[Any]) -> Any:
    """Return the constant input of the one Add that reads a layer, or None."""
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    other = readers[0].get_node().input(1 - readers[0].get_index())
    return other if other.get_source_output().get_node().get_type_name() == "Constant" else None


def _set_ranges(model: Any, ranges: Mapping[str, tuple[float, float]], *, symmetric: bool) -> None:
    """Set the range of every FakeQuantize of an activation, by the name of the operation that it rounds."""
    import numpy

    opset = require("openvino.opset13", "openvino")
    for operation in model.get_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        rounded = operation.input_value(0).get_node().get_friendly_name()
        if rounded not in ranges:
            continue
        low, high = levels(*ranges[rounded], symmetric=symmetric)
        for index, value in zip((1, 2, 3, 4), (low, high, low, high), strict=True):
            shape = list(operation.input_value(index).get_node().get_output_shape(0))
            constant = opset.constant(numpy.full(shape, value, dtype=numpy.float32))
            operation.input(index).replace_source_output(constant.output(0))


def levels(low: float, high: float, *, symmetric: bool = False) -> tuple[float, float]:
    """Return the smallest and largest of 256 levels that span ``low`` to ``high``, zero one of them.

    Never negative values use all levels above zero; symmetric ones are spread evenly around it.
    """
    low, high = min(low, 0.0), max(high, 1e-9)
    if low == 0.0:
        return low, high
    if symmetric:
        bound = max(-low, high)
        return -bound * 128 / 127, bound
    scale = (high - low) / _LEVELS
    zero = min(_LEVELS - 1, max(1, round(-low / scale)))
    scale = max(-low / zero, high / (_LEVELS - zero))
    return -zero * scale, (_LEVELS - zero) * scale
