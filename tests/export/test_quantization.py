"""One calibration record, three dialects: what is written, what stays float, what engines compute in int8."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import quantization
from export.quantization import Quantization, float_nodes, lower_nncf, lower_qdq, quantization_of, tensor_ranges
from export.quiet import quiet
from models.artifact import Artifact, save_tensors, sha256_of
from models.errors import CheckpointError, ConfigError, UnsupportedError

SIZE = (64, 64)


def record(folder: Path, **changes: Any) -> Quantization:
    path = folder / "calibration.safetensors"
    if not path.exists():
        inputs = torch.rand(4, 1, *SIZE, generator=torch.Generator().manual_seed(0))
        save_tensors({"input": inputs}, path)
    return replace(Quantization(calibration=path, samples=4, sha256=sha256_of(path)), **changes)


@pytest.fixture(scope="module")
def graph(tiny_student: Artifact) -> Any:
    from export.to_onnx import float_onnx

    return float_onnx(tiny_student, input_size=SIZE)


@pytest.fixture(scope="module")
def nodes(graph: Any) -> dict[str, str]:
    from export.to_onnx import layer_nodes

    return layer_nodes(graph)


def optimized(model: Any, folder: Path) -> Counter[str]:
    import onnx
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_the_record_survives_json_and_a_moved_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "run", tmp_path / "new" / "place"
    (old / "stage").mkdir(parents=True)
    made = record(old / "stage", float_layers=("head",), ranges={"head": (-1.0, 2.5)}, coverage={"photos": 3})
    text = json.dumps(made.to_json(old / "artifacts"))
    assert json.loads(text)["calibration"] == "../stage/calibration.safetensors"
    shutil.copytree(old, new)
    (new / "artifacts").mkdir()
    shutil.rmtree(old)
    read = Quantization.from_json(json.loads(text), new / "artifacts")
    assert (read.float_layers, read.ranges, read.coverage) == (made.float_layers, made.ranges, made.coverage)
    assert read.inputs().shape == (4, 1, *SIZE)
    assert read.inputs().dtype == np.float32


def test_an_artifact_without_a_record_is_not_quantized(tiny_student: Artifact) -> None:
    assert quantization_of(tiny_student) is None


@pytest.mark.parametrize("damage", ["missing", "altered", "no tensor"])
def test_calibration_inputs_that_cannot_be_trusted(tmp_path: Path, damage: str) -> None:
    made = record(tmp_path)
    if damage == "missing":
        made.calibration.unlink()
        match = r"calibration inputs: expected file .*, got no such file; fix: keep it beside the artifact"
    elif damage == "altered":
        save_tensors({"input": torch.zeros(4, 1, *SIZE)}, made.calibration)
        match = r"expected sha256 [0-9a-f]{12}, got [0-9a-f]{12}; fix: copy the run folder again"
    else:
        save_tensors({"other": torch.zeros(2)}, made.calibration)
        made = replace(made, sha256="")
        match = r"expected tensor 'input' \(n, C, H, W\), got \{'other': \(2,\)\}"
    with pytest.raises(CheckpointError, match=match):
        made.inputs()


def test_a_record_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantization record: expected calibration, samples, float_layers, got"):
        Quantization.from_json({"samples": 3}, tmp_path)
    with pytest.raises(ConfigError, match="quantization method: expected ptq, got 'magic'"):
        record(tmp_path, method="magic")
    with pytest.raises(ConfigError, match="calibration samples: expected 1 or more, got 0"):
        record(tmp_path, samples=0)


def test_onnxruntime_computes_every_layer_on_integers(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    from onnx import TensorProto

    before = graph.SerializeToString()
    lowered = lower_qdq(graph, record(tmp_path), "onnxruntime", nodes)
    assert graph.SerializeToString() == before
    points = {item.name: item for item in lowered.graph.initializer}
    activations = [node for node in lowered.graph.node if node.op_type == "QuantizeLinear"]
    assert {points[node.input[2]].data_type for node in activations} == {TensorProto.UINT8}
    weights = [item for item in lowered.graph.initializer if item.name.endswith(".weight_quantized")]
    assert len(weights) == len(nodes)
    assert {item.data_type for item in weights} == {TensorProto.INT8}
    scales = [points[item.name.replace("_quantized", "_scale")] for item in weights]
    assert [tuple(scale.dims) for scale in scales] == [(item.dims[0],) for item in weights]
    ran = optimized(lowered, tmp_path)
    assert ran["QLinearConv"] == len(nodes)
    assert ran["Conv"] == ran["FusedConv"] == 0


def test_a_layer_that_stays_float_stays_float(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    lowered = lower_qdq(graph, record(tmp_path, float_layers=("head",)), "onnxruntime", nodes)
    ran = optimized(lowered, tmp_path)
    assert ran["QLinearConv"] == len(nodes) - 1
    assert ran["Conv"] + ran["FusedConv"] == 1
    head = next(node for node in lowered.graph.node if node.name == nodes["head"])
    assert head.input[1] == "head.weight"


def test_products_without_weights_are_not_quantized(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    assert any(node.op_type == "MatMul" for node in graph.graph.node), "the student upsamples by matrix products"
    lowered = lower_qdq(graph, record(tmp_path), "onnxruntime", nodes)
    producers = {name: node.op_type for node in lowered.graph.node for name in node.output}
    last = [node for node in lowered.graph.node if node.op_type == "MatMul"][-1]
    assert "DequantizeLinear" not in {producers.get(name) for name in last.input}


def test_the_tensorrt_dialect_is_symmetric_with_a_float_bias(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    from onnx import TensorProto, numpy_helper

    lowered = lower_qdq(graph, record(tmp_path), "tensorrt", nodes)
    points = {item.name: item for item in lowered.graph.initializer}
    used = [points[node.input[2]] for node in lowered.graph.node if node.op_type.endswith("izeLinear")]
    assert {point.data_type for point in used} == {TensorProto.INT8}
    assert all(not numpy_helper.to_array(point).any() for point in used)
    biases = [node.input[2] for node in lowered.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert biases
    assert {points[name].data_type for name in biases} == {TensorProto.FLOAT}


def test_ranges_are_those_of_the_float_graph_and_measured_once(
    tmp_path: Path, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(tmp_path)
    ranges = tensor_ranges(graph, made)
    inputs = made.inputs()
    assert ranges["input"] == pytest.approx((inputs.min(), inputs.max()))
    monkeypatch.setattr(quantization, "_measure_ranges", lambda *_: pytest.fail("measured twice"))
    assert tensor_ranges(graph, made) == ranges


def test_names_that_do_not_exist(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"float layers: expected .*head.*, got nose; fix: quantize this artifact"):
        float_nodes(record(tmp_path, float_layers=("nose",)), nodes)
    with pytest.raises(UnsupportedError, match=r"INT8 dialect: expected onnxruntime \| tensorrt, got 'coreml'"):
        lower_qdq(graph, record(tmp_path), "coreml", nodes)  # type: ignore[arg-type]


def test_openvino_computes_on_integers(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    import openvino

    def integer_layers(ignored: list[str]) -> int:
        model = openvino.convert_model(io.BytesIO(graph.SerializeToString()))
        with quiet():
            lowered = lower_nncf(model, record(tmp_path), ignored)
        runtime = openvino.Core().compile_model(lowered, "CPU", {"INFERENCE_NUM_THREADS": 1}).get_runtime_model()
        types = [
            op.get_rt_info()["runtimePrecision"].astype(str)
            for op in runtime.get_ops()
            if op.get_rt_info()["layerType"].astype(str) == "Convolution"
        ]
        assert len(types) == len(nodes)
        return sum(kind in ("i8", "u8") for kind in types)

    assert integer_layers([]) == len(nodes)
    model = openvino.convert_model(io.BytesIO(graph.SerializeToString()))
    names = {op.get_friendly_name() for op in model.get_ops()}
    head = next(name for name in (f"{nodes['head']}/WithoutBiases", nodes["head"]) if name in names)
    assert integer_layers([head]) == len(nodes) - 1


def test_an_nncf_preset_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NNCF preset: expected mixed \| performance, got 'fast'"):
        lower_nncf(None, record(tmp_path), [], preset="fast")
