"""Half precision computed in FP32: the graph of an engine that cannot run here, in ONNX Runtime.

ONNX Runtime on a processor computes an FP16 graph in FP32 and drops the casts in between, so nothing but the weights
would be rounded. Here every result that the graph holds in FP16 is rounded to 11 significant bits by Veltkamp's
splitting, ``c = 8193 x; c - (c - x)``, which no optimizer takes out.

Source: Dekker 1971, "A floating-point technique for extending the available precision" (splitting).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import require

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from export.target import Runner

_SPLIT = float(2**13 + 1)
# What only moves or selects values gives no new ones to round.
_EXACT = ("Relu", "MaxPool", "Concat", "DepthToSpace", "SpaceToDepth", "Reshape", "Transpose", "Gather", "Slice")


def open_rounded(path: Path, *, threads: int | None, reason: str) -> Runner:
    """Open the ONNX graph ``path`` on the processor, rounding to half precision wherever it computes in FP16."""
    from export.ort_runner import OrtRunner

    onnx = require("onnx", "onnx")
    model = onnx.load(path)
    half = onnx.TensorProto.FLOAT16
    if any(item.data_type == half for item in model.graph.initializer):
        return OrtRunner(rounded(model).SerializeToString(), threads=threads, reason=reason)
    return OrtRunner(path, threads=threads, reason=reason)


def rounded(model: ModelProto) -> ModelProto:
    """Return a graph in FP32 that rounds where ``model`` (FP16 inside, FP32 at its boundary) holds halves."""
    onnx = require("onnx", "onnx")
    numpy_helper, float_type, half_type = onnx.numpy_helper, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    inferred = onnx.shape_inference.infer_shapes(model)
    halves = {item.name for item in inferred.graph.value_info if item.type.tensor_type.elem_type == half_type}
    halves |= {item.name for item in model.graph.initializer if item.data_type == half_type}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        wide = values.astype("float32") if item.data_type == half_type else values
        result.graph.initializer.append(numpy_helper.from_array(wide, item.name))
    result.graph.initializer.append(onnx.helper.make_tensor("pare_split", float_type, [], [_SPLIT]))
    for node in model.graph.node:
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        if node.op_type == "Cast" and copy.attribute[0].i == half_type:
            copy.attribute[0].i = float_type
        for index, name in enumerate(node.output):
            if name in halves and node.op_type not in _EXACT:
                copy.output[index] = f"{name}/exact"
                result.graph.node.extend(_round(f"{name}/exact", name))
    onnx.checker.check_model(result, full_check=True)
    return result


def _round(source: str, result: str) -> list[NodeProto]:
    make = require("onnx", "onnx").helper.make_node
    return [
        make("Mul", [source, "pare_split"], [f"{result}/c"]),
        make("Sub", [f"{result}/c", source], [f"{result}/d"]),
        make("Sub", [f"{result}/c", f"{result}/d"], [result]),
    ]
