"""The OpenVINO target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import export
from models.artifact import Artifact
from models.errors import CheckpointError, ExportError, UnsupportedError, UsageError
from models.spec import Precision

ov = pytest.importorskip("openvino")
pytest.importorskip("nncf")

from export import to_openvino  # noqa: E402

Exporter = Callable[..., Artifact]
SIZE = (64, 64)


def read(made: Artifact) -> object:
    return ov.Core().read_model(str(made.path / "model.xml"))


def kinds(made: Artifact) -> Counter[str]:
    return Counter(item.get_type_name() for item in read(made).get_ops())


def makers(node: object) -> set[str]:
    """Return the friendly names of everything that leads to ``node``."""
    found, waiting = set(), [node]
    while waiting:
        for value in waiting.pop().input_values():
            if value.get_node().get_friendly_name() not in found:
                found.add(value.get_node().get_friendly_name())
                waiting.append(value.get_node())
    return found


def test_artifact_is_a_folder_whose_hash_covers_graph_and_weights(exported: Exporter, tmp_path: Path) -> None:
    made = exported("openvino")
    assert sorted(path.name for path in made.path.iterdir()) == ["model.bin", "model.xml"]
    copy = tmp_path / made.path.name
    copy.mkdir()
    for path in made.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    sidecar = made.path.with_name(made.path.name + ".json")
    copy.with_name(sidecar.name).write_text(sidecar.read_text())
    assert Artifact.load(copy).sha256 == made.sha256
    weights = bytearray((copy / "model.bin").read_bytes())
    weights[0] ^= 1
    (copy / "model.bin").write_bytes(weights)
    with pytest.raises(CheckpointError, match="expected sha256"):
        export.open_runner(copy)


@pytest.mark.parametrize(
    ("precision", "arithmetic"),
    [(Precision.FP32, "fp32"), (Precision.FP16, "fp16"), (Precision.BF16, "bf16"), (Precision.INT8, "fp32")],
)
def test_contract_and_arithmetic_are_inside(precision: Precision, arithmetic: str, exported: Exporter) -> None:
    made = exported("openvino", precision)
    model = read(made)
    assert model.get_rt_info(["pare", "model"]).astype(str) == "chroma_unet"
    assert model.get_rt_info(["pare", "precision"]).astype(str) == precision.value
    assert model.get_rt_info(["pare", "inference_precision"]).astype(str) == arithmetic
    assert model.get_rt_info(["pare", "parent_sha256"]).astype(str) == made.parent_sha256
    assert "CIELab" in model.get_rt_info(["pare", "color_contract"]).astype(str)
    assert made.metadata["inference_precision"] == arithmetic
    types = {item.get_element_type().get_type_name() for item in model.get_ops() if item.get_type_name() == "Constant"}
    assert ("f16" in types) == (precision in (Precision.FP16, Precision.BF16))


def test_int8_quantizes_all_but_the_float_layers(exported: Exporter) -> None:
    model = read(exported("openvino", Precision.INT8))
    weights = {}
    for item in model.get_ops():
        if item.get_type_name() == "Convolution":
            source = item.input_value(1).get_node()
            weights[item.get_friendly_name().split("/")[0]] = source.get_type_name()
    assert weights.pop("head") == "Constant"
    assert set(weights.values()) == {"Multiply"}  # int8 weights times their scale
    assert kinds(exported("openvino", Precision.INT8))["FakeQuantize"] >= len(weights)


def test_calibration_measures_tensors_in_the_order_they_are_made(
    quantized_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is measured, and not the answer of the network, is made before what is measured earlier."""
    from nncf.common.factory import EngineFactory

    compiled = []

    def create(model: object) -> object:
        compiled.append(model)
        return own(model)

    own = EngineFactory.create
    monkeypatch.setattr(EngineFactory, "create", staticmethod(create))
    made = to_openvino.export(quantized_student, tmp_path / "s.openvino", precision=Precision.INT8, input_size=SIZE)
    assert made.path.exists()
    assert EngineFactory.create is create
    (model,) = compiled
    results = [result.input_value(0).get_node() for result in model.get_results()]
    assert len(results) > 10
    assert results[-1].get_type_name() not in ("ReduceMin", "ReduceMax")
    for index, later in enumerate(results):
        needed = makers(later)
        source = {value.get_node().get_friendly_name() for value in later.input_values()}
        measured = {one.input_value(0).get_node().get_friendly_name() for one in results[index + 1 : -1]}
        assert not (needed - source) & measured


def test_fp32_computes_in_fp32_and_bf16_does_not(exported: Exporter) -> None:
    x = {"input": np.random.default_rng(0).random((1, 1, *SIZE), np.float32)}
    answers = {}
    for precision in (Precision.FP32, Precision.BF16):
        with export.open_runner(exported("openvino", precision).path, threads=1) as runner:
            answers[precision] = runner.infer(x)["output"]
            assert runner.threads == 1
            assert runner.runtime.startswith("openvino 20")
    with export.open_runner(exported("onnx").path, threads=1) as runner:
        exact = runner.infer(x)["output"]
    assert np.abs(answers[Precision.FP32] - exact).max() < 1e-5
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert np.abs(answers[Precision.BF16] - exact).max() > 1e-4


def test_answers_are_the_callers(exported: Exporter) -> None:
    rng = np.random.default_rng(0)
    with export.open_runner(exported("openvino").path, threads=1) as runner:
        first = runner.infer({"input": rng.random((1, 1, *SIZE), np.float32)})["output"]
        before = first.copy()
        runner.infer({"input": rng.random((1, 1, *SIZE), np.float32)})
    assert np.array_equal(first, before)


def test_strided_input_is_read_right(exported: Exporter) -> None:
    wide = np.random.default_rng(0).random((1, 1, 64, 128), np.float32)
    view = wide[..., ::2]
    with export.open_runner(exported("openvino").path, threads=1) as runner:
        assert np.array_equal(runner.infer({"input": view})["output"], runner.infer({"input": view.copy()})["output"])


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("a.xml", {}, UsageError, r"expected a name in \.openvino, got a\.xml"),
        (
            "a.openvino",
            {"options": {"inference_precision": "fp64"}},
            UsageError,
            r"option inference_precision: expected fp32 \| bf16, got fp64",
        ),
        (
            "a.openvino",
            {"precision": Precision.INT8},
            UsageError,
            "expected an artifact with a calibration record, got none",
        ),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(
    name: str, arguments: dict[str, object], error: type[Exception], text: str, tiny_student: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        to_openvino.export(tiny_student, tmp_path / name, **{"input_size": SIZE, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_device_that_is_absent_is_said(exported: Exporter) -> None:
    absent = "npu"
    assert "OpenVINO finds no NPU on this machine, only CPU" in str(export.can_run(exported("openvino").path, absent))
    with pytest.raises(
        UnsupportedError, match=r"expected device npu, got OpenVINO finds no NPU .* fix: use --device cpu"
    ):
        export.open_runner(exported("openvino").path, absent)


def test_a_layer_without_operation_is_an_error(exported: Exporter) -> None:
    with pytest.raises(ExportError, match="layer 'nose': expected an operation of this name in the IR, got none"):
        to_openvino._operations(read(exported("openvino")), ["nose"])


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tiny_student: Artifact, tmp_path: Path
) -> None:
    import sys

    from models.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingExtraError, match=r"package 'openvino', got not installed; fix: pip install 'pare\[openvino\]'"
    ):
        to_openvino.export(tiny_student, tmp_path / "a.openvino", input_size=SIZE)
