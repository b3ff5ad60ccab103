"""The TensorRT target: engines are really built; without a GPU their graphs stand in."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import export
from export import cuda
from models.artifact import Artifact
from models.errors import (
    CheckpointError,
    ExportError,
    InputSizeError,
    MissingExtraError,
    UnsupportedError,
    UsageError,
)
from models.spec import Precision

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from export import to_tensorrt  # noqa: E402

Exporter = Callable[..., Artifact]
SIZE = (64, 64)
needs_no_gpu = pytest.mark.skipif(cuda.why_no_gpu() is None, reason="this machine has a GPU")


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_engine_is_built_ahead_of_time_and_its_graph_kept(precision: Precision, exported: Exporter) -> None:
    made = exported("tensorrt", precision, options={"compute_capability": "sm89"})
    assert made.path.stat().st_size > 10_000
    assert b"cielab-l/100" in made.path.read_bytes()
    assert made.metadata["package"] == "tensorrt-rtx"
    assert made.metadata["compute_capability"] == ["sm89"]
    assert made.metadata["timing_cache"].startswith("none: tensorrt-rtx times nothing")
    lowered = made.path.with_name(made.metadata["lowered"])
    assert lowered == to_tensorrt.lowered_of(made.path)
    types_of = {item.data_type for item in onnx.load(lowered).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in types_of) == (precision is Precision.FP16)
    assert (kinds(lowered)["QuantizeLinear"] > 0) == (precision is Precision.INT8)


def test_int8_is_symmetric_with_a_float_bias(exported: Exporter) -> None:
    made = exported("tensorrt", Precision.INT8, options={"compute_capability": "sm89"})
    graph = onnx.load(to_tensorrt.lowered_of(made.path)).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    points = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    biases = [node.input[2] for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert biases
    assert all(values[name].dtype == np.float32 for name in biases)


def test_several_gpus_in_one_file(tiny_student: Artifact, tmp_path: Path) -> None:
    one = to_tensorrt.export(tiny_student, tmp_path / "one.engine", input_size=SIZE)
    two = to_tensorrt.export(
        tiny_student, tmp_path / "two.engine", input_size=SIZE, options={"compute_capability": ["sm80", "SM120,sm80"]}
    )
    assert one.metadata["compute_capability"] == ["sm89"]
    assert two.metadata["compute_capability"] == ["sm80", "sm120"]
    assert one.sha256 != two.sha256


def test_open_sizes_have_a_profile(exported: Exporter) -> None:
    made = exported("tensorrt", dynamic=True)
    assert made.metadata["profile"] == {"input": [[1, 1, 32, 32], [1, 1, 64, 64], [4, 1, 128, 128]]}


@pytest.mark.parametrize(
    ("options", "dynamic", "error", "text"),
    [
        ({"compute_capability": "sm90"}, False, UsageError, r"expected sm75 \| .* got sm90; fix: choose of these"),
        ({"max_size": "32x32"}, True, UsageError, "option max_size: expected at least 64x64, got 32x32"),
        ({"max_size": "100"}, True, InputSizeError, "multiple of 32, got 100x100"),
        ({"max_size": "big"}, True, UsageError, "option max_size: expected HEIGHTxWIDTH, got 'big'"),
        ({"workspace": 1}, False, UsageError, r"expected compute_capability \| keep_fp32 \| timing_cache \| max_size"),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(
    options: dict[str, object], dynamic: bool, error: type[Exception], text: str, tiny_student: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        to_tensorrt.export(tiny_student, tmp_path / "a.engine", input_size=SIZE, dynamic=dynamic, options=options)
    assert list(tmp_path.iterdir()) == []


@needs_no_gpu
def test_without_a_gpu_the_runner_says_what_is_absent(exported: Exporter) -> None:
    path = exported("tensorrt").path
    reason = export.can_run(path)
    assert reason is not None
    assert "so no GPU to run an engine on" in reason or "shows no GPU" in reason
    with pytest.raises(
        UnsupportedError, match=r"expected an NVIDIA GPU and a runtime, got .*; fix: run it on a machine"
    ):
        export.open_runner(path)
    with pytest.raises(UnsupportedError, match="device of target tensorrt: expected cuda, got 'cpu'"):
        export.open_runner(path, "cpu")


def test_emulation_is_labelled_and_refuses_an_exchanged_graph(exported: Exporter, tmp_path: Path) -> None:
    made = exported("tensorrt", Precision.FP16)
    with export.open_emulated(made.path, threads=1) as runner:
        assert runner.emulated
        assert str(runner.reason).startswith("the engine's ONNX graph computed by ONNX Runtime on the processor: ")
        assert runner.infer({"input": np.zeros((1, 1, *SIZE), np.float32)})["output"].shape == (1, 2, *SIZE)
    copy = tmp_path / made.path.name
    for path in (made.path, made.path.with_name(made.path.name + ".json")):
        copy.with_name(path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="expected the graph of the engine, got no such file; fix: keep it"):
        export.open_emulated(copy)
    to_tensorrt.lowered_of(copy).write_bytes(b"another graph")
    with pytest.raises(CheckpointError, match=r"expected the graph of the engine, got [0-9a-f]{12}; fix"):
        export.open_emulated(copy)


def test_parser_that_refuses_is_quoted(tiny_student: Artifact, tmp_path: Path) -> None:
    from export.to_onnx import float_onnx

    model = float_onnx(tiny_student, input_size=SIZE)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"tensorrt-rtx parser: expected a graph that it takes, got .*NoSuchOperator"):
        to_tensorrt._build("tensorrt-rtx", model, ["sm89"], None, None)


@needs_no_gpu
def test_builder_that_refuses_is_quoted(tiny_student: Artifact) -> None:
    from export.to_onnx import float_onnx

    with pytest.raises(ExportError, match=r"tensorrt-rtx builder: expected an engine, got .*CUDA driver"):
        to_tensorrt._build("tensorrt-rtx", float_onnx(tiny_student, input_size=SIZE), ["current"], None, None)


def test_without_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pare\[tensorrt\]'"):
        to_tensorrt._choose(None)
    assert (
        to_tensorrt.can_run("cuda") == "neither tensorrt nor tensorrt-rtx is installed (pip install 'pare[tensorrt]')"
    )


def test_with_a_gpu_the_full_package_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: None)
    assert to_tensorrt._choose(None) == ("tensorrt", [])
    assert to_tensorrt._choose("sm86") == ("tensorrt-rtx", ["sm86"])


def test_timing_cache_of_the_full_package_is_kept(tmp_path: Path) -> None:
    loaded: list[bytes] = []

    class Config:
        def create_timing_cache(self, content: bytes) -> bytes:
            loaded.append(content)
            return b"cache"

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
            assert (cache, ignore_mismatch) == (b"cache", False)

    path = tmp_path / "timing.cache"
    assert to_tensorrt._load_cache("tensorrt", Config(), path) == b"cache"
    path.write_bytes(b"timings")
    to_tensorrt._load_cache("tensorrt", Config(), path)
    assert loaded == [b"", b"timings"]
    assert to_tensorrt._load_cache("tensorrt-rtx", Config(), path) is None
    assert to_tensorrt._cache_words("tensorrt", b"cache", path) == f"kept in {path}"


def fake_runtime(limit: int) -> types.ModuleType:
    """A TensorRT whose engine doubles the input into both output channels, on host memory."""
    import ctypes

    class Context:
        def __init__(self) -> None:
            self.shape: tuple[int, ...] = ()
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shape = tuple(shape)
            return shape[2] <= limit

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.shape[0], 2, *self.shape[2:])

        def set_tensor_address(self, name: str, address: int) -> None:
            self.addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            count = int(np.prod(self.shape))
            source = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["input"]))
            result = np.ctypeslib.as_array((ctypes.c_float * (2 * count)).from_address(self.addresses["output"]))
            result[:] = np.concatenate([source, source]) * 2
            return True

    class Engine:
        def create_execution_context(self) -> Context:
            return Context()

    class Runtime:
        def __init__(self, log: object) -> None: ...

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            return Engine() if content else None

    module = types.ModuleType("tensorrt_rtx")
    module.__version__ = "0.0"
    module.ILogger, module.Runtime = trt.ILogger, Runtime
    return module


def test_runner_hands_shapes_and_addresses_to_the_engine(exported: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import tensorrt_runner

    made = exported("tensorrt", dynamic=True)
    monkeypatch.setattr(tensorrt_runner, "require", lambda module, extra: fake_runtime(128))
    with tensorrt_runner.TensorRtRunner(made.path, memory="cpu") as runner:
        x = np.random.default_rng(0).random((1, 1, 32, 96), np.float32)
        answer = runner.infer({"input": x})["output"]
        assert np.array_equal(answer, np.concatenate([x, x], axis=1) * 2)
        assert (runner.device, runner.runtime, runner.emulated) == ("cuda", "tensorrt-rtx 0.0", False)
        with pytest.raises(
            InputSizeError, match=r"expected a shape within .*128, 128\]\], got .*; fix: export with a larger"
        ):
            runner.infer({"input": np.zeros((1, 1, 256, 32), np.float32)})


def test_engine_of_another_gpu_says_which_it_was_built_for(exported: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import tensorrt_runner

    runtime = fake_runtime(128)
    monkeypatch.setattr(runtime.Runtime, "deserialize_cuda_engine", lambda self, content: None)
    monkeypatch.setattr(tensorrt_runner, "require", lambda module, extra: runtime)
    with pytest.raises(UnsupportedError, match="expected a GPU of sm89, got no message; fix: export with"):
        tensorrt_runner.TensorRtRunner(exported("tensorrt").path, memory="cpu")
