"""Core ML packages: parity at each precision, metadata, flexible sizes, pictures, INT8 placement, errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import export
from export import coreml_int8, coreml_runner, to_coreml
from export.contract import contract_in
from export.golden import random_photo
from export.mil.program import load_model
from export.parity import parity
from export.quantization import Quantization
from models.artifact import Artifact, load_network, save_tensors, sha256_of
from models.errors import (
    ConfigError,
    ExportError,
    InputSizeError,
    MissingExtraError,
    UnsupportedError,
    UsageError,
)
from models.spec import Precision

pytest.importorskip("coremltools")

SIZE = (64, 64)
Exporter = Callable[..., Artifact]
on_linux = pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here: nothing is emulated")


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_a_package_computes_what_torch_computes(
    precision: str, allowed: float, exported: Exporter, tiny_student: Artifact
) -> None:
    artifact = exported("coreml", Precision(precision))
    result = parity(tiny_student, artifact, threads=1)
    assert result.passed, result
    assert result.max_abs is not None
    assert result.max_abs <= allowed * result.span


def test_the_teacher_with_pixel_shuffle_and_skips_passes(tiny_teacher: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "teacher.mlpackage"
    artifact = to_coreml.export(tiny_teacher, path, precision=Precision.FP32, input_size=SIZE)
    assert load_model(path).operation_counts()["pixel_shuffle"] == 5
    result = parity(tiny_teacher, artifact, threads=1)
    assert result.max_abs is not None
    assert result.max_abs <= 1e-5 * result.span


def test_the_contract_lies_inside_of_the_package(exported: Exporter, tiny_student: Artifact) -> None:
    artifact = exported("coreml", Precision.FP16)
    assert (artifact.format, artifact.parent_sha256) == ("coreml", tiny_student.sha256)
    inside = load_model(artifact.path).metadata
    assert inside["pare.model"] == "chroma_unet"
    assert inside["pare.precision"] == "fp16"
    assert inside["pare.parent_sha256"] == tiny_student.sha256
    assert "CIELab lightness" in inside["pare.color_contract"]
    assert "coremltools" in json.loads(inside["pare.versions"])
    assert json.loads(inside["pare.contract"]) == artifact.metadata["contract"]
    spec = pytest.importorskip("coremltools").utils.load_spec(str(artifact.path))
    assert spec.specificationVersion == 8  # iOS 17, macOS 14
    assert spec.WhichOneof("Type") == "mlProgram"
    assert Artifact.load(artifact.path).sha256 == sha256_of(artifact.path)
    assert not list(artifact.path.parent.glob(".part*"))


def test_the_same_artifact_gives_the_same_bytes(exported: Exporter, tiny_student: Artifact, tmp_path: Path) -> None:
    again = to_coreml.export(tiny_student, tmp_path / "again.mlpackage", precision=Precision.FP16, input_size=SIZE)
    assert again.sha256 == exported("coreml", Precision.FP16).sha256


@on_linux
def test_a_runner_elsewhere_says_that_it_evaluates(exported: Exporter) -> None:
    path = exported("coreml", Precision.FP16).path
    with export.open_runner(path, device="cpu", threads=1) as runner:
        assert (runner.device, runner.emulated, runner.load_ms) == ("mil-evaluator", True, None)
        assert runner.reason is not None
        assert "macOS and iOS only" in runner.reason
        assert "mil-evaluator" in runner.runtime
    reason = to_coreml.can_run("cpu")
    assert reason is not None
    assert "macOS and iOS only" in reason
    with pytest.raises(UnsupportedError, match=r"Core ML on ane: expected macOS, got .*fix: use a Mac, or device cpu"):
        export.open_runner(path, device="ane")


def test_wrong_input_is_refused_at_the_boundary(exported: Exporter) -> None:
    with to_coreml.open_emulated(exported("coreml", Precision.FP16).path) as runner:
        with pytest.raises(InputSizeError, match=r"expected shape \(1, 1, 64, 64\), got \(1, 1, 32, 64\)"):
            runner.infer({"input": np.zeros((1, 1, 32, 64), np.float32)})
        with pytest.raises(UsageError, match=r"a numpy array of float32, got float64"):
            runner.infer({"input": np.zeros((1, 1, 64, 64))})


def test_a_range_of_sizes(tiny_teacher: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "range.mlpackage"
    arguments: dict[str, Any] = {"input_size": SIZE, "dynamic": True, "options": {"max_size": "128"}}
    artifact = to_coreml.export(tiny_teacher, path, precision=Precision.FP32, **arguments)
    assert contract_in(artifact).inputs[0].shape == (1, 1, "H", "W")
    net = load_network(tiny_teacher)
    with to_coreml.open_emulated(path, threads=1) as runner:
        for height, width in ((32, 96), (128, 64)):
            x = torch.rand(1, 1, height, width)
            with torch.no_grad():
                expected = net(x).numpy()
            np.testing.assert_allclose(runner.infer({"input": x.numpy()})["output"], expected, atol=1e-5)
        with pytest.raises(InputSizeError, match=r"expected shape \(1, 1, 32-128, 32-128\), got \(1, 1, 160, 64\)"):
            runner.infer({"input": np.zeros((1, 1, 160, 64), np.float32)})
        with pytest.raises(InputSizeError, match="multiple of 32"):
            runner.infer({"input": np.zeros((1, 1, 40, 64), np.float32)})


def test_listed_sizes(tiny_student: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "listed.mlpackage"
    options = {"sizes": "64x64,32x96"}
    to_coreml.export(tiny_student, path, precision=Precision.FP16, input_size=SIZE, dynamic=True, options=options)
    with to_coreml.open_emulated(path, threads=1) as runner:
        assert runner.infer({"input": np.zeros((1, 1, 32, 96), np.float32)})["output"].shape == (1, 2, 32, 96)
        with pytest.raises(InputSizeError, match=r"one of \(1, 1, 64, 64\), \(1, 1, 32, 96\), got \(1, 1, 96, 96\)"):
            runner.infer({"input": np.zeros((1, 1, 96, 96), np.float32)})


def test_pictures_go_in_and_come_out(tiny_student: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "pictures.mlpackage"
    options = {"image_input": True, "image_output": True}
    artifact = to_coreml.export(tiny_student, path, precision=Precision.FP32, input_size=SIZE, options=options)
    model = load_model(path)
    assert (model.inputs[0].kind, model.inputs[0].color) == ("image", "rgb")
    assert model.outputs[0].kind == "image"
    assert contract_in(artifact).inputs[0].color_space == "srgb"
    photo = (random_photo(SIZE) * 255).round() / 255
    result = parity(tiny_student, artifact, [photo], threads=1)
    assert result.max_abs is not None
    assert result.max_abs <= 0.51 / 255  # nothing but the rounding of the answer to 8 bits


def test_int8_quantizes_what_the_record_says(exported: Exporter) -> None:
    artifact = exported("coreml", Precision.INT8)
    counts = load_model(artifact.path).operation_counts()
    assert counts["constexpr_affine_dequantize"] == counts["conv"] - 1  # the head stays in floating point
    assert counts["quantize"] == counts["dequantize"] > 0
    assert artifact.metadata["quantization"]["float_layers"] == ["head"]
    whole = exported("coreml", Precision.FP16)
    sizes = [next(item.path.rglob("weight.bin")).stat().st_size for item in (artifact, whole)]
    assert sizes[0] < 0.8 * sizes[1]


def test_an_int8_package_rounds_as_its_torch_network(exported: Exporter, quantized_student: Artifact) -> None:
    from export.quantization import quantization_of

    record = quantization_of(quantized_student)
    assert record is not None
    net = coreml_int8.quantized_network(load_network(quantized_student), record)
    x = torch.from_numpy(record.inputs()[:1])
    with torch.no_grad():
        expected = net(x).numpy()
        float_answer = load_network(quantized_student)(x).numpy()
    with to_coreml.open_emulated(exported("coreml", Precision.INT8).path, threads=1) as runner:
        got = runner.infer({"input": x.numpy()})["output"]
    # FP16 between the layers moves some values over a rounding boundary; the same rounding otherwise
    assert np.abs(got - expected).mean() < 0.5 * np.abs(expected - float_answer).mean()


class Plain(nn.Module):
    """A layer of each kind that is quantized, and control flow that torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.mix = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        y = self.up(torch.relu(self.norm(self.conv(x))))
        return self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _record(folder: Path, **arguments: Any) -> Quantization:
    path = folder / "calibration.safetensors"
    save_tensors({"input": torch.randn(6, 2, 8, 8)}, path)
    return Quantization(calibration=path, samples=6, **arguments)


def test_per_layer_needs_no_fx_and_keeps_the_convention(tmp_path: Path) -> None:
    net = Plain().eval()
    quantized: Any = coreml_int8.quantized_network(net, _record(tmp_path, float_layers=("mix",)))
    assert isinstance(quantized.mix, nn.Linear)
    assert (quantized.conv.zero_point, quantized.up.zero_point) == (128, 0)  # signed input; after a ReLU
    weight = quantized.up.layer.weight.detach()
    levels = weight / weight.abs().amax(dim=(0, 2, 3), keepdim=True) * 127
    assert float((levels - levels.round()).abs().max()) < 1e-3
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        error = (quantized(x) - net(x)).abs().max()
    assert 0 < float(error) < 0.1


def test_ranges_of_the_record_are_used(tmp_path: Path) -> None:
    ranges = {"conv": (-2.56, 1.0), "up": (0.0, 5.1), "mix": (-1.0, 2.54)}
    quantized: Any = coreml_int8.quantized_network(Plain().eval(), _record(tmp_path, ranges=ranges))
    assert [round(layer.scale, 4) for layer in (quantized.conv, quantized.up, quantized.mix)] == [0.02, 0.02, 0.02]


def test_int8_takes_the_bias_corrections_of_the_record(tmp_path: Path) -> None:
    path = tmp_path / "corrected.safetensors"
    made = _record(tmp_path)
    net = Plain().eval()
    shift = torch.full((net.conv.out_channels,), 0.25)
    save_tensors({**made.tensors(), "correction.conv": shift}, path)
    quantized: Any = coreml_int8.quantized_network(net, replace(made, calibration=path))
    expected = shift + (0 if net.conv.bias is None else net.conv.bias.data)
    assert torch.equal(quantized.conv.layer.bias, expected)


def test_the_linear_quantizer_is_a_choice(tiny_student: Artifact, quantized_student: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "whole.mlpackage"
    options = {"int8": "linear_quantizer"}
    artifact = to_coreml.export(quantized_student, path, precision=Precision.INT8, input_size=SIZE, options=options)
    assert load_model(path).operation_counts()["constexpr_affine_dequantize"] > 0
    assert parity(tiny_student, artifact, threads=1).passed


def test_int8_errors_say_what_to_do(tiny_student: Artifact, tmp_path: Path) -> None:
    record = _record(tmp_path, float_layers=("nose",))
    with pytest.raises(ConfigError, match=r"float layers: expected layers of the network, got nose"):
        coreml_int8.quantized_network(Plain().eval(), record)
    with pytest.raises(UsageError, match=r"int8 method: expected per_layer \| linear_quantizer, got 'magic'"):
        coreml_int8.quantized_network(Plain().eval(), record, method="magic")
    with pytest.raises(ExportError, match=r"expected a network for torch.fx, .*use the int8 method per_layer"):
        coreml_int8.quantized_network(Plain().eval(), _record(tmp_path), method="linear_quantizer")
    with pytest.raises(UsageError, match=r"an artifact with a calibration record, got none"):
        to_coreml.export(tiny_student, tmp_path / "x.mlpackage", precision=Precision.INT8)


BAD_OPTIONS = [
    ({"colour": 1}, r"options of target coreml: expected image_input .*got \['colour'\]"),
    ({"image_input": "maybe"}, r"option image_input: expected true or false, got 'maybe'"),
    ({"sizes": "64x64"}, r"expected a dynamic export, got a fixed size"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str, tiny_student: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        to_coreml.export(
            tiny_student, tmp_path / "x.mlpackage", precision=Precision.FP16, input_size=SIZE, options=options
        )


def test_bad_arguments(tiny_student: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    with pytest.raises(UsageError, match=r"option sizes: expected at most 128 sizes, height x width, got '64'"):
        to_coreml.export(
            tiny_student, path, precision=Precision.FP16, input_size=SIZE, dynamic=True, options={"sizes": "64"}
        )
    with pytest.raises(InputSizeError, match=r"expected sides up to max_size, got 64x64 with max_size 32"):
        to_coreml.export(
            tiny_student, path, precision=Precision.FP16, input_size=SIZE, dynamic=True, options={"max_size": 32}
        )
    with pytest.raises(UnsupportedError, match=r"precision of target coreml: expected fp32 \| fp16 \| int8, got bf16"):
        to_coreml.export(tiny_student, path, precision=Precision.BF16, input_size=SIZE)
    with pytest.raises(UsageError, match=r"expected a name in .mlpackage, got x.onnx"):
        to_coreml.export(tiny_student, tmp_path / "x.onnx", precision=Precision.FP16, input_size=SIZE)
    assert not path.exists()


def test_a_missing_extra_is_named(tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pare\[coreml\]'"):
        to_coreml.export(tiny_student, tmp_path / "x.mlpackage", precision=Precision.FP16, input_size=SIZE)


def test_a_network_that_cannot_be_converted_is_an_export_error(
    tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strange(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return torch.special.zeta(input + 2, input + 2)

    monkeypatch.setattr(to_coreml, "load_network", lambda artifact: Strange())
    with pytest.raises(ExportError, match=r"Core ML export of chroma_unet: expected a convertible network, got .*zeta"):
        to_coreml.export(tiny_student, tmp_path / "x.mlpackage", precision=Precision.FP32, input_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_size_fixed_by_the_trace_is_found(
    tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Baked(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            gain = float(input.shape[2]) / 64
            return torch.cat([input, input], dim=1) * gain

    monkeypatch.setattr(to_coreml, "load_network", lambda artifact: Baked())
    path = tmp_path / "x.mlpackage"
    with pytest.raises(ExportError, match=r"dynamic Core ML package at \d+x\d+: expected the answer of PyTorch"):
        to_coreml.export(tiny_student, path, precision=Precision.FP32, input_size=SIZE, dynamic=True)


def test_on_a_mac_core_ml_predicts(exported: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Mac's runner around a recorded session: names, units and arrays go through as they should."""
    import coremltools

    seen: dict[str, Any] = {}
    package = exported("coreml", Precision.FP16).path  # the converter makes an MLModel of its own

    class Session:
        def __init__(self, path: str, compute_units: Any) -> None:
            seen["units"] = compute_units

        def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
            seen["feeds"] = feeds
            return {"output": np.ones((1, 2, 64, 64), np.float16)}

    monkeypatch.setattr(coreml_runner.sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", Session)
    x = np.full((1, 1, 64, 64), 0.5, np.float32)
    with export.open_runner(package, device="ane") as runner:
        answer = runner.infer({"input": x})["output"]
    assert to_coreml.can_run("ane") is None
    assert (runner.emulated, runner.device) == (False, "ane")
    assert runner.load_ms is not None
    assert seen["units"] == coremltools.ComputeUnit.CPU_AND_NE
    assert seen["feeds"]["input"] is x
    assert answer.dtype == np.float32


def test_a_quantized_layer_is_read_and_called_like_the_layer() -> None:
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    wrapped = coreml_int8._QuantizedInput(layer, 0.0, 1.0)
    assert wrapped.out_channels == 4
    assert wrapped(torch.rand(1, 3, 8, 8), output_size=[16, 16]).shape == (1, 4, 16, 16)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wrapped.nothing
