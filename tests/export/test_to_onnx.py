"""The float graph and the ONNX target."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_networks import save_own

import export
from export.parity import open_any
from export.registry import get_target
from models.artifact import Artifact, load_network
from models.errors import ExportError, InputSizeError, RunFolderError, UnsupportedError, UsageError
from models.spec import Precision

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export import to_onnx  # noqa: E402

Exporter = Callable[..., Artifact]
SIZE = (64, 64)


def kinds(model: object) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def metadata(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def test_teacher_graph_is_lean(tiny_teacher: Artifact) -> None:
    model = to_onnx.float_onnx(tiny_teacher, input_size=(32, 64))
    found = kinds(model)
    assert set(found) == {"Conv", "Relu", "Add", "Concat", "MaxPool", "DepthToSpace", "BatchNormalization"}
    assert (found["Conv"], found["DepthToSpace"]) == (37, 5)
    assert found["BatchNormalization"] == 4  # those of the skips, which follow no convolution
    assert model.opset_import[0].version == to_onnx.OPSET
    assert "/work" not in str(model)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_layers_keep_their_module_names(tiny_teacher: Artifact) -> None:
    import torch

    model = to_onnx.float_onnx(tiny_teacher, input_size=(32, 64))
    net = load_network(tiny_teacher)
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    names = to_onnx.layer_nodes(model)
    assert sorted(names) == sorted(layers)
    assert all(node == module for module, node in names.items())
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    assert np.array_equal(weights["stem.weight"], net.stem.weight.detach().numpy())


def test_student_graph_has_named_open_sides(tiny_student: Artifact) -> None:
    model = to_onnx.float_onnx(tiny_student, input_size=SIZE, dynamic=True)
    sides = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", 1, "H", "W"]
    assert set(kinds(model)) == {"Conv", "Relu", "Add", "Resize"}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_contract_and_origin_are_inside_of_the_file(
    precision: Precision, exported: Exporter, tiny_student: Artifact, quantized_student: Artifact
) -> None:
    made = exported("onnx", precision)
    source = quantized_student if precision is Precision.INT8 else tiny_student
    inside = metadata(made.path)
    assert inside["pare.model"] == "chroma_unet"
    assert inside["pare.task"] == "colorize"
    assert inside["pare.precision"] == precision.value
    assert inside["pare.input_size"] == "64x64"
    assert inside["pare.parent_sha256"] == made.parent_sha256 == source.sha256
    assert "CIELab lightness L of the sRGB photo" in inside["pare.color_contract"]
    assert json.loads(inside["pare.contract"]) == made.metadata["contract"]
    assert json.loads(inside["pare.versions"])["onnx"] == onnx.__version__
    onnx.checker.check_model(str(made.path), full_check=True)


def test_int8_is_qdq_and_float_layers_stay(exported: Exporter) -> None:
    made = exported("onnx", Precision.INT8)
    model = onnx.load(made.path)
    found = kinds(model)
    assert found["QuantizeLinear"] > 5
    assert found["DequantizeLinear"] > found["QuantizeLinear"]
    types = Counter(item.data_type for item in model.graph.initializer)
    assert types[onnx.TensorProto.INT8] >= 8
    floats = [item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT]
    assert [name for name in floats if name.endswith(".weight")] == ["head.weight"]
    assert made.metadata["quantization"]["float_layers"] == ["head"]


def test_int8_at_another_size_than_the_calibration(quantized_student: Artifact, tmp_path: Path) -> None:
    from export.parity import check_parity

    made = to_onnx.export(quantized_student, tmp_path / "a.onnx", precision=Precision.INT8, input_size=(32, 96))
    assert check_parity(quantized_student, made, threads=1).passed
    assert made.metadata["quantization"]["samples"] == 8


def test_int8_needs_a_calibration_record(tiny_student: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an artifact with a calibration record, got none; fix: run"):
        to_onnx.export(tiny_student, tmp_path / "a.onnx", precision=Precision.INT8, input_size=SIZE)


def test_mobile_format_runs_and_has_a_sidecar(tiny_student: Artifact, tmp_path: Path) -> None:
    made = to_onnx.export(tiny_student, tmp_path / "a.onnx", input_size=SIZE, options={"ort": True})
    x = {"input": np.random.default_rng(0).random((1, 1, *SIZE), np.float32)}
    with export.open_runner(made.path, threads=1) as plain, export.open_runner(tmp_path / "a.ort", threads=1) as mobile:
        assert np.allclose(plain.infer(x)["output"], mobile.infer(x)["output"], atol=1e-5)
        assert mobile.inputs == plain.inputs
    assert Artifact.load(tmp_path / "a.ort").parent_sha256 == tiny_student.sha256
    with pytest.raises(UnsupportedError, match=r"precision of an \.ort file: expected fp32 \| int8, got fp16"):
        to_onnx.export(
            tiny_student, tmp_path / "b.onnx", precision=Precision.FP16, input_size=SIZE, options={"ort": True}
        )


@pytest.mark.parametrize(
    ("arguments", "name", "error", "text"),
    [
        ({"input_size": (48, 64)}, "a.onnx", InputSizeError, "multiple of 32, got 48x64; fix: .* 64x64"),
        ({"input_size": (0, 64)}, "a.onnx", InputSizeError, "at least 32 .* got 0x64"),
        ({}, "a.engine", UsageError, r"expected a name in \.onnx, got a\.engine; fix: write to a\.onnx"),
        ({"precision": Precision.BF16}, "a.onnx", UnsupportedError, r"expected fp32 \| fp16 \| int8, got bf16"),
        ({"options": {"opset": 16}}, "a.onnx", UsageError, "opset: expected 17 or later, got 16"),
        (
            {"options": {"opset": 99}},
            "a.onnx",
            UsageError,
            "opset: expected 17 or later, and known .*, got 99; fix: use 18",
        ),
        ({"options": {"opset": "new"}}, "a.onnx", UsageError, "opset: expected 17 or later, got 'new'"),
        ({"options": {"color": 1}}, "a.onnx", UsageError, r"expected opset \| ort \| keep_fp32, got \['color'\]"),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(
    arguments: dict[str, object],
    name: str,
    error: type[Exception],
    text: str,
    tiny_student: Artifact,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=text):
        to_onnx.export(tiny_student, tmp_path / name, **{"input_size": SIZE, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_layers_named_by_the_caller_stay_in_single(tiny_student: Artifact, tmp_path: Path) -> None:
    options = {"keep_fp32": "head,stem.0"}
    made = to_onnx.export(tiny_student, tmp_path / "a.onnx", precision=Precision.FP16, input_size=SIZE, options=options)
    assert made.metadata["kept_fp32"] == {"head": "asked", "stem.0": "asked"}


def test_full_disk_leaves_the_old_artifact(
    tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = to_onnx.export(tiny_student, tmp_path / "a.onnx", input_size=SIZE)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunFolderError, match="No space left on device; fix: free disk space"):
        to_onnx.export(tiny_student, tmp_path / "a.onnx", input_size=SIZE)
    assert Artifact.load(made.path).sha256 == made.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.json"]


def test_network_that_cannot_be_traced_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from torch import Tensor, nn

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, input: Tensor) -> Tensor:
            return self.conv(input) if float(input.sum()) > 0 else -self.conv(input)

    source = save_own(Odd, tmp_path, monkeypatch, task="colorize")
    with pytest.raises(ExportError, match=r"ONNX export of .*:make: expected a traceable network"):
        get_target("onnx").load().export(source, tmp_path / "odd.onnx", precision=Precision.FP32, input_size=SIZE)
    assert not (tmp_path / "odd.onnx").exists()


def test_pixel_unshuffle_is_one_node_of_single_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    import torch
    from torch import Tensor, nn

    from export.parity import check_parity

    class Folding(nn.Module):
        """Three channels of its own, folded and unfolded."""

        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(1, 3, 1)
            self.conv = nn.Conv2d(12, 8, 1)

        def forward(self, input: Tensor) -> Tensor:
            folded = torch.nn.functional.pixel_unshuffle(self.wide(input), 2)
            return torch.nn.functional.pixel_shuffle(self.conv(folded), 2)

    source = save_own(Folding, tmp_path, monkeypatch, task="colorize")
    made = to_onnx.export(source, tmp_path / "f.onnx", input_size=(32, 64))
    assert kinds(onnx.load(made.path)) == {"Conv": 2, "SpaceToDepth": 1, "Reshape": 2, "DepthToSpace": 1}
    assert check_parity(source, made, threads=1).passed


@pytest.mark.parametrize(("axis", "text"), [(0, "N fixed at 2"), (2, f"H fixed at {SIZE[0]}")])
def test_a_side_that_its_code_fixes_is_not_called_open(
    axis: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch import nn

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * torch.tensor([0.1] * x.shape[axis])[(...,) + (None,) * (3 - axis)]

    source = save_own(Listed, tmp_path, monkeypatch)
    with pytest.raises(ExportError, match=f"got {text}: .*without --dynamic"):
        to_onnx.export(source, tmp_path / "n.onnx", input_size=SIZE, dynamic=True)
    assert to_onnx.export(source, tmp_path / "n.onnx", input_size=SIZE).path.exists()


@pytest.mark.parametrize(
    ("target", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("coreml", "coremltools")]
)
def test_a_network_of_a_users_with_open_sizes(
    target: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch stays open, too, though its pictures are kept apart in training."""
    pytest.importorskip(module)
    import torch
    from torch import nn

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, _, height, width = x.shape
            y = self.conv(x)[:, :, : height // 2 * 2, : width // 2 * 2]
            return y * self.gate(y.mean((2, 3))).view(x.shape[0], x.shape[1], 1, 1)

    row, source = get_target(target), save_own(Weighted, tmp_path, monkeypatch)
    made = row.load().export(
        source, tmp_path / f"n{row.suffix}", precision=Precision.FP32, input_size=SIZE, dynamic=True
    )
    count = 1 if target == "coreml" else 3
    batch = torch.rand(count, 3, 96, 64)
    runner, _ = open_any(made.path, threads=1)
    with runner:
        answer = runner.infer({"input": batch.numpy()})["output"]
    with torch.no_grad():
        np.testing.assert_allclose(answer, load_network(source)(batch).numpy(), atol=1e-5)
