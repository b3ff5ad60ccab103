"""One calibration record, its dialects: what is written, what stays float, what engines compute in int8."""

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

from export import graph_ranges
from export.calibration import calibrated_at
from export.graph_ranges import activation_ranges, typical_range
from export.nncf_lowering import levels, lower_nncf
from export.qdq_lowering import float_nodes, lower_qdq
from export.quantization import Quantization, quantization_of
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
    tmp_path: Path, graph: Any, nodes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(tmp_path)
    ranges = activation_ranges(graph, made, nodes)
    inputs = made.inputs()
    assert ranges["input"] == pytest.approx((inputs.min(), inputs.max()))
    monkeypatch.setattr(graph_ranges, "_measure_ranges", lambda *_: pytest.fail("measured twice"))
    assert activation_ranges(graph, made, nodes) == ranges


def test_a_photo_that_is_far_from_all_others_does_not_count() -> None:
    usual = [3.0, 2.0, 2.5] * 3
    assert typical_range([0.0, -1.0, -2.0] * 3 + [-50.0], [*usual, 400.0]) == (-2.0, 3.0)
    assert typical_range([0.0] * 9, [*usual[1:], 400.0]) == (0.0, 400.0), "one of nine is no exception"
    assert typical_range([0.0] * 10, [1.0] * 7 + [9.0, 60.0, 70.0]) == (0.0, 60.0), "two of ten are no exceptions"
    assert typical_range([0.0, 0.0], [1.0, 3.9]) == (0.0, 3.9), "nothing is strange where photos differ as usual"
    assert typical_range([0.0, 0.0, 0.0], [0.0, 0.0, 7.0]) == (0.0, 7.0), "mostly silent: all that there is counts"


def test_a_strange_calibration_photo_widens_no_range(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    made = record(tmp_path)
    usual = activation_ranges(graph, made, nodes)
    inputs = torch.from_numpy(made.inputs())
    save_tensors({"input": torch.cat([inputs.repeat(3, 1, 1, 1), 400 * inputs[:1]])}, tmp_path / "strange.safetensors")
    strange = activation_ranges(graph, replace(made, calibration=tmp_path / "strange.safetensors", sha256=""), nodes)
    assert strange.keys() == usual.keys()
    assert all(strange[name] == pytest.approx(usual[name], rel=1e-4, abs=1e-6) for name in usual)


def fitted(folder: Path, nodes: dict[str, str]) -> Quantization:
    """A record with a range a layer, and a correction of 0.5 for every channel of the head."""
    made = record(folder)
    path = folder / "corrected.safetensors"
    save_tensors({**made.tensors(), "correction.head": torch.full((2,), 0.5)}, path)
    return replace(made, calibration=path, sha256=sha256_of(path), ranges=dict.fromkeys(nodes, (-2.0, 3.1)))


def test_a_float_layer_reads_what_its_fitted_range_would_cut(tmp_path: Path, graph: Any, nodes: dict[str, str]) -> None:
    made = fitted(tmp_path, nodes)
    head = next(node.input[0] for node in graph.graph.node if node.name == nodes["head"])
    assert activation_ranges(graph, made, nodes)[head] == (-2.0, 3.1)
    typical = activation_ranges(graph, record(tmp_path), nodes)[head]
    assert activation_ranges(graph, replace(made, float_layers=("head",)), nodes)[head] == pytest.approx(typical)


def test_the_corrections_of_layers_that_are_not_float(tmp_path: Path, nodes: dict[str, str]) -> None:
    made = fitted(tmp_path, nodes)
    assert {name: value.tolist() for name, value in made.bias_corrections().items()} == {"head": [0.5, 0.5]}
    assert replace(made, float_layers=("head",)).bias_corrections() == {}
    with calibrated_at(made, (32, 32), dynamic=False) as small:
        assert small.inputs().shape == (4, 1, 32, 32)
        assert list(small.bias_corrections()) == ["head"], "a resized calibration keeps them"


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_layers_get_the_ranges_and_corrections_of_the_record(
    tmp_path: Path, graph: Any, nodes: dict[str, str], dialect: Any
) -> None:
    from onnx import numpy_helper

    lowered = lower_qdq(graph, fitted(tmp_path, nodes), dialect, nodes)
    values = {item.name: numpy_helper.to_array(item) for item in lowered.graph.initializer}
    makers = {name: node for node in lowered.graph.node for name in node.output}
    convolutions = {node.name: node for node in lowered.graph.node}
    for node in nodes.values():
        rounding = makers[convolutions[node].input[0]]
        expected = 3.1 / 127 if dialect == "tensorrt" else 5.1 / 255
        assert rounding.op_type == "DequantizeLinear"
        assert values[rounding.input[1]] == pytest.approx(expected, rel=1e-4)
    before = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    old = before[next(node for node in graph.graph.node if node.name == nodes["head"]).input[2]]
    bias = convolutions[nodes["head"]].input[2]
    if dialect == "tensorrt":
        found = values[bias]
    else:
        integers, scale = makers[bias].input[:2]
        found = values[integers] * values[scale]
    assert found == pytest.approx(old + 0.5, abs=1e-3)


def test_a_linear_layer_is_corrected_where_its_bias_is_added(tmp_path: Path) -> None:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = np.eye(3, dtype=np.float32), np.ones(3, np.float32)
    steps = [helper.make_node("MatMul", ["x", "mix.weight"], ["y"], name="mix")]
    steps.append(helper.make_node("Add", ["mix.bias", "y"], ["z"], name="add"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 3]) for name in "xz"]
    constants = [numpy_helper.from_array(weight, "mix.weight"), numpy_helper.from_array(bias, "mix.bias")]
    parts = helper.make_graph(steps, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(parts, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "calibration.safetensors"
    save_tensors({"input": torch.rand(2, 1, 4, 3), "correction.mix": torch.full((3,), 0.25)}, path)
    items = replace(Quantization(calibration=path, samples=2), ranges={"mix": (0.0, 1.0)})
    lowered = lower_qdq(model, items, "tensorrt", {"mix": "mix"})
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    x = items.inputs()[:1]
    assert session.run(None, {"x": x})[0] == pytest.approx(x + 1.25, abs=0.03)


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
            lowered = lower_nncf(model, graph, record(tmp_path), nodes, ignored)
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


def normed_graph(folder: Path, steps: list[Any], values: dict[str, Any], *others: Any) -> tuple[Any, Quantization]:
    """A graph from ``x`` to ``y``, both (1, 8, 16, 16), with a norm between two convolutions, and its record."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 16, 16]) for name in "xy"]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    parts = helper.make_graph(steps, "g", ends[:1], ends[1:], [*constants, *others])
    save_tensors({"input": torch.rand(2, 8, 16, 16)}, path := folder / "calibration.safetensors")
    model = helper.make_model(parts, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return model, Quantization(calibration=path, samples=2)


def test_what_goes_into_a_norm_is_not_rounded(tmp_path: Path) -> None:
    import openvino
    from onnx import helper

    rng = np.random.default_rng(0)
    steps = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"], name="norm"),
        helper.make_node("Conv", ["b", "last.weight"], ["y"], name="last", pads=[1, 1, 1, 1]),
    ]
    values = {f"{name}.weight": rng.standard_normal((8, 8, 3, 3)) for name in ("first", "last")}
    values.update(scale=np.ones(8), shift=np.zeros(8))
    normed, made = normed_graph(tmp_path, steps, values)
    with quiet():
        model = openvino.convert_model(io.BytesIO(normed.SerializeToString()))
        lowered = lower_nncf(model, normed, made, {"first": "first", "last": "last"}, [])
    operations = [op for op in lowered.get_ordered_ops() if op.inputs()]
    read = {op.get_type_name(): op.input_value(0).get_node().get_type_name() for op in operations}
    assert read["MVN"] != "FakeQuantize"
    assert read["Convolution"] == "FakeQuantize"


@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_nothing_in_a_norm_that_is_written_out_is_rounded(tmp_path: Path, square: str) -> None:
    import openvino
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    make = helper.make_node
    steps = [
        make("Conv", ["x", "first.weight"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make("ReduceMean", ["a", "places"], ["mean"], name="mean"),
        make("Sub", ["a", "mean"], ["c"], name="sub"),
        make(square, ["c", "c" if square == "Mul" else "two"], ["s"], name="square"),
        make("ReduceMean", ["s", "places"], ["variance"], name="variance"),
        make("Mul", ["variance", "factor"], ["unbiased"], name="factor"),  # or the converter makes one norm of it all
        make("Add", ["unbiased", "epsilon"], ["v"], name="add"),
        make("Sqrt", ["v"], ["deviation"], name="sqrt"),
        make("Div", ["c", "deviation"], ["b"], name="div"),
        make("Conv", ["b", "last.weight"], ["y"], name="last", pads=[1, 1, 1, 1]),
    ]
    values = {f"{name}.weight": rng.standard_normal((8, 8, 3, 3)) for name in ("first", "last")}
    values["first.weight"][0] *= 1e-3  # a weak channel: its deviation is no level of INT8
    values.update(epsilon=np.full(1, 1e-8), two=np.full(1, 2.0), factor=np.full(1, 256 / 255))
    normed, made = normed_graph(tmp_path, steps, values, numpy_helper.from_array(np.array([2, 3]), "places"))
    with quiet():
        model = openvino.convert_model(io.BytesIO(normed.SerializeToString()))
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        want = openvino.compile_model(model.clone(), "CPU", exact)(made.inputs()[:1])[0]
        lowered = lower_nncf(model, normed, made, {"first": "first", "last": "last"}, [])
        got = openvino.compile_model(lowered, "CPU", exact)(made.inputs()[:1])[0]
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.5 * want.std(), "1.1 and more with the variance in INT8"
    kinds = ("ReduceMean", "Subtract", "Sqrt", "Divide", "Power")
    read = {
        op.get_type_name(): {value.get_node().get_type_name() for value in op.input_values()}
        for op in lowered.get_ordered_ops()
    }
    assert not any("FakeQuantize" in read.get(kind, set()) for kind in kinds)
    assert "FakeQuantize" in read["Convolution"]


def test_an_nncf_preset_that_does_not_exist(tmp_path: Path) -> None:
    import onnx

    with pytest.raises(ConfigError, match=r"NNCF preset: expected mixed \| performance, got 'fast'"):
        lower_nncf(None, onnx.ModelProto(), record(tmp_path), {}, [], preset="fast")


def test_openvino_gets_the_ranges_and_corrections_of_the_record(
    tmp_path: Path, graph: Any, nodes: dict[str, str]
) -> None:
    import openvino

    def answer(made: Quantization) -> tuple[Any, Any]:
        model = openvino.convert_model(io.BytesIO(graph.SerializeToString()))
        with quiet():
            lowered = lower_nncf(model, graph, made, nodes, [])
        compiled = openvino.Core().compile_model(lowered, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lowered, compiled(made.inputs()[:1])[0]

    made = fitted(tmp_path, nodes)
    lowered, corrected = answer(made)
    plain = answer(replace(made, calibration=tmp_path / "calibration.safetensors", sha256=""))[1]
    low, high = levels(-2.0, 3.1)
    rounded = [op for op in lowered.get_ops() if op.get_type_name() == "FakeQuantize"]
    tops = [float(op.input_value(2).get_node().data.reshape(-1)[0]) for op in rounded]
    assert sum(top == pytest.approx(high) for top in tops) >= len({graph_input(graph, node) for node in nodes.values()})
    assert low < 0 < high
    assert corrected - plain == pytest.approx(np.full_like(plain, 0.5), abs=1e-4)


def graph_input(graph: Any, node: str) -> str:
    return str(next(item for item in graph.graph.node if item.name == node).input[0])


def test_256_levels_by_hand() -> None:
    assert levels(0.0, 5.0) == (0.0, 5.0)
    assert levels(-1.0, 1.0, symmetric=True) == (pytest.approx(-128 / 127), 1.0)
    low, high = levels(-2.0, 3.1)
    assert (low, high) == (pytest.approx(-2.0), pytest.approx(3.1))
    low, high = levels(-1.0, 1.0)
    scale = (high - low) / 255
    assert low <= -1.0
    assert high >= 1.0
    assert -low / scale == pytest.approx(round(-low / scale)), "zero is a level"
