"""The TensorRT target: strongly typed engines; INT8 by explicit symmetric Q/DQ, FP16 cast in the ONNX graph.

Two packages build engines. ``tensorrt`` builds for the GPU that is present. ``tensorrt-rtx`` builds ahead of time on a
machine without one, for chosen compute capabilities, several in one file. Without a GPU nothing of this can run, so
the lowered ONNX graph is kept beside the engine (``NAME.engine.onnx``) and computed by ONNX Runtime for quality.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import cuda
from export.contract import Contract, contract_of, embedded
from export.files import check_output, write_bytes
from export.long_sorts import split_long_sorts
from export.registry import get_target
from export.scatter_sums import write_scatter_sums
from export.screens import kept_names, probes, screen_artifact
from export.to_onnx import float_onnx, lower, record_of
from models.artifact import Artifact, sha256_of
from models.errors import (
    CheckpointError,
    ExportError,
    MissingExtraError,
    UnsupportedError,
    UsageError,
    explain,
    require,
)
from models.progress import NULL_PROGRESS, Progress
from models.spec import Precision

if TYPE_CHECKING:
    from onnx import ModelProto

    from export.quantization import Quantization
    from export.target import Runner

CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
DEFAULT_CAPABILITY = "sm89"
MAX_BATCH = 4
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


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
    """Build an engine from a ``torch`` artifact; see ``export.to_onnx.export`` for the arguments and errors.

    A dynamic engine has one optimization profile: from the network's smallest size to ``max_size`` (default: twice
    ``input_size``), best at ``input_size``, batches of 1 to 4.

    Raises:
        MissingExtraError: Neither ``tensorrt`` nor ``tensorrt-rtx`` is installed.
        UsageError: An unknown compute capability.
        ExportError: The parser or the builder refused the graph; its log is quoted.
    """
    target = get_target("tensorrt")
    target.check_precision(precision)
    output = check_output(output, target)
    given = target.check_options(options)
    package, capabilities = _choose(given.get("compute_capability"))
    contract = contract_of(artifact, precision=precision, input_size=input_size, dynamic=dynamic)
    profile = _profile(contract, given.get("max_size")) if dynamic else None
    with progress.track(f"TensorRT {precision}", total=3) as bar:
        model = float_onnx(artifact, input_size=input_size, dynamic=dynamic)
        split_long_sorts(model)
        screens = screen_artifact(artifact, input_size)
        notes: dict[str, Any] = {"screens": screens.to_json()}
        if precision is Precision.FP16:
            from export.onnx_half import to_half

            photos = probes(artifact, input_size)
            model, notes["kept_fp32"] = to_half(
                model, contract, keep=kept_names(given), layers_only=screens.layers_only, photos=photos
            )
        elif precision is Precision.INT8:
            record = record_of(artifact, quantization)
            model = lower(model, record, "tensorrt", contract)
            notes["quantization"] = record.to_json(output.parent)
        write_scatter_sums(model)
        bar.advance()
        model.graph.name = json.dumps(embedded(contract, artifact))  # the engine keeps the name of its graph
        engine, cached = _build(package, model, capabilities, profile, given.get("timing_cache"))
        bar.advance()
        notes.update(package=package, timing_cache=cached, profile=profile)
        created = _write(engine, model, output, artifact, contract, {**notes, "compute_capability": capabilities})
        bar.advance()
    return created


def _choose(requested: str | Sequence[str] | None) -> tuple[str, list[str]]:
    """Return the package to build with, and the compute capabilities (empty: of the GPU that is present)."""
    text = [requested] if isinstance(requested, str) else list(requested or ())
    wanted = [item.strip().lower() for part in text for item in part.split(",") if item.strip()]
    if unknown := [item for item in wanted if item not in CAPABILITIES]:
        fix = "choose of these (SM90 is not a GPU of tensorrt-rtx)"
        raise UsageError(
            explain("compute capability", expected=" | ".join(CAPABILITIES), got=", ".join(unknown), fix=fix)
        )
    present = [name for name, module in _PACKAGES.items() if importlib.util.find_spec(module)]
    if cuda.why_no_gpu() is None and "tensorrt" in present and not wanted:
        return "tensorrt", []
    if "tensorrt-rtx" not in present:
        raise MissingExtraError("tensorrt", "tensorrt_rtx")
    return "tensorrt-rtx", list(dict.fromkeys(wanted)) or [DEFAULT_CAPABILITY]


def _profile(contract: Contract, limit: Any) -> dict[str, list[list[int]]]:
    """Return {input: [smallest, best, largest] shape} of a dynamic engine."""
    height, width = contract.input_size
    if limit is None:
        largest = (2 * height, 2 * width)
    else:
        parts = [str(side) for side in (limit if isinstance(limit, (list, tuple)) else str(limit).split("x"))]
        if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
            fix = "write 1024x1024"
            raise UsageError(explain("option max_size", expected="HEIGHTxWIDTH", got=repr(limit), fix=fix))
        largest = (int(parts[0]), int(parts[-1]))
    contract.size.check(*largest)
    if largest[0] < height or largest[1] < width:
        got, fix = f"{largest[0]}x{largest[1]}", "raise max_size"
        raise UsageError(explain("option max_size", expected=f"at least {height}x{width}", got=got, fix=fix))
    smallest = contract.size.fit(1, 1)
    shapes = {}
    for spec in contract.inputs:
        if len(spec.shape) == 1:  # a control
            shapes[spec.name] = [[int(side) for side in spec.shape]] * 3
            continue
        channels = spec.shape[1]
        if not isinstance(channels, int):
            fix = "give its TensorSpec the number of channels"
            raise ExportError(
                explain(f"input {spec.name!r}", expected="a fixed number of channels", got=channels, fix=fix)
            )
        rows = ((1, smallest), (1, (height, width)), (MAX_BATCH, largest))
        shapes[spec.name] = [[batch, channels, *size] for batch, size in rows]
    return shapes


def _build(
    package: str,
    model: ModelProto,
    capabilities: list[str],
    profile: Mapping[str, list[list[int]]] | None,
    cache: str | Path | None,
) -> tuple[bytes, str]:
    """Return the serialized engine, and in words what became of the timing cache."""
    trt = require(_PACKAGES[package], "tensorrt")
    log = cuda.make_log(trt)
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    network.name = model.graph.name
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        got = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors) or "no message"
        fix = "see the message; write the layer otherwise, or keep it in higher precision"
        raise ExportError(explain(f"{package} parser", expected="a graph that it takes", got=got, fix=fix))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 with the mantissa of FP16
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    if profile is not None:
        shapes = builder.create_optimization_profile()
        for name, (smallest, best, largest) in profile.items():
            shapes.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(shapes)
    timing = _load_cache(package, config, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        fix = "see the message" if capabilities else "run on a machine with an NVIDIA GPU, or use tensorrt-rtx"
        got = log.last() or "no message"
        raise ExportError(explain(f"{package} builder", expected="an engine", got=got, fix=fix))
    if timing is not None and cache is not None:
        write_bytes(Path(cache), bytes(config.get_timing_cache().serialize()))
    return bytes(engine), _cache_words(package, timing, cache)


def _load_cache(package: str, config: Any, cache: str | Path | None) -> Any:
    if package != "tensorrt" or cache is None:
        return None
    path = Path(cache)
    timing = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(timing, ignore_mismatch=False)
    return timing


def _cache_words(package: str, timing: Any, cache: str | Path | None) -> str:
    if package == "tensorrt-rtx":
        return "none: tensorrt-rtx times nothing when it builds (its timing cache is a no-op since 1.2)"
    return f"kept in {cache}" if timing is not None else "not asked for (option timing_cache)"


def _write(
    engine: bytes,
    model: ModelProto,
    output: Path,
    artifact: Artifact,
    contract: Contract,
    notes: Mapping[str, Any],
) -> Artifact:
    require("onnx", "onnx").helper.set_model_props(model, embedded(contract, artifact))
    lowered = lowered_of(output)
    write_bytes(lowered, model.SerializeToString())
    write_bytes(output, engine)
    metadata = {
        "contract": contract.to_json(),
        "lowered": lowered.name,
        "lowered_sha256": sha256_of(lowered),
        **notes,
    }
    return Artifact.create(output, format="tensorrt", parent=artifact, precision=contract.precision, metadata=metadata)


def lowered_of(path: Path) -> Path:
    """Return where the ONNX graph lies that the engine ``path`` was built from."""
    return path.with_name(path.name + ".onnx")


def open_runner(path: Path, *, device: str = "cuda", threads: int | None = None) -> Runner:
    """Load an engine on the GPU; see ``export.open_runner``. ``threads`` means nothing here."""
    if reason := can_run(device):
        fix = (
            "run it on a machine with an NVIDIA GPU (python -m benchmarks run BUNDLE); open_emulated gives its answers"
        )
        raise UnsupportedError(explain("tensorrt", expected="an NVIDIA GPU and a runtime", got=reason, fix=fix))
    from export.tensorrt_runner import TensorRtRunner

    return TensorRtRunner(path)


def open_emulated(path: Path, *, threads: int | None = None) -> Runner:
    """Compute the graph that the engine was built from with ONNX Runtime on the processor.

    Q/DQ graphs quantize the same values with the same scales; of an FP16 graph every result is rounded to half
    precision. Sums are in FP32, in another order than the GPU's.

    Raises:
        CheckpointError: The graph beside the engine is missing or was altered.
    """
    from export.emulate import open_rounded

    artifact = Artifact.load(path)
    lowered = path.with_name(str(artifact.metadata.get("lowered", lowered_of(path).name)))
    got = sha256_of(lowered) if lowered.is_file() else "no such file"
    if got != artifact.metadata.get("lowered_sha256"):
        fix = "keep it beside the engine, or export again"
        raise CheckpointError(explain(f"{lowered}", expected="the graph of the engine", got=got[:12], fix=fix))
    why = can_run("cuda") or "emulation was asked for"
    reason = f"the engine's ONNX graph computed by ONNX Runtime on the processor: {why}"
    return open_rounded(lowered, threads=threads, reason=reason)


def can_run(device: str) -> str | None:
    """Return None where engines run here, else exactly what is absent: GPU, driver, runtime or CUDA build of torch."""
    if not any(importlib.util.find_spec(module) for module in _PACKAGES.values()):
        return "neither tensorrt nor tensorrt-rtx is installed (pip install 'pare[tensorrt]')"
    return cuda.why_no_gpu() or cuda.why_no_memory()
