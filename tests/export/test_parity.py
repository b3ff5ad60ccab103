"""Every target and precision against PyTorch: one template, each target's own tolerance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_networks import Fitted, save_own
from torch import Tensor

import export
from export.bundle import verify_bundle, write_bundle
from export.golden import random_photo
from export.parity import OWN_MARGIN, check_parity, limits, open_any, parity
from export.registry import TARGETS, get_target, list_targets
from models.artifact import Artifact, load_network, save_network
from models.errors import ParityError, UnsupportedError
from models.spec import Precision

Exporter = Callable[..., Artifact]
CASES = [(name, precision) for name in list_targets() for precision in TARGETS[name].precisions]


@pytest.mark.parametrize(("target", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_artifact_computes_what_pytorch_computes(
    target: str, precision: Precision, exported: Exporter, tiny_student: Artifact
) -> None:
    result = check_parity(tiny_student, exported(target, precision), threads=1)
    assert result.passed
    assert result.max_abs is not None
    largest, rms = TARGETS[target].tolerance[precision]
    assert (result.limit, result.rms_limit) == (largest * result.span, rms * result.span)
    assert result.rms is not None
    assert 0 < result.max_abs <= result.limit
    assert result.rms <= result.rms_limit
    assert result.emulated == (target in ("tensorrt", "coreml")) == (result.reason is not None)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt"])
def test_teacher_computes_what_pytorch_computes(target: str, tiny_teacher: Artifact, tmp_path: Path) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx"}.get(target, target))
    row = get_target(target)
    made = row.load().export(tiny_teacher, tmp_path / f"teacher{row.suffix}", input_size=(32, 64))
    result = check_parity(tiny_teacher, made, threads=1)
    assert result.max_abs is not None
    assert result.max_abs <= row.tolerance[Precision.FP32].largest * result.span


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("target", list_targets())
def test_open_sizes_compute_what_pytorch_computes(
    target: str, precision: Precision, exported: Exporter, tiny_student: Artifact
) -> None:
    from export.golden import random_photo

    made = exported(target, precision, dynamic=True)
    photos = [random_photo(size) for size in ((32, 96), (128, 64))]
    for photo in photos:
        assert check_parity(tiny_student, made, [photo], threads=1).passed


def test_another_network_fails_and_the_message_says_by_how_much(
    exported: Exporter, tiny_student: Artifact, tmp_path: Path
) -> None:
    import torch

    from models.artifact import load_network, save_network

    net = load_network(tiny_student)
    with torch.no_grad():
        net.head.bias += 1.0
    other = save_network(
        net,
        tmp_path / "other.safetensors",
        model=tiny_student.model,
        task=tiny_student.task,
        model_kwargs=tiny_student.model_kwargs,
    )
    made = exported("onnx")
    result = parity(other, made, threads=1)
    assert result.passed is False
    assert result.max_abs == pytest.approx(1.0, abs=1e-3)
    assert result.psnr_db is not None
    assert result.psnr_db < 5
    with pytest.raises(
        ParityError, match=r"expected an error of at most .* rms, got 1 and 1 rms; fix: keep the layers"
    ):
        check_parity(other, made, threads=1)


def test_a_device_that_was_named_and_is_absent_is_an_error(exported: Exporter, tiny_student: Artifact) -> None:
    with pytest.raises(UnsupportedError, match=r"expected device cuda, got .*CUDAExecutionProvider.*fix: use --device"):
        parity(tiny_student, exported("onnx"), device="cuda", threads=1)


def test_what_can_neither_run_nor_be_emulated_is_unknown_with_a_reason(
    exported: Exporter, tiny_student: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise UnsupportedError("no runtime here")

    made = exported("onnx")
    monkeypatch.setattr(export, "open_runner", absent)
    result = parity(tiny_student, made, threads=1)
    assert (result.max_abs, result.passed, result.runtime, result.reason) == (None, None, None, "no runtime here")
    assert json.dumps(result.to_json())
    assert open_any(made.path) == (None, "no runtime here")


def test_rounding_the_outputs_alone_is_allowed(exported: Exporter) -> None:
    half, single = exported("onnx", Precision.FP16), exported("onnx")
    assert limits(half, -0.5, 0.5) == pytest.approx((0.02, 0.005))
    assert limits(half, 0.88, 0.9) == pytest.approx((0.9 / 1024, 0.9 / 1024)), "halves near 0.9 are 1/2048 apart"
    assert limits(single, 0.88, 0.9) == pytest.approx((2e-6, 5e-7))


def broken(model: Any, how: str) -> None:
    """Change one layer of an INT8 graph: scale or zero point of its input, or two of its channels."""
    from onnx import numpy_helper

    held = {item.name: item for item in model.graph.initializer}
    layer = next(node for node in model.graph.node if node.name == "decoder.0.0")
    given, weight = (next(node for node in model.graph.node if name in node.output) for name in layer.input[:2])
    node, place = {"scale": (given, 1), "zero point": (given, 2), "channels": (weight, 0)}[how]
    value = numpy_helper.to_array(held[node.input[place]])
    if how == "channels":
        wrong = value[[1, 0, *range(2, len(value))]]
    else:
        wrong = np.asarray(value * np.float32(1.5) if how == "scale" else value + 16, value.dtype)
    model.graph.initializer.append(numpy_helper.from_array(wrong, "wrong"))
    node.input[place] = "wrong"


@pytest.mark.parametrize("how", ["scale", "zero point", "channels"])
def test_an_int8_graph_with_a_wrong_number_in_it_is_found(
    how: str, exported: Exporter, tiny_student: Artifact, tmp_path: Path
) -> None:
    import onnx

    honest = exported("onnx", Precision.INT8)
    noise = parity(tiny_student, honest, threads=1).rms
    model = onnx.load(honest.path)
    broken(model, how)
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    record = {**honest.metadata["quantization"], "noise": noise}  # as the quantize stage writes it
    metadata = {**honest.metadata, "quantization": record}
    made = Artifact.create(
        path, format="onnx", parent=tiny_student, precision=Precision.INT8, stages=honest.stages, metadata=metadata
    )
    result = parity(tiny_student, made, threads=1)
    assert result.passed is False
    assert result.rms_limit == pytest.approx(3 * noise)
    assert result.max_abs < result.limit, "the largest error alone would not tell"
    with_record = dataclasses.replace(honest, metadata=metadata)
    assert parity(tiny_student, with_record, threads=1).passed


def test_result_is_the_worst_error_of_all_photos(exported: Exporter, tiny_student: Artifact) -> None:
    from export.golden import random_photo

    made = exported("onnx", Precision.INT8)
    photos = [random_photo((64, 64), seed=seed) for seed in (3, 4)]
    each = [parity(tiny_student, made, [photo], threads=1).max_abs for photo in photos]
    both = parity(tiny_student, made, photos, threads=1)
    assert both.max_abs == max(error for error in each if error is not None)
    assert both.rms is not None
    assert both.rms < both.max_abs
    assert dataclasses.asdict(both) == both.to_json()
    assert np.isfinite(both.psnr_db or np.nan)


class Typed(Fitted):
    """It makes a tensor of a type by name, which FP64 does not go with."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ torch.eye(x.shape[-1], dtype=torch.float32))


#: What leaves the equations of ``Fitted`` badly conditioned.
SMOOTH = [random_photo((32, 32), seed=seed) for seed in (0, 1)]


def test_fp32_is_judged_by_what_fp32_itself_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = get_target("onnx")
    source = save_own(Fitted, tmp_path, monkeypatch)
    made = row.load().export(source, tmp_path / "a.onnx", precision=Precision.FP32, input_size=(32, 32))
    result = check_parity(source, made, SMOOTH, threads=1)
    plain = row.tolerance[Precision.FP32].rms * result.span
    assert result.rms is not None
    assert result.own_rms is not None
    assert plain < result.rms <= result.rms_limit == OWN_MARGIN * result.own_rms
    assert f"({result.own_rms:.3g} rms is what FP32 itself rounds in PyTorch)" in result.allowed()
    folder = write_bundle([made], tmp_path / "bundle", reference=source)
    assert [(check.status, check.reason) for check in verify_bundle(folder)] == [("passed", None)]

    with torch.no_grad():
        net = load_network(source)
        net.wanted.bias += 0.01  # type: ignore[union-attr, operator]
    other = save_network(net, tmp_path / "other.safetensors", model=source.model, task=source.task)
    with pytest.raises(ParityError, match="is what FP32 itself rounds"):
        check_parity(other, made, SMOOTH, threads=1)


def test_a_network_that_fp64_cannot_go_through_keeps_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_own(Typed, tmp_path, monkeypatch)
    made = get_target("onnx").load().export(source, tmp_path / "a.onnx", precision=Precision.FP32, input_size=(32, 32))
    result = parity(source, made, SMOOTH, threads=1)
    assert (result.passed, result.own_rms) == (False, None)
