"""The row: what it refuses, how it is named, JSON there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.row import BenchmarkRow, join_reasons
from models.errors import ConfigError

MakeRow = Callable[..., BenchmarkRow]


def test_json_there_and_back(make_row: MakeRow) -> None:
    row = make_row("prune", "onnx", "fp16", 0.175, 2.5, times_ms=(2.4, 2.6))
    content = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert BenchmarkRow.from_json(content) == row
    assert content["times_ms"] == [2.4, 2.6]
    assert content["stages"] == ["teacher", "distill", "prune"]


def test_the_fields_of_the_design_are_there(make_row: MakeRow) -> None:
    names = (
        "device runtime height width lpips lpips_net lpips_vs_teacher psnr_db ssim latency_p50_ms latency_p95_ms "
        "end_to_end_p50_ms images_per_s params_m gmacs size_mb peak_rss_mb status reason target stage precision"
    )
    assert set(names.split()) <= make_row("teacher", "torch", "fp32", 0.17, 100.0).to_json().keys()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lpips": -0.1}, "lpips: expected a positive number, or None, got -0.1"),
        ({"lpips": float("nan")}, "lpips: expected a finite number"),
        ({"latency_p50_ms": 0.0}, "latency_p50_ms: expected a positive number"),
        ({"psnr_db": float("inf")}, "psnr_db: expected a finite number, or None, got inf"),
        ({"lpips_net": None}, "expected the number and its net together"),
        ({"latency_p50_ms": None}, "status: expected measured exactly where a latency is"),
        ({"status": "fine"}, r"status: expected measured \| built \| unsupported \| failed, got 'fine'"),
        ({"gmacs": None}, "reason: expected why gmacs is None, got no reason; fix: say it in `reason`"),
        ({"status": "built", "latency_p50_ms": None}, "why latency_p50_ms is None"),
    ],
)
def test_what_cannot_be_is_refused(make_row: MakeRow, changes: dict[str, object], text: str) -> None:
    row = make_row("teacher", "torch", "fp32", 0.17, 100.0)
    with pytest.raises(ConfigError, match=text):
        replace(row, **changes)  # type: ignore[arg-type]


def test_unknown_needs_a_reason_only(make_row: MakeRow) -> None:
    row = make_row("prune", "coreml", "fp16", None, None, reason="latency, quality: it needs macOS")
    assert row.status == "built"
    assert row.latency_p50_ms is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"model": "m", "lipps": 1}, "got 'lipps'; fix: use 'lpips'"),
        ({"model": "m"}, "expected task, stage, target, precision, artifact, sha256, got nothing"),
    ],
)
def test_strange_json_is_refused(content: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BenchmarkRow.from_json(content)


def test_labels_and_the_teacher(make_row: MakeRow) -> None:
    teacher = make_row("teacher", "torch", "fp32", 0.17, 100.0)
    exported = make_row("teacher", "openvino", "fp32", 0.17, 60.0)
    shipped = make_row("quantize", "onnx", "int8", 0.178, 1.25)
    assert (teacher.is_teacher, exported.is_teacher) == (True, False)
    assert shipped.label == "Quantized · ONNX Runtime INT8"
    assert make_row("quantize", "onnx", "int8", 0.178, 1.25, artifact="a.ort").label == f"{shipped.label} (.ort)"
    assert teacher.key != exported.key


def test_reasons_are_joined() -> None:
    assert join_reasons({}) is None
    assert join_reasons({"latency": "no GPU", "ms_ssim": "too small"}) == "latency: no GPU; ms_ssim: too small"
