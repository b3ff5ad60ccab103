"""Rows from what was measured: stages, costs through the chain of parents, reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.assemble import Findings, build_row, count_costs, relative_name, stage_of
from benchmarks.contest import Contestant, name_of
from benchmarks.cost import Cost
from benchmarks.quality import Photos, Scores
from benchmarks.row import BenchmarkRow
from benchmarks.timing import Measurement
from models.artifact import Artifact


def findings(teacher: Artifact | None, photos: np.ndarray[Any, Any], **more: Any) -> Findings:
    """Nothing measured yet."""
    values: dict[str, Any] = {
        "teacher": teacher,
        "photos": Photos.of(photos, (64, 64), limit=None),
        "lpips_net": "lite",
        "scores": {},
        "latency": {},
        "whole": {},
        "iterations": 1,
        "costs": {},
        "machine": "here",
        "threads": 2,
    }
    return Findings(**{**values, **more})


def test_metrics_of_a_task_of_its_own_are_in_the_row_or_say_why_not(
    photos: np.ndarray[Any, Any], tiny_teacher: Artifact
) -> None:
    scores = Scores(values={"lpips": [0.1] * 3, "edges": [1.0, 2.0, 3.0], "odd": [1.0, float("inf"), 1.0]})
    found = findings(
        tiny_teacher,
        photos,
        scores={name_of(tiny_teacher, "cpu"): scores},
        costs={tiny_teacher.sha256: "not counted"},
        own_metrics=("edges", "odd"),
    )
    contestant = Contestant(tiny_teacher, "cpu", status="built", reasons={"latency": "not timed"})
    row = build_row(contestant, found)
    assert row.own_metrics == {"edges": 2.0, "odd": None}
    assert "odd: not finite" in str(row.reason)
    assert "edges" not in str(row.reason)
    assert BenchmarkRow.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_stages(tiny_teacher: Artifact) -> None:
    assert stage_of(replace(tiny_teacher, stages=())) == "teacher"
    assert stage_of(replace(tiny_teacher, stages=("train",))) == "teacher"
    assert stage_of(replace(tiny_teacher, stages=("teacher", "distill", "prune"))) == "prune"
    odd = replace(tiny_teacher, stages=("teacher", "finetune"))
    assert stage_of(odd, odd) == "teacher"


def test_an_exported_artifact_costs_what_its_network_costs(tiny_run: Path) -> None:
    teacher, student = (
        Artifact.load(tiny_run / name) for name in ("teacher.safetensors", "distill/student.safetensors")
    )
    exported = Artifact.load(tiny_run / "artifacts" / "student-fp32.onnx")
    costs = count_costs([teacher, student, exported], (64, 64))
    assert isinstance(costs[student.sha256], Cost)
    assert costs[exported.sha256] is costs[student.sha256]
    assert costs[teacher.sha256] != costs[student.sha256]
    assert "not among those measured" in str(count_costs([exported], (64, 64))[exported.sha256])


def test_a_network_that_cannot_be_counted_says_why(tiny_teacher: Artifact) -> None:
    assert "input shape: expected one that the network takes, got (1, 1, 63, 64)" in str(
        count_costs([tiny_teacher], (63, 64))[tiny_teacher.sha256]
    )


def scores(*lpips: float) -> Scores:
    """Scores of three photos."""
    found = Scores()
    found.values = {
        "lpips": list(lpips),
        "lpips_vs_teacher": [0.1, 0.2, 0.3],
        "colourfulness": [0.2, 0.2, 0.2],
        "colourfulness_of_truth": [0.1, 0.4, 0.3],
    }
    return found


class Runner:
    """What build_row reads of a runner."""

    device, runtime, threads, emulated = "cpu", "fake 1", 2, False


def test_a_row_worked_by_hand(tiny_teacher: Artifact, tiny_student: Artifact, photos: np.ndarray[Any, Any]) -> None:
    one = Contestant(tiny_student, "cpu", runner=Runner())  # type: ignore[arg-type]
    base = name_of(tiny_teacher, "cpu")
    found = findings(
        tiny_teacher,
        photos,
        scores={one.name: scores(0.1, 0.5, 0.3)},
        latency={one.name: Measurement((2.0, 2.0, 4.0)), base: Measurement((30.0, 30.0, 31.0))},
        whole={one.name: Measurement((5.0, 6.0))},
        costs={tiny_student.sha256: Cost(1.5, 0.25, ())},
        root=tiny_student.path.parent,
    )
    row = build_row(one, found)
    assert row.lpips == pytest.approx(0.3)
    assert (row.lpips_worst, row.worst_photo) == (0.5, "photo 1")
    assert row.lpips_vs_teacher == pytest.approx(0.2)
    assert row.colourfulness_ratio == pytest.approx(0.75)
    assert (row.latency_p50_ms, row.images_per_s, row.latency_is_noisy) == (2.0, 500.0, True)
    assert (row.speedup, row.speedup_over) == (15.0, "torch fp32 on cpu")
    assert row.end_to_end_p50_ms == 5.5
    assert (row.params_m, row.gmacs) == (1.5, 0.25)
    assert row.artifact == tiny_student.path.name
    assert row.size_mb == pytest.approx(tiny_student.path.stat().st_size / 1e6)
    assert row.status == "measured"
    assert row.reason is None


def test_without_a_teacher_the_row_says_so(tiny_student: Artifact, photos: np.ndarray[Any, Any]) -> None:
    one = Contestant(tiny_student, "cpu", runner=Runner())  # type: ignore[arg-type]
    measured = {one.name: Measurement((2.0,))}
    found = findings(None, photos, latency=measured, whole=measured, costs={tiny_student.sha256: "no parent"})
    row = build_row(one, found)
    assert row.speedup is None
    assert row.reason == "speedup: no teacher among the artifacts; pass --teacher; params_m, gmacs: no parent"


def test_names_are_relative_where_they_can_be(tmp_path: Path) -> None:
    assert relative_name(tmp_path / "a" / "b.onnx", tmp_path) == "a/b.onnx"
    assert relative_name(tmp_path / "a" / "b.onnx", tmp_path / "c") == "b.onnx"
    assert relative_name(tmp_path / "b.onnx", None) == "b.onnx"
