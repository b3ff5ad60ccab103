"""The comparison as a whole, on real artifacts of tiny networks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import contest
from benchmarks.report import read_report, rows_of, write_report
from benchmarks.run import Benchmark, benchmark, default_threads
from benchmarks.settings import Settings
from models.artifact import Artifact
from models.errors import ConfigError, UnknownNameError
from models.spec import Precision

FILES = ("teacher.safetensors", "distill/student.safetensors", "artifacts/student-fp32.onnx")
OPENVINO = "artifacts/student-fp32.openvino"


def settings(lite_weights: Path, **more: Any) -> Settings:
    """As little measuring as possible."""
    values: dict[str, Any] = {"input_size": (64, 64), "threads": 1, "warmup": 1, "iterations": 3, "probes": False}
    return Settings(**{**values, "lpips_weights": lite_weights, **more})


@pytest.fixture(scope="module")
def result(tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path) -> Benchmark:
    """Teacher and student in PyTorch, the student in two engines, and an INT8 record."""
    artifacts = [Artifact.load(tiny_run / name) for name in (*FILES, OPENVINO)]
    record = replace(artifacts[1], precision=Precision.INT8, stages=("teacher", "distill", "quantize"), sha256="q")
    return benchmark([*artifacts, record], photos, settings=settings(lite_weights), root=tiny_run)


def test_one_row_an_artifact_teacher_first(result: Benchmark) -> None:
    assert [(row.stage, row.target, row.status) for row in result.rows] == [
        ("teacher", "torch", "measured"),
        ("distill", "torch", "measured"),
        ("distill", "onnx", "measured"),
        ("distill", "openvino", "measured"),
        ("quantize", "torch", "built"),
    ]
    assert [row.artifact for row in result.rows[:4]] == [*FILES, OPENVINO]
    assert {row.machine for row in result.rows} == {result.machine.id}
    assert {(row.height, row.width, row.threads) for row in result.rows[:4]} == {(64, 64, 1)}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not pin processes")
def test_the_machine_is_described_as_it_was_before_pinning(result: Benchmark) -> None:
    assert result.machine.cores_available == len(os.sched_getaffinity(0))
    assert result.machine.pinned_to_cpus is not None
    assert len(result.machine.pinned_to_cpus) == result.machine.threads == 1


def test_the_teacher_is_1x_and_equal_to_itself(result: Benchmark) -> None:
    teacher = result.rows[0]
    assert teacher.speedup == 1.0
    assert teacher.lpips_vs_teacher == pytest.approx(0, abs=1e-6)
    for row in result.rows[1:4]:
        assert teacher.latency_p50_ms is not None
        assert row.latency_p50_ms is not None
        assert row.speedup == pytest.approx(teacher.latency_p50_ms / row.latency_p50_ms)
        assert row.lpips_vs_teacher is not None
        assert row.lpips_vs_teacher > 0


def test_the_engines_compute_what_pytorch_computes(result: Benchmark) -> None:
    student, *exported = result.rows[1:4]
    for row in exported:
        assert row.lpips == pytest.approx(student.lpips, abs=1e-4)
        assert row.psnr_db == pytest.approx(student.psnr_db, abs=0.01)
        assert (row.params_m, row.gmacs) == (student.params_m, student.gmacs)


@pytest.mark.parametrize("options", [{"image_input": True}, {"image_input": True, "image_output": True}])
def test_a_package_of_pictures_is_judged_like_one_of_tensors(
    tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    pytest.importorskip("coremltools")
    from export.to_coreml import export

    teacher, student = (Artifact.load(tiny_run / name) for name in FILES[:2])
    made = export(student, tmp_path / "a.mlpackage", precision=Precision.FP32, input_size=(64, 64), options=options)
    chosen = settings(lite_weights, iterations=1, pictures=1)
    found = benchmark([student, made], photos, teacher=teacher, settings=chosen)
    eager, package = found.rows[1:]
    assert package.status == "built"
    assert package.lpips == pytest.approx(eager.lpips, abs=1e-3)
    assert package.psnr_db == pytest.approx(eager.psnr_db, abs=0.02)
    labels = [tile.label for tile in found.pictures[0].tiles] + [n for t in found.pictures[0].tiles for n in t.also]
    assert package.label in labels


def test_raw_samples_and_reasons_are_kept(result: Benchmark) -> None:
    for row in result.rows[:4]:
        assert len(row.times_ms) == 3
        assert len(row.end_to_end_times_ms) == 1
        assert row.latency_p50_ms == pytest.approx(float(np.median(row.times_ms)))
        assert row.interference is None or 0 <= row.interference <= 1
        assert row.reason == "load, memory: not asked for; ms_ssim: expected 176x176 or larger, got 64x64; " + (
            "fix: use larger images, or leave this metric out"
        )
    assert "PyTorch eager computes in FP32 only" in (result.rows[4].reason or "")
    assert result.rows[4].lpips is None


def test_details_are_json(result: Benchmark) -> None:
    details = json.loads(json.dumps(result.details, allow_nan=False))
    assert details["baseline"]["what"] == "the photo without its chroma"
    assert details["baseline"]["lpips"] > 0
    assert details["photos"]["count"] == 3
    values = details["photos"]["values"][f"{FILES[2]}@cpu"]
    assert len(values["lpips"]) == len(values["infer_ms"]) == 3
    assert result.rows[2].lpips == pytest.approx(float(np.mean(values["lpips"])))
    assert "relu" in details["not_counted"]
    assert details["settings"]["threads"] == 1


def test_pictures_from_input_to_truth(result: Benchmark) -> None:
    assert len(result.pictures) == 3
    labels = [tile.label for tile in result.pictures[0].tiles]
    assert labels[0] == "Input"
    assert labels[1] == "Teacher · PyTorch FP32"
    assert labels[-1] == "Ground truth"
    assert result.pictures[0].why.startswith("worst photo of Distilled")


def test_it_becomes_a_report(result: Benchmark, tmp_path: Path) -> None:
    write_report(
        tmp_path,
        machine=result.machine,
        recipe={},
        rows=result.rows,
        pictures=result.pictures,
        details=result.details,
    )
    content = read_report(tmp_path)
    assert [row.label for row in rows_of(content)] == [row.label for row in result.rows]
    assert content["machine"]["id"] in content["machines"]
    assert "Where the quality went" in (tmp_path / "report.md").read_text()


def test_quality_alone_without_a_teacher(tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path) -> None:
    chosen = settings(lite_weights, latency=False, pictures=0)
    result = benchmark([Artifact.load(tiny_run / FILES[2])], photos, settings=chosen)
    (row,) = result.rows
    assert row.status == "built"
    assert row.lpips is not None
    assert row.lpips_vs_teacher is None
    assert "latency: not asked for" in (row.reason or "")
    assert "lpips_vs_teacher: no teacher among the artifacts; pass --teacher" in (row.reason or "")
    assert result.pictures == ()


def test_an_emulated_artifact_has_quality_and_no_latency(
    tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = tiny_run / FILES[2]
    real = contest.open_runner

    def emulate(path: Path, threads: int | None) -> Any:
        runner = real(path, device="cpu", threads=threads)
        runner.emulated = True
        return runner

    monkeypatch.setattr(contest, "can_run", lambda path, device: "it needs macOS" if path == onnx else None)
    monkeypatch.setattr(contest, "open_emulated", emulate)
    artifacts = [Artifact.load(tiny_run / name) for name in FILES]
    row = benchmark(artifacts, photos, settings=settings(lite_weights, pictures=0)).rows[2]
    assert (row.status, row.device, row.latency_p50_ms, row.speedup) == ("built", "emulated", None, None)
    assert row.lpips is not None
    assert (row.reason or "").startswith("latency: it needs macOS")


def test_threads_are_put_back(tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UnknownNameError, match=r"unknown LPIPS net: .*got 'lit'; fix: use 'lite'"):
        benchmark([Artifact.load(tiny_run / FILES[0])], photos, settings=settings(lite_weights, lpips_net="lit"))
    assert torch.get_num_threads() == before
    assert default_threads() >= 1


def test_artifacts_of_two_tasks_and_none_at_all(tiny_teacher: Artifact, photos: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected one task, got \['colorize', 'denoise'\]"):
        benchmark([tiny_teacher, replace(tiny_teacher, task="denoise", sha256="x")], photos)
    with pytest.raises(ConfigError, match="artifacts: expected one task, got no artifact"):
        benchmark([], photos)
    with pytest.raises(
        ConfigError, match=r"--teacher: expected a torch artifact, got onnx; fix: pass the .safetensors"
    ):
        benchmark([tiny_teacher], photos, teacher=replace(tiny_teacher, format="onnx"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"iterations": 0}, "--iterations: expected 1 or more, got 0"),
        ({"warmup": -1}, "--warmup: expected 0 or more, got -1"),
        ({"threads": 0}, "threads: expected 1 to 512, got 0"),
        ({"photo_limit": 0}, "--limit: expected 1 or more"),
        ({"input_size": (0, 64)}, "--input-size: expected height and width"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings(**values)
