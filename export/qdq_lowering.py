"""INT8 for ONNX Runtime and TensorRT: quantize and dequantize nodes in the ONNX graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from export.channel_rounding import FULL, fill_levels, scale_back
from export.graph_ranges import activation_ranges, channel_ranges
from models.errors import ConfigError, UnsupportedError, explain, require

if TYPE_CHECKING:
    import onnx

    from export.quantization import Quantization

Dialect = Literal["onnxruntime", "tensorrt"]
_PRODUCTS = ("Gemm", "MatMul")  # without a weight they resize or attend, and stay float
_NORMS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization")
# Operators that run on integers in the engine, beside the convolutions; what is not listed computes in FP32.
_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("Conv", *_PRODUCTS, "Add", "Relu", "Clip", "MaxPool", "Concat", "Resize", "Transpose", "Reshape"),
    "tensorrt": ("Conv", "ConvTranspose", *_PRODUCTS, "Add", "MaxPool"),
}


def lower_qdq(
    model: onnx.ModelProto,
    quantization: Quantization,
    dialect: Dialect,
    nodes: Mapping[str, str],
) -> onnx.ModelProto:
    """Insert QuantizeLinear / DequantizeLinear pairs into a float graph whose BatchNorm is folded.

    ``onnxruntime``: asymmetric uint8 activations, symmetric int8 weights per output channel, int32 bias (symmetric
    int8 activations run at half the speed there), inputs and outputs of a layer rounded. A convolution that
    a norm reads rounds each channel over its own range (``export.channel_rounding``); a last one before a norm stays
    float; a transposed one, which has no integer kernel there, is float too and keeps its weights in 8 bits.
    ``tensorrt``: symmetric int8 activations and weights, float bias (its parser rejects an int32 bias), only inputs
    rounded: the engine fuses what lies between a layer and the next rounding.

    Args:
        model: Float graph, its first input the image and the others controls; not changed.
        quantization: Calibration inputs and the layers that stay float.
        dialect: Whose rules to follow.
        nodes: ONNX node name of each torch module.

    Raises:
        UnsupportedError: Another dialect.
        ConfigError: A layer to keep in float is not in ``nodes``.
        MissingExtraError: onnxruntime is not installed.
    """
    if dialect not in _OPERATORS:
        fix = "choose one of these"
        raise UnsupportedError(explain("INT8 dialect", expected=" | ".join(_OPERATORS), got=repr(dialect), fix=fix))
    excluded = float_nodes(quantization, nodes)
    layers = set(nodes.values())
    excluded += [node.name for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in layers]
    excluded += _beside_the_image(model)
    excluded += _with_constant(model)
    behind = _behind_the_layers(model, layers)
    excluded += behind
    if dialect == "onnxruntime":
        excluded += _before_a_last_norm(model, behind)
    onnx_module = require("onnx", "onnx")
    symmetric = dialect == "tensorrt"
    corrected = _corrected(onnx_module, model, quantization, nodes)
    measured = activation_ranges(model, quantization, nodes)
    scales: dict[str, Any] = {}
    if not symmetric:
        rounded = {n.name for n in model.graph.node if n.op_type in _OPERATORS[dialect]}.difference(excluded)
        scales = fill_levels(corrected, channel_ranges(model, quantization), rounded)
        measured |= {node.output[0]: FULL for node in model.graph.node if node.name in scales}
    lowered = _quantize(onnx_module.shape_inference.infer_shapes(corrected), measured, excluded, dialect)
    if not symmetric:
        scale_back(lowered, scales)
        _store_transposed(onnx_module, lowered, excluded)
    return lowered


def _quantize(
    model: onnx.ModelProto, measured: Mapping[str, tuple[float, float]], excluded: list[str], dialect: Dialect
) -> onnx.ModelProto:
    """Insert the pairs with onnxruntime's quantizer: ``measured`` is the range of each tensor; ``model`` is used up."""
    tools = require("onnxruntime.quantization", "onnx")
    calibrate = require("onnxruntime.quantization.calibrate", "onnx")
    numpy = require("numpy", "onnx")
    symmetric = dialect == "tensorrt"
    ranges = {name: (numpy.float32(low), numpy.float32(high)) for name, (low, high) in measured.items()}
    quantizer = require("onnxruntime.quantization.qdq_quantizer", "onnx").QDQQuantizer(
        model,
        True,
        False,
        tools.QuantType.QInt8,
        tools.QuantType.QInt8 if symmetric else tools.QuantType.QUInt8,
        calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, ranges),
        [],
        excluded,
        list(_OPERATORS[dialect]),
        {
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not symmetric,
            "OpTypesToExcludeOutputQuantization": list(_OPERATORS[dialect]) if symmetric else [],
        },
    )
    quantizer.quantize_model()
    lowered: onnx.ModelProto = quantizer.model.model
    return lowered


def _corrected(
    onnx_module: Any, model: onnx.ModelProto, quantization: Quantization, nodes: Mapping[str, str]
) -> onnx.ModelProto:
    """Return a copy of ``model`` with the bias corrections added; a MatMul that no bias follows gets none."""
    copy: onnx.ModelProto = onnx_module.ModelProto()
    copy.CopyFrom(model)
    graph, tools = copy.graph, onnx_module.numpy_helper
    constants = {item.name: item for item in graph.initializer}
    by_name = {node.name: node for node in graph.node}
    for layer, shift in quantization.bias_corrections().items():
        node = by_name.get(nodes.get(layer, ""))
        place = None if node is None else _bias_of(graph, node, constants)
        if node is None or place is None:
            continue
        owner, index = place
        old = tools.to_array(constants[owner.input[index]]) if index < len(owner.input) else 0.0
        name = f"{layer}.corrected_bias"
        weight = constants.get(node.input[1])
        channels = weight.dims[0] if weight is not None and node.op_type == "Conv" else shift.size
        shift = shift.repeat(channels // shift.size)  # one for all places of a channel: ``export.transposed``
        graph.initializer.append(tools.from_array((old + shift).astype("float32"), name))
        rest = list(owner.input[index + 1 :])
        del owner.input[index:]
        owner.input.extend([name, *rest])
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return copy


def _bias_of(graph: Any, node: Any, constants: Mapping[str, Any]) -> tuple[Any, int] | None:
    """Return the node that adds the bias of layer ``node``, and which input the bias is or would be."""
    if node.op_type != "MatMul":
        return (node, 2) if len(node.input) < 3 or node.input[2] in constants else None
    readers = [reader for reader in graph.node if node.output[0] in reader.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    index = 1 - list(readers[0].input).index(node.output[0])
    return (readers[0], index) if readers[0].input[index] in constants else None


def _beside_the_image(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that compute nothing from the image, only from controls and constants: they stay float."""
    image, found = {model.graph.input[0].name}, []
    for node in model.graph.node:
        if image.isdisjoint(node.input):
            found.append(node.name)
        else:
            image.update(node.output)
    return found


def _behind_the_layers(model: onnx.ModelProto, layers: Collection[str]) -> list[str]:
    """Return the nodes from which no layer is reached: rounding them saves no layer a conversion, and they stay float.

    A fit in closed form, in 8 bits, is worth nothing: its small right side would share its levels with its matrix.
    """
    read: set[str] = set()  # tensors on the way to a layer
    found = []
    for node in reversed(model.graph.node):
        if node.name in layers or not read.isdisjoint(node.output):
            read.update(node.input)
        else:
            found.append(node.name)
    return found


def _before_a_last_norm(model: onnx.ModelProto, behind: Collection[str]) -> list[str]:
    """Return the layers that only nodes ``behind`` the layers read, a norm among them: it amplifies what they round.

    Fast style transfer ends in one: 33.1 dB to the float network where its last layer is rounded, 42.2 dB where not.
    """
    last = [node for node in model.graph.node if node.name in behind]
    if not any(node.op_type in _NORMS for node in last):
        return []
    read_before = {name for node in model.graph.node if node.name not in behind for name in node.input}
    read = {name for node in last for name in node.input} - read_before
    return [node.name for node in model.graph.node if node.name not in behind and not read.isdisjoint(node.output)]


def _store_transposed(onnx_module: Any, model: onnx.ModelProto, excluded: Collection[str]) -> None:
    """Store the weights of the transposed convolutions that are not ``excluded`` in 8 bits; in place."""
    graph, tools = model.graph, onnx_module.numpy_helper
    constants = {item.name: item for item in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "ConvTranspose" or node.name in excluded or node.input[1] not in constants:
            continue
        name = node.input[1]
        weight = tools.to_array(constants.pop(name))  # (in, out / groups, ...)
        over = (0, *range(2, weight.ndim))
        scale = (abs(weight).max(axis=over).clip(1e-12) / 127).astype("float32")
        levels = (weight / scale.reshape(1, -1, *[1] * (weight.ndim - 2))).round().astype("int8")
        parts = {"_quantized": levels, "_scale": scale, "_zero_point": (scale * 0).astype("int8")}
        graph.initializer.extend(tools.from_array(value, name + end) for end, value in parts.items())
        inputs = [name + end for end in parts]
        graph.node.append(onnx_module.helper.make_node("DequantizeLinear", inputs, [name], f"{name}_stored", axis=1))
    kept = [item for item in graph.initializer if item.name not in {node.output[0] for node in graph.node}]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _with_constant(model: onnx.ModelProto) -> list[str]:
    """Return the additions of a constant: biases behind a product, shifts and epsilons of norms.

    TensorRT's builder refuses them in INT8, and rounding an epsilon to 8 bits leaves a division by zero.
    """
    constants = {item.name for item in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "Add" and not constants.isdisjoint(node.input)]


def float_nodes(quantization: Quantization, nodes: Mapping[str, str]) -> list[str]:
    """Return the graph nodes of the layers that stay in higher precision.

    Raises:
        ConfigError: A layer has no node.
    """
    unknown = [name for name in quantization.float_layers if name not in nodes]
    if unknown:
        fix = "quantize this artifact again; its layers have other names"
        raise ConfigError(explain("float layers", expected=" | ".join(nodes), got=", ".join(unknown), fix=fix))
    return [nodes[name] for name in quantization.float_layers]
