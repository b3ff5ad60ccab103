"""One artifact a target and precision: what a target has not by design is a row with the reason and ends no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.artifact import Artifact
from models.spec import Precision
from optimize.exports import check_made, plan, run_jobs


def test_an_ort_file_in_fp16_is_unsupported_and_the_rest_is_made(tiny_student: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    sources = {Precision.FP32: tiny_student, Precision.FP16: tiny_student}
    jobs = plan(sources, targets=["onnx"], precisions=sources, folder=tmp_path)
    outcomes = run_jobs(jobs, input_size=(64, 64), options={"onnx": {"ort": True}})
    check_made(outcomes)
    fp32, fp16 = outcomes
    assert fp32.status == "built"
    assert fp32.job.path.with_suffix(".ort").is_file()
    assert (fp16.status, fp16.artifact) == ("unsupported", None)
    assert fp16.reason is not None
    assert "precision of an .ort file: expected fp32 | int8, got fp16; fix: choose one of these" in fp16.reason
