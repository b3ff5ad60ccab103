"""One calibration, lowered to each target's own dialect of INT8.

A quantized artifact keeps its weights in FP32 and carries a ``Quantization``: which inputs to calibrate on and which
layers stay in higher precision. The exporters turn this record into Q/DQ nodes (onnxruntime and TensorRT, here) or hand
it to NNCF (OpenVINO, here) and coremltools, because no dialect suits two engines (measured, see docs/decisions).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.artifact import Artifact, read_tensors, sha256_of, write_json
from models.controls import graph_feeds
from models.errors import CheckpointError, ConfigError, RunFolderError, UnsupportedError, explain, require
from models.spec import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx

METADATA_KEY = "quantization"
METHODS = ("ptq",)
TENSOR = "input"
Dialect = Literal["onnxruntime", "tensorrt"]
_CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PRODUCTS = ("Gemm", "MatMul")  # without a weight they resize or attend, and stay float
# Operators that run on integers in the engine, beside the convolutions; what is not listed computes in FP32.
_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": (*_CONVOLUTIONS, "Add", "Relu", "Clip", "MaxPool", "Concat", "Resize", "Transpose", "Reshape"),
    "tensorrt": (*_CONVOLUTIONS, "Add", "MaxPool"),
}


@dataclass(frozen=True)
class Quantization:
    """How to quantize a network after training.

    Attributes:
        calibration: Safetensors file with the tensor ``"input"`` (n, C, H, W), floating, in network units; run-time
            controls are packed behind the channels of the image (``models.controls``).
        samples: Number n of calibration inputs.
        sha256: Hash of the calibration file, or "" where it is not checked.
        float_layers: Torch module names that stay in higher precision.
        ranges: Smallest and largest input value of each layer (torch module name) over the calibration inputs.
        coverage: What the calibration photos cover, JSON values.
        method: ``ptq``: post-training, min-max ranges, int8 weights per output channel.
    """

    calibration: Path
    samples: int
    sha256: str = ""
    float_layers: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    method: Literal["ptq"] = "ptq"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            fix = "choose one of these"
            raise ConfigError(
                explain("quantization method", expected=" | ".join(METHODS), got=repr(self.method), fix=fix)
            )
        if self.samples < 1:
            fix = "calibrate on at least one photo"
            raise ConfigError(explain("calibration samples", expected="1 or more", got=self.samples, fix=fix))

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return JSON values; the calibration file is written relative to ``folder``, where the artifact lies."""
        return {
            "method": self.method,
            "calibration": Path(os.path.relpath(self.calibration.resolve(), folder.resolve())).as_posix(),
            "samples": self.samples,
            "sha256": self.sha256,
            "float_layers": list(self.float_layers),
            "ranges": {name: [float(low), float(high)] for name, (low, high) in self.ranges.items()},
            "coverage": dict(self.coverage),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> Quantization:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: The record lacks a field or holds another type.
        """
        try:
            return cls(
                calibration=folder / str(content["calibration"]),
                samples=int(content["samples"]),
                sha256=str(content.get("sha256", "")),
                float_layers=tuple(str(name) for name in content.get("float_layers", ())),
                ranges={name: (float(low), float(high)) for name, (low, high) in content.get("ranges", {}).items()},
                coverage=dict(content.get("coverage", {})),
                method=content.get("method", "ptq"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            fix = "run `python -m optimize quantize` again"
            raise CheckpointError(
                explain("quantization record", expected="calibration, samples, float_layers", got=repr(error), fix=fix)
            ) from error

    def inputs(self) -> np.ndarray[Any, Any]:
        """Read the calibration inputs, float32 (n, C, H, W).

        Raises:
            CheckpointError: The file is missing, damaged, altered, or holds no tensor ``"input"``.
        """
        if self.sha256 and self.calibration.is_file() and (got := sha256_of(self.calibration)) != self.sha256:
            fix = "copy the run folder again, or run `python -m optimize quantize` again"
            expected = f"sha256 {self.sha256[:12]}"
            raise CheckpointError(explain(f"{self.calibration}", expected=expected, got=got[:12], fix=fix))
        if not self.calibration.is_file():
            fix = "keep it beside the artifact: INT8 export calibrates on it"
            expected = f"file {self.calibration}"
            raise CheckpointError(explain("calibration inputs", expected=expected, got="no such file", fix=fix))
        tensors = read_tensors(self.calibration)
        if TENSOR not in tensors or tensors[TENSOR].ndim != 4:
            shapes = {name: tuple(value.shape) for name, value in tensors.items()}
            expected = f"tensor {TENSOR!r} (n, C, H, W)"
            fix = "run `python -m optimize quantize` again"
            raise CheckpointError(explain(f"{self.calibration}", expected=expected, got=shapes, fix=fix))
        array: np.ndarray[Any, Any] = tensors[TENSOR].float().numpy()
        return array


def quantization_of(artifact: Artifact) -> Quantization | None:
    """Return the record that ``artifact`` carries, or None where it is not quantized."""
    content = artifact.metadata.get(METADATA_KEY)
    return None if content is None else Quantization.from_json(content, artifact.path.parent)


class _Feed:
    """Calibration inputs, one at a time, as onnxruntime's calibrator reads them."""

    def __init__(self, model: onnx.ModelProto, inputs: np.ndarray[Any, Any]) -> None:
        self._items: Iterator[np.ndarray[Any, Any]] = iter(inputs)
        self._specs = graph_specs(model)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        item = next(self._items, None)
        return None if item is None else graph_feeds(item[None], self._specs)


def graph_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return what a float graph takes: the image, then its controls."""
    specs = []
    for value in model.graph.input:
        sides = value.type.tensor_type.shape.dim
        specs.append(TensorSpec(value.name, tuple(side.dim_value or side.dim_param or "N" for side in sides)))
    return tuple(specs)


def tensor_ranges(model: onnx.ModelProto, quantization: Quantization) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of every float tensor of ``model`` over the calibration inputs.

    The answer is cached in the folder ``cache`` beside the calibration file: a second target need not measure again.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    key = hashlib.sha256(model.SerializeToString(deterministic=True) + quantization.sha256.encode()).hexdigest()
    cache = quantization.calibration.parent / "cache" / f"ranges-{key[:16]}.json"
    if quantization.sha256 and cache.is_file():
        try:
            return {name: (float(low), float(high)) for name, (low, high) in json.loads(cache.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            cache.unlink(missing_ok=True)
    ranges = _measure_ranges(model, quantization.inputs())
    if quantization.sha256:
        with contextlib.suppress(RunFolderError):  # a read-only run folder: measure again next time
            write_json(cache, ranges)
    return ranges


def _measure_ranges(model: onnx.ModelProto, inputs: np.ndarray[Any, Any]) -> dict[str, tuple[float, float]]:
    onnx_module = require("onnx", "onnx")
    calibrate = require("onnxruntime.quantization.calibrate", "onnx")
    with tempfile.TemporaryDirectory(prefix="pare-calibrate-") as folder:
        path = Path(folder) / "float.onnx"
        onnx_module.save(model, path)
        calibrator = calibrate.create_calibrator(
            path,
            None,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=calibrate.CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Feed(model, inputs))
        data = calibrator.compute_data()
    ranges = {}
    for name, value in data.items():
        low, high = value.range_value
        ranges[name] = (float(low.reshape(-1)[0]), float(high.reshape(-1)[0]))
    return ranges


def lower_qdq(
    model: onnx.ModelProto,
    quantization: Quantization,
    dialect: Dialect,
    nodes: Mapping[str, str],
) -> onnx.ModelProto:
    """Insert QuantizeLinear / DequantizeLinear pairs into a float graph whose BatchNorm is folded.

    ``onnxruntime``: asymmetric uint8 activations, symmetric int8 weights per output channel, int32 bias (symmetric
    int8 activations run at half the speed there). ``tensorrt``: symmetric int8 activations and weights, float bias
    (its parser rejects an int32 bias).

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
    if dialect == "tensorrt":
        excluded += _with_constant(model)
    onnx_module = require("onnx", "onnx")
    tools = require("onnxruntime.quantization", "onnx")
    calibrate = require("onnxruntime.quantization.calibrate", "onnx")
    numpy = require("numpy", "onnx")
    inferred = onnx_module.shape_inference.infer_shapes(model)
    measured = tensor_ranges(model, quantization)
    ranges = {name: (numpy.float32(low), numpy.float32(high)) for name, (low, high) in measured.items()}
    symmetric = dialect == "tensorrt"
    quantizer = require("onnxruntime.quantization.qdq_quantizer", "onnx").QDQQuantizer(
        inferred,
        True,
        False,
        tools.QuantType.QInt8,
        tools.QuantType.QInt8 if symmetric else tools.QuantType.QUInt8,
        calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, ranges),
        [],
        excluded,
        list(_OPERATORS[dialect]),
        {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": not symmetric},
    )
    quantizer.quantize_model()
    lowered: onnx.ModelProto = quantizer.model.model
    return lowered


def _beside_the_image(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that compute nothing from the image, only from controls and constants: they stay float."""
    image, found = {model.graph.input[0].name}, []
    for node in model.graph.node:
        if image.isdisjoint(node.input):
            found.append(node.name)
        else:
            image.update(node.output)
    return found


def _with_constant(model: onnx.ModelProto) -> list[str]:
    """Return the additions of a constant, which TensorRT's builder refuses in INT8."""
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


def lower_nncf(
    model: Any,
    quantization: Quantization,
    ignored: Sequence[str],
    *,
    preset: str = "mixed",
    fast_bias_correction: bool = True,
) -> Any:
    """Quantize an OpenVINO model after training with NNCF: min-max ranges, bias correction.

    Args:
        model: Float model, its first input the image and the others controls; NNCF changes it in place, use what is
            returned.
        quantization: Calibration inputs.
        ignored: Friendly names of the operations that stay float.
        preset: ``mixed`` (asymmetric activations where they are signed) or ``performance`` (symmetric).
        fast_bias_correction: The quicker of NNCF's two bias corrections.

    Raises:
        ConfigError: Another preset.
        MissingExtraError: nncf is not installed.
    """
    nncf = require("nncf", "openvino")
    presets = {"mixed": nncf.QuantizationPreset.MIXED, "performance": nncf.QuantizationPreset.PERFORMANCE}
    if preset not in presets:
        fix = "choose one of these"
        raise ConfigError(explain("NNCF preset", expected=" | ".join(presets), got=repr(preset), fix=fix))
    ranges = require("nncf.quantization.range_estimator", "openvino").RangeEstimatorParametersSet.MINMAX
    float_operations = [*ignored, *_plain_products(model)]
    inputs = quantization.inputs()
    specs = [
        TensorSpec(port.get_any_name(), tuple(_length(side) for side in port.partial_shape)) for port in model.inputs
    ]
    return nncf.quantize(
        model,
        nncf.Dataset([graph_feeds(item[None], specs) for item in inputs]),
        preset=presets[preset],
        subset_size=len(inputs),
        fast_bias_correction=fast_bias_correction,
        ignored_scope=nncf.IgnoredScope(names=float_operations) if float_operations else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
    )


def _length(side: Any) -> int | str:
    return "N" if side.is_dynamic else int(side.get_length())


def _plain_products(model: Any) -> list[str]:
    """Return the friendly names of the matrix products without a trained weight."""
    products = [op for op in model.get_ops() if op.get_type_name() == "MatMul"]

    def has_weight(op: Any) -> bool:
        return any(value.get_node().get_friendly_name().endswith(".weight") for value in op.input_values())

    return [op.get_friendly_name() for op in products if not has_weight(op)]
