"""A zoo of one tiny network, with real processes: trained, distilled, quantized, exported, measured, tabled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main

pytestmark = pytest.mark.slow

NETWORK = """
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
"""
SETTINGS = (
    "stages=[distill,quantize]",
    "train.perceptual_weight=0",
    "distill.perceptual_weight=0",
    "distill.student_kwargs={reduction: 2, widths: [8, 16], depths: [1, 1]}",
    "quantize.calibration_samples=4",
    "quantize.sensitivity_photos=1",
    "export.precisions=[int8]",
    "export.reference_targets=[]",
    "benchmark.iterations=2",
    "benchmark.warmup=1",
    "data.eval_photos=2",
)


def test_a_zoo_of_one_tiny_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "tiny.py").write_text(NETWORK)
    argv = ["zoo", "-o", str(tmp_path / "zoo"), "--models", f"{tmp_path / 'tiny.py'}:build", "--minutes", "0.02"]
    argv += ["--input-size", "64", "64", "--targets", "onnx", "--threads", "1", "--quiet", "--json"]
    argv += [word for setting in SETTINGS for word in ("--set", setting)]
    assert main(argv) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["status"] == "done", row["reason"]
    assert row["shipped"] == "Quantized · ONNX Runtime INT8"
    assert row["student"] == "chroma_unet"
    assert row["teacher_params_m"] == pytest.approx(226e-6)
    assert row["speedup"] > 0
    assert 0 <= row["shipped_value"] < 1
    assert row["shipped_margin"] == pytest.approx(row["idle_value"] - row["shipped_value"])
    assert row["stages"].startswith("distill ")
    tiles = json.loads((tmp_path / "zoo" / "zoo.json").read_text())["pictures"][0]["tiles"]
    assert [tile["label"] for tile in tiles] == ["Input", "Do nothing", "Teacher", "Shipped", "Ground truth"]
    (log,) = (tmp_path / "zoo" / "models").glob("*/run.log")
    before = log.stat().st_mtime_ns
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [row]
    assert log.stat().st_mtime_ns == before
