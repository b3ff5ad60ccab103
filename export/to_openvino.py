"""The OpenVINO target: IR from the float ONNX graph, INT8 by NNCF, computed in the precision that was asked for.

An artifact is a folder ``NAME.openvino`` with ``model.xml`` and ``model.bin``, so that its hash covers both.

The processor plugin computes FP32 graphs in BF16 where the processor can, unless it is told not to: the runner always
sets the inference precision that the export recorded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.contract import Contract, contract_of, embedded
from export.files import check_output, replacing
from export.quiet import quiet
from export.registry import get_target
from export.screens import screen_artifact
from export.target import CheckedRunner, timed_load
from export.to_onnx import float_onnx, layer_nodes, record_of
from models.artifact import Artifact
from models.errors import (
    CheckpointError,
    ExportError,
    PareError,
    UnsupportedError,
    UsageError,
    explain,
    first_line,
    require,
)
from models.progress import NULL_PROGRESS, Progress
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    from export.quantization import Quantization
    from export.target import Runner

XML = "model.xml"
_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_KINDS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
# What stays in floating point beside INT8 is few and cheap. Measured with two threads: a student 0.776 ms in FP32 and
# 0.779 in BF16, the teacher 7.93 and 7.58 at LPIPS +0.0051 and +0.0049: nothing to win where it matters.
_REMAINDER = "fp32"


def export(
    artifact: Artifact,
    output: Path,
    *,
    precision: Precision = Precision.FP32,
    input_size: tuple[int, int] = (256, 256),
    dynamic: bool = False,
    quantization: Quantization | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Artifact:
    """Convert a ``torch`` artifact to OpenVINO IR; see ``export.to_onnx.export`` for the arguments and errors.

    ``fp16`` stores FP16 weights and asks for FP16 arithmetic where the device has it; ``bf16`` stores FP16 weights and
    computes in BF16 (FP32 sums); ``int8``: NNCF places the rounding, the calibration record sets its ranges.

    Raises:
        MissingExtraError: openvino or nncf is not installed.
        ExportError: The converter refused the graph, or a layer to keep in float cannot be found in it.
    """
    target = get_target("openvino")
    target.check_precision(precision)
    output = check_output(output, target)
    given = target.check_options(options)
    remainder = str(given.get("inference_precision", _REMAINDER))
    if remainder not in ("fp32", "bf16"):
        fix = "choose one of these"
        raise UsageError(explain("option inference_precision", expected="fp32 | bf16", got=remainder, fix=fix))
    contract = contract_of(artifact, precision=precision, input_size=input_size, dynamic=dynamic)
    ov = require("openvino", "openvino")
    with progress.track(f"OpenVINO {precision}", total=3) as bar:
        record = record_of(artifact, quantization) if precision is Precision.INT8 else None
        graph = float_onnx(artifact, input_size=input_size, dynamic=dynamic)
        model = _convert(ov, graph)
        bar.advance()
        notes: dict[str, Any] = {"inference_precision": remainder if precision is Precision.INT8 else precision.value}
        notes["screens"] = screen_artifact(artifact, input_size).to_json()
        if record is not None:
            model = _quantize(model, graph, record, contract, given)
            notes["quantization"] = record.to_json(output.parent)
        bar.advance()
        created = _write(ov, model, output, artifact=artifact, contract=contract, notes=notes)
        bar.advance()
    return created


def _convert(ov: Any, graph: Any) -> Any:
    try:
        with quiet():
            model = ov.convert_model(io.BytesIO(graph.SerializeToString()))
    except Exception as error:  # openvino raises its own exceptions
        fix = "see the message; write the layer otherwise"
        got = say_report(str(error))
        raise ExportError(explain("OpenVINO", expected="a graph that it converts", got=got, fix=fix)) from error
    for node in model.get_ops():
        if node.get_type_name() == "TopK":  # ONNX keeps equal values in their order
            node.set_attribute("stable", True)
    return model


def say_report(text: str) -> str:
    """Return the node of the graph and the reason out of OpenVINO's message of many lines."""
    blocks = [block.strip().splitlines() for block in re.split(r"^-- |^Summary:", text, flags=re.MULTILINE)]
    told = []
    for block in blocks:
        node = re.search(r"<Node\((\w+)\): (.+?)>'", " ".join(block))
        if node is not None:
            told.append(f"operator {node[1]} of node {node[2]}: {block[-1].strip()}")
    # Nodes behind one that failed fail too, for their inputs are unknown then.
    causes = [line for line in told if "has to be known" not in line] or told
    return causes[0] if causes else text.strip().partition("\n")[0]


def _quantize(model: Any, graph: ModelProto, record: Quantization, contract: Contract, given: Mapping[str, Any]) -> Any:
    from export.calibration import calibrated_at
    from export.nncf_lowering import lower_nncf
    from export.qdq_lowering import float_nodes

    _flatten_gathers(require("openvino", "openvino"), model)
    nodes = layer_nodes(graph)
    ignored = _operations(model, float_nodes(record, nodes))
    try:
        with quiet(), calibrated_at(record, contract.input_size, dynamic=contract.dynamic) as fitting:
            preset = str(given.get("preset", "mixed"))
            return lower_nncf(model, graph, fitting, nodes, ignored, preset=preset)
    except PareError:
        raise
    except Exception as error:  # nncf and openvino raise their own exceptions
        fix = "run `python -m optimize quantize` with the --input-size of the export"
        got = first_line(error)
        raise ExportError(
            explain("NNCF", expected="calibration inputs that the graph takes", got=got, fix=fix)
        ) from error


def _flatten_gathers(ov: Any, model: Any) -> None:
    """Look up along one dimension: the processor plugin of 2026.4 cannot scale a quantized look-up by a table."""
    ops = ov.opset13
    for node in list(model.get_ops()):
        if node.get_type_name() != "Gather" or not node.output(0).get_partial_shape().is_static:
            continue
        table = node.input_value(1).get_node()
        if table.get_type_name() == "Constant" and len(table.get_output_shape(0)) > 1:
            places = ops.constant(table.data.reshape(-1))
            flat = ops.gather(node.input_value(0), places, node.input_value(2))
            shaped = ops.reshape(flat, ops.constant(list(node.get_output_shape(0))), False)
            node.output(0).replace(shaped.output(0))


def _operations(model: Any, nodes: list[str]) -> list[str]:
    """Return the friendly names of the operations that came from the ONNX nodes ``nodes``.

    Raises:
        ExportError: A node has no operation of its own.
    """
    present = {item.get_friendly_name() for item in model.get_ops() if item.get_type_name() in _KINDS}
    found = []
    for node in nodes:
        matches = [name for name in (f"{node}/WithoutBiases", node) if name in present]
        if not matches:
            fix = "report it with the network"
            raise ExportError(
                explain(f"layer {node!r}", expected="an operation of this name in the IR", got="none", fix=fix)
            )
        found.append(matches[0])
    return found


def _write(
    ov: Any, model: Any, output: Path, *, artifact: Artifact, contract: Contract, notes: Mapping[str, Any]
) -> Artifact:
    for key, value in embedded(contract, artifact).items():
        model.set_rt_info(value, key.split("."))
    model.set_rt_info(notes["inference_precision"], ["pare", "inference_precision"])
    half = contract.precision in (Precision.FP16, Precision.BF16)
    with replacing(output) as temporary:
        temporary.mkdir()
        try:
            ov.save_model(model, str(temporary / XML), compress_to_fp16=half)
        except RuntimeError as error:  # what openvino raises when the disk is full
            raise OSError(str(error).strip().splitlines()[-1]) from error
    metadata = {"contract": contract.to_json(), "operations": len(model.get_ops()), **notes}
    return Artifact.create(output, format="openvino", parent=artifact, precision=contract.precision, metadata=metadata)


class OpenVinoRunner(CheckedRunner):
    """A compiled IR with the latency hint, one stream, and the inference precision of the artifact."""

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        artifact = Artifact.load(path)
        contract = Contract.from_json(artifact.metadata.get("contract") or {})
        ov = require("openvino", "openvino")
        hint = artifact.metadata.get("inference_precision", "fp32")
        super().__init__(
            inputs=contract.inputs,
            outputs=contract.outputs,
            size=contract.size,
            device=device,
            runtime=f"openvino {ov.__version__.split('-')[0]}",
            threads=threads,
        )
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _hint(device, hint)}
        if device == "cpu":
            settings["NUM_STREAMS"] = 1
            if threads:
                settings["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled, self.load_ms = timed_load(
                lambda: ov.Core().compile_model(str(path / XML), _DEVICES[device], settings)
            )
        except RuntimeError as error:
            fix = "export the artifact again"
            got = str(error).strip().splitlines()[-1]
            raise CheckpointError(explain(f"{path}", expected="an IR that compiles", got=got, fix=fix)) from error
        self._tensor = ov.Tensor
        self._request: Any = compiled.create_infer_request()

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        import numpy as np

        request = self._request
        for spec in self.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            request.set_tensor(spec.name, self._tensor(array, shared_memory=True))
        request.infer()
        return {spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs}

    def close(self) -> None:
        """Free the compiled network."""
        self._request = None
        super().close()


def _hint(device: str, precision: str) -> str:
    """Return the plugin's name of a precision; a processor without FP16 arithmetic computes FP16 weights in FP32."""
    ov = require("openvino", "openvino")
    if precision == "fp16":
        capabilities = ov.Core().get_property(_DEVICES[device], "OPTIMIZATION_CAPABILITIES")
        return "f16" if "FP16" in capabilities else "f32"
    return _HINTS[precision]


def open_runner(path: Path, *, device: str = "cpu", threads: int | None = None) -> Runner:
    """Load an OpenVINO artifact; see ``export.open_runner``."""
    if reason := can_run(device):
        fix = "use --device cpu"
        raise UnsupportedError(explain("openvino", expected=f"device {device}", got=reason, fix=fix))
    return OpenVinoRunner(path, device=device, threads=threads)


def can_run(device: str) -> str | None:
    """Return None where OpenVINO has ``device`` here, else the reason why not."""
    available = require("openvino", "openvino").Core().available_devices
    if not any(name.split(".")[0] == _DEVICES[device] for name in available):
        return f"OpenVINO finds no {_DEVICES[device]} on this machine, only {', '.join(available)}"
    return None
