"""Where the quality went: steps, costs and gains worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.row import BenchmarkRow
from benchmarks.walk import ways

MakeRow = Callable[..., BenchmarkRow]


def test_through_pytorch_then_to_the_engine(run_rows: list[BenchmarkRow]) -> None:
    found = {way.row.target: way for way in ways(run_rows)}
    assert set(found) == {"onnx", "openvino", "coreml"}
    steps = found["onnx"].steps
    assert [step.what for step in steps] == ["start", "Distilled", "Pruned", "to ONNX Runtime", "Quantized"]
    assert [step.lpips_cost for step in steps[1:]] == pytest.approx([0.004, 0.001, 0.0, 0.003])
    assert [step.ms_gained for step in steps[1:]] == pytest.approx([90, 5, 2.5, 1.25])
    assert [step.factor for step in steps[1:]] == pytest.approx([10, 2, 2, 2])
    assert steps[0].lpips_cost is None


def test_what_was_not_timed_has_a_cost_and_no_gain(run_rows: list[BenchmarkRow]) -> None:
    last = next(way for way in ways(run_rows) if way.row.target == "coreml").steps[-1]
    assert last.what == "Quantized, to Core ML"
    assert last.lpips_cost == pytest.approx(0.004)
    assert last.ms_gained is None
    assert last.factor is None


def test_on_one_engine_where_the_teacher_was_exported_too(run_rows: list[BenchmarkRow], make_row: MakeRow) -> None:
    rows = [
        *run_rows,
        make_row("teacher", "onnx", "fp32", 0.170, 80.0),
        make_row("distill", "onnx", "fp32", 0.174, 5.0),
    ]
    steps = next(way for way in ways(rows) if way.row.target == "onnx").steps
    assert [step.what for step in steps] == ["start", "to ONNX Runtime", "Distilled", "Pruned", "Quantized"]
    assert [step.factor for step in steps[1:]] == pytest.approx([1.25, 16, 2, 2])


def test_a_precision_is_a_step(make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("teacher", "onnx", "fp32", 0.17, 80.0),
        make_row("teacher", "onnx", "fp16", 0.171, 90.0),
    ]
    (way,) = ways(rows)
    assert [step.what for step in way.steps] == ["start", "to ONNX Runtime", "to FP16"]
    assert way.steps[-1].ms_gained == pytest.approx(-10)


def test_pytorch_alone_is_a_way_of_its_own(make_row: MakeRow) -> None:
    rows = [make_row("teacher", "torch", "fp32", 0.17, 100.0), make_row("distill", "torch", "fp32", 0.16, 10.0)]
    (way,) = ways(rows)
    assert [step.what for step in way.steps] == ["start", "Distilled"]
    assert way.steps[1].lpips_cost == pytest.approx(-0.01)


def test_a_teacher_alone_goes_nowhere(make_row: MakeRow) -> None:
    assert ways([make_row("teacher", "torch", "fp32", 0.17, 100.0)]) == []
    assert ways([]) == []


def test_a_gpu_is_compared_with_the_teacher_on_the_gpu(make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("teacher", "torch", "fp32", 0.17, 8.0, device="cuda"),
        make_row("teacher", "tensorrt", "fp16", 0.17, 2.0, device="cuda"),
    ]
    (way,) = ways(rows)
    assert [step.row.device for step in way.steps] == ["cuda", "cuda"]
    assert way.steps[-1].factor == pytest.approx(4)
