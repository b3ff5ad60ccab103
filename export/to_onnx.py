"""The ONNX target, and the one float graph that OpenVINO and TensorRT start from too.

``torch.onnx.export`` (the torch.export based exporter) on the network with its BatchNorms folded and its transposed
convolutions rewritten where their steps do not overlap, simplified by onnxslim, checked by ``onnx.checker``. Weights
keep their torch names, and the node of a layer is named after its module, so that "keep ``head`` in higher precision"
means the same in every dialect.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from export.contract import Contract, contract_of, embedded
from export.files import check_output, replacing, write_bytes
from export.onnx_graph import LAYERS, finish, share_constants
from export.quiet import quiet
from export.registry import get_target
from export.screens import kept_names, probes, screen_artifact
from models.artifact import Artifact, load_network
from models.errors import ExportError, PareError, UnsupportedError, UsageError, explain, first_line, require
from models.progress import NULL_PROGRESS, Progress
from models.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from onnx import ModelProto

    from export.qdq_lowering import Dialect
    from export.quantization import Quantization
    from export.target import Runner

OPSET = 18


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
    """Convert a ``torch`` artifact to ONNX.

    Args:
        artifact: Where to start.
        output: File to write, ``.onnx``.
        precision: fp32; fp16 (cast in the graph, FP32 in and out, ops that overflow kept); int8 (QDQ, needs
            ``quantization``).
        input_size: Height and width, pixels; of a dynamic graph only the size that it is traced at.
        dynamic: Leave batch, height and width open.
        quantization: Calibration record; None takes the one in ``artifact.metadata``.
        options: See ``export.registry``.
        progress: Where to report.

    Raises:
        UsageError: An option or a suffix that the target does not have.
        UnsupportedError: The target has no such precision.
        InputSizeError: The network cannot take ``input_size``.
        ExportError: The exporter refused the network.
    """
    target = get_target("onnx")
    target.check_precision(precision)
    output = check_output(output, target)
    given = target.check_options(options)
    if given.get("ort") and precision is Precision.FP16:
        _refuse_half_ort()
    contract = contract_of(artifact, precision=precision, input_size=input_size, dynamic=dynamic)
    with progress.track(f"ONNX {precision}", total=3) as bar:
        record = record_of(artifact, quantization) if precision is Precision.INT8 else None
        model = float_onnx(artifact, input_size=input_size, dynamic=dynamic, opset=given.get("opset", OPSET))
        bar.advance()
        screens = screen_artifact(artifact, input_size)
        notes: dict[str, Any] = {"screens": screens.to_json()}
        if precision is Precision.FP16:
            from export.onnx_half import to_half

            photos = probes(artifact, input_size)
            model, notes["kept_fp32"] = to_half(
                model, contract, keep=kept_names(given), layers_only=screens.layers_only, photos=photos
            )
        elif record is not None:
            model = lower(model, record, "onnxruntime", contract)
            notes["quantization"] = record.to_json(output.parent)
        bar.advance()
        created = write_onnx(model, output, artifact=artifact, contract=contract, metadata=notes)
        if given.get("ort"):
            write_ort(created, source=artifact)
        bar.advance()
    return created


def record_of(artifact: Artifact, given: Quantization | None) -> Quantization:
    """Return the calibration record to lower: the one given, else the one that ``artifact`` carries.

    Raises:
        UsageError: There is none.
    """
    from export.quantization import quantization_of

    record = given if given is not None else quantization_of(artifact)
    if record is None:
        fix = "run `python -m optimize quantize` first, and export its artifact"
        raise UsageError(explain("int8 export", expected="an artifact with a calibration record", got="none", fix=fix))
    return record


def lower(model: ModelProto, record: Quantization, dialect: Dialect, contract: Contract) -> ModelProto:
    """Insert the quantize and dequantize nodes of ``record`` in the dialect of ``onnxruntime`` or ``tensorrt``.

    Calibration inputs of another size than the graph's are resized.

    Raises:
        ExportError: The graph cannot be computed on the calibration inputs.
    """
    from export.calibration import calibrated_at
    from export.qdq_lowering import lower_qdq

    try:
        with quiet(), calibrated_at(record, contract.input_size, dynamic=contract.dynamic) as fitting:
            lowered = lower_qdq(model, fitting, dialect, layer_nodes(model))
    except PareError:
        raise
    except Exception as error:  # onnxruntime raises its own exceptions, which share no base class
        fix = "run `python -m optimize quantize` with the --input-size of the export"
        got = first_line(error)
        raise ExportError(explain("calibration", expected="inputs that the graph takes", got=got, fix=fix)) from error
    finish(lowered)
    return lowered


def float_onnx(
    artifact: Artifact, *, input_size: tuple[int, int] = (256, 256), dynamic: bool = False, opset: int | str = OPSET
) -> ModelProto:
    """Return the FP32 ONNX graph of a ``torch`` artifact: BatchNorm folded, simplified and checked.

    The graph of the same artifact and arguments is computed once in a process.

    Raises:
        UsageError: ``opset`` is older than 17.
        InputSizeError: The network cannot take ``input_size``.
        ExportError: The exporter refused the network.
    """
    onnx = require("onnx", "onnx")
    if not str(opset).isdecimal() or int(opset) < 17:
        raise UsageError(explain("opset", expected="17 or later", got=repr(opset), fix=f"use {OPSET}"))
    content = _float_bytes(artifact.path, artifact.sha256, tuple(input_size), dynamic, int(opset))
    model: ModelProto = onnx.load_from_string(content)
    return model


@lru_cache(maxsize=4)
def _float_bytes(path: Path, sha256: str, input_size: tuple[int, int], dynamic: bool, opset: int) -> bytes:
    from models.registry import get_spec

    artifact = Artifact.load(path)
    spec = get_spec(artifact.model, task=artifact.task)
    spec.size.check(*input_size)
    model = _trace(artifact, spec, input_size, dynamic, opset)
    tidy = _tidy(model, spec)
    if dynamic:
        _check_open(tidy, spec)
    return tidy.SerializeToString()


def _trace(artifact: Artifact, spec: ModelSpec, size: tuple[int, int], dynamic: bool, opset: int) -> ModelProto:
    import torch

    from export.attention import attention_in_parts
    from export.fuse import fold_batch_norm
    from export.portable import Portable
    from export.readings import Readings, as_if_exported
    from export.refusal import renamed, say_refusal
    from export.resizes import ConstantResizes
    from export.transposed import shuffle_transposed

    require("onnxscript", "onnx")
    net = renamed(shuffle_transposed(fold_batch_norm(load_network(artifact).float())))
    samples, shapes = _samples(spec, size, dynamic)
    readings = None
    try:
        resizes = contextlib.nullcontext() if dynamic else ConstantResizes()
        with attention_in_parts(), as_if_exported():
            readings = Readings(net, samples)
        with torch.no_grad(), attention_in_parts(), quiet(), readings, Portable(), resizes, _zero_is_zero():
            program = torch.onnx.export(
                net,
                samples,
                dynamo=True,
                opset_version=opset,
                input_names=[item.name for item in spec.graph_inputs],
                output_names=[item.name for item in spec.outputs],
                dynamic_shapes=shapes if dynamic else None,
                custom_translation_table=_translations(),
                optimize=True,
                verbose=False,
            )
    except ExportError:
        raise
    except Exception as error:  # the exporter raises its own and torch's exceptions
        fix = (
            "export with a fixed size (without --dynamic)" if dynamic else "see the message; write the layer otherwise"
        )
        with quiet():
            got = (readings and readings.say_gradient()) or say_refusal(error, net, samples)
        raise ExportError(
            explain(f"ONNX export of {artifact.model}", expected="a traceable network", got=got, fix=fix)
        ) from error
    assert program is not None
    model = program.model_proto
    written = _opset_of(model)
    if written != opset:  # one that the exporter cannot write is left at its own, without an error
        fix = f"use {OPSET}"
        raise UsageError(explain("opset", expected="17 or later, and known to the exporter", got=opset, fix=fix))
    return model


def _check_open(model: ModelProto, spec: ModelSpec) -> None:
    """Refuse a graph that holds the example's size where a side is to be open: the exporter says nothing then."""
    for value, item in zip(model.graph.input, spec.graph_inputs, strict=True):
        sides = zip(item.shape, value.type.tensor_type.shape.dim, strict=True)
        fixed = [
            f"{side} fixed at {found.dim_value}" for side, found in sides if isinstance(side, str) and found.dim_value
        ]
        if fixed:
            got = f"{', '.join(fixed)}: Python code makes a number of it (as `[0.1] * x.shape[0]` does)"
            fix = "export with a fixed size (without --dynamic), or use tensors (`x.new_full((x.shape[0],), 0.1)`)"
            raise ExportError(explain(f"{item.name} of {spec.name}", expected="open sides", got=got, fix=fix))


@contextlib.contextmanager
def _zero_is_zero() -> Iterator[None]:
    """Keep what is added below a line: onnxscript takes numbers within 1e-8 of 0 for 0, and leaves them out."""
    from export.readings import replaced

    def is_close(value: float, expected: float, *, rel_tol: float, abs_tol: float) -> bool:
        return math.isclose(value, expected, rel_tol=rel_tol)

    with replaced(require("onnxscript.rewriter._matcher", "onnx"), math=SimpleNamespace(isclose=is_close)):
        yield


def _opset_of(model: ModelProto) -> int:
    return int(next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")))


def _samples(spec: ModelSpec, size: tuple[int, int], dynamic: bool) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return example inputs, and their open dimensions: N, and H and W as multiples of what the network needs."""
    import torch
    from torch.export import Dim

    step = spec.size.multiple_of
    least = max(1, -(-spec.size.minimum // step))
    rows, columns = (Dim(name, min=least) for name in ("rows", "columns"))
    dims = {"N": Dim("N"), "H": step * rows if step > 1 else rows, "W": step * columns if step > 1 else columns}
    # An example side of 1 step would be taken for a constant, so a dynamic graph is traced at two steps or more.
    floor = 2 * step if dynamic else 0
    sides = {"N": 2 if dynamic else 1, "H": max(size[0], floor), "W": max(size[1], floor)}
    samples, shapes = [], []
    for item in spec.graph_inputs:
        shape = [sides.get(side, 1) if isinstance(side, str) else side for side in item.shape]
        low, high = item.value_range or (0.0, 1.0)
        samples.append(low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        shapes.append({axis: dims[side] for axis, side in enumerate(item.shape) if isinstance(side, str)})
    return tuple(samples), tuple(shapes)


def _translations() -> dict[Any, Any]:
    """Return our own translation of pixel unshuffle: one SpaceToDepth in place of computed reshapes."""
    import torch

    op = require("onnxscript", "onnx").opset18

    def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
        channels = int(x.shape[1])
        if channels == 1:
            return op.SpaceToDepth(x, blocksize=downscale_factor)
        # ONNX puts the position before the channel, torch the channel first: each channel is a picture of its own here.
        # (A Gather behind one SpaceToDepth is the same, and OpenVINO 2026.4 computes a convolution behind it wrongly.)
        single = op.Reshape(x, op.Constant(value_ints=[-1, 1, 0, 0]))
        folded = op.SpaceToDepth(single, blocksize=downscale_factor)
        return op.Reshape(folded, op.Constant(value_ints=[-1, channels * downscale_factor**2, 0, 0]))

    return {torch.ops.aten.pixel_unshuffle.default: pixel_unshuffle}


def _tidy(model: ModelProto, spec: ModelSpec) -> ModelProto:
    """Simplify, drop what the exporter noted about the source code, name dimensions and layer nodes, check."""
    onnxslim = require("onnxslim", "onnx")
    with quiet():
        model = onnxslim.slim(model)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for field in ("metadata_props", "functions", "doc_string"):
        model.ClearField(field)
    for field in ("metadata_props", "doc_string", "value_info"):
        model.graph.ClearField(field)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for values, specs in ((model.graph.input, spec.graph_inputs), (model.graph.output, spec.outputs)):
        for value, item in zip(values, specs, strict=True):
            for dim, side in zip(value.type.tensor_type.shape.dim, item.shape, strict=True):
                if not dim.HasField("dim_value"):
                    dim.dim_param = str(side)
    names = layer_nodes(model)
    renamed = {node: module for module, node in names.items()}
    for index, node in enumerate(model.graph.node):
        node.name = renamed.get(node.name, f"{node.op_type.lower()}_{index}")
    model.graph.name = spec.name
    model.producer_name, model.producer_version = "pare", ""
    finish(model)
    return model


def layer_nodes(model: ModelProto) -> dict[str, str]:
    """Return {torch module name: node name} of the layers with a weight in a float graph of ``float_onnx``."""
    weights = {item.name for item in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in LAYERS:
            for name in node.input:
                if name in weights and name.endswith(".weight"):
                    found[name.removesuffix(".weight")] = node.name
    return found


def write_onnx(
    model: ModelProto,
    output: Path,
    *,
    artifact: Artifact,
    contract: Contract,
    metadata: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write ``model`` with its contract inside, equal constants once, and the sidecar; ``model`` changes."""
    onnx = require("onnx", "onnx")
    share_constants(model)
    onnx.helper.set_model_props(model, embedded(contract, artifact))
    write_bytes(output, model.SerializeToString())
    content = {
        "contract": contract.to_json(),
        "opset": _opset_of(model),
        "nodes": len(model.graph.node),
        **(metadata or {}),
    }
    return Artifact.create(output, format="onnx", parent=artifact, precision=contract.precision, metadata=content)


def _refuse_half_ort() -> None:
    fix = "choose one of these, or ship the .onnx"
    raise UnsupportedError(explain("precision of an .ort file", expected="fp32 | int8", got="fp16", fix=fix))


def write_ort(artifact: Artifact, *, source: Artifact) -> Artifact:
    """Write ``FILE.ort``, the flat-buffer format of ONNX Runtime Mobile, beside an ONNX artifact, with a sidecar.

    Args:
        artifact: The ONNX artifact.
        source: The ``torch`` artifact that both were exported from.

    Raises:
        UnsupportedError: An FP16 artifact: the format fixes the kernels of the machine that writes it, and on a
            processor without half-precision kernels that turns the graph back to FP32.
        ExportError: The converter failed.
    """
    if artifact.precision is Precision.FP16:
        _refuse_half_ort()
    ort = require("onnxruntime", "onnx")
    output = artifact.path.with_suffix(".ort")
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.add_session_config_entry("session.save_model_format", "ORT")
    settings.log_severity_level = 3
    try:
        with replacing(output) as temporary:
            settings.optimized_model_filepath = str(temporary)
            ort.InferenceSession(str(artifact.path), settings, providers=["CPUExecutionProvider"])
    except PareError:
        raise
    except Exception as error:  # onnxruntime raises its own exceptions, which share no base class
        fix = "leave out the option ort"
        raise ExportError(explain(f"{output.name}", expected="an .ort file", got=error, fix=fix)) from error
    return Artifact.create(
        output, format="onnx", parent=source, precision=artifact.precision, metadata=artifact.metadata
    )


def open_runner(path: Path, *, device: str = "cpu", threads: int | None = None) -> Runner:
    """Load an ONNX artifact in ONNX Runtime; see ``export.open_runner``."""
    from export.ort_runner import OrtRunner

    return OrtRunner(path, device=device, threads=threads)


def can_run(device: str) -> str | None:
    """Return None where ONNX Runtime runs on ``device`` here, else the reason why not."""
    from export.ort_runner import why_not

    return why_not(device)
