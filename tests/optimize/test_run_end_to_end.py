"""The whole path on real stages, one real target and tiny networks: what ``python -m optimize run`` leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import export
from models.artifact import Artifact
from optimize.cli import main

pytestmark = pytest.mark.slow

RECIPE = """
teacher: {model: resnet18_unet}
stages: [distill, quantize]
distill:
  student_kwargs: {reduction: 2, widths: [8, 16], depths: [1, 1]}
  perceptual_weight: 0
  fit: {phases: [{size: 32, epochs: 1, batch_size: 4}], repeat: 1}
quantize: {max_lpips_drop: 10, calibration_samples: 4, sensitivity_photos: 1}
export: {targets: [onnx], precisions: [fp32, int8], reference_targets: []}
benchmark: {warmup: 1, iterations: 2, pictures: 1, probes: false}
gate: {max_lpips_drop: 10}
input_size: [64, 64]
threads: 1
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight smooth photos with colour, 64x64, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    rows, columns = np.mgrid[0:64, 0:64] / 64
    for index in range(8):
        waves = [np.sin(rows * (index + 2) + phase) * np.cos(columns * (9 - index) - phase) for phase in (0, 1, 2)]
        Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_run_distills_quantizes_exports_and_reports(
    tiny_teacher: Artifact, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    root = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    argv = f"run --config {tmp_path / 'recipe.yaml'} --weights {tiny_teacher.path} --data {photos} -o {root} -q --json"
    assert main(argv.split()) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in summary["stages"]] == ["distill", "quantize"]
    assert {row["status"] for row in summary["artifacts"]} == {"built"}
    report = json.loads((root / "report" / "report.json").read_text())
    by_target = {(row["target"], row["stage"], row["precision"]): row for row in report["rows"]}
    teacher, int8 = by_target["torch", "teacher", "fp32"], by_target["onnx", "quantize", "int8"]
    assert teacher["speedup"] == pytest.approx(1.0)
    assert int8["status"] == "measured"
    assert int8["lpips_net"] == "lite"
    assert 0 <= int8["lpips"] < 1
    for name in ("report.md", "index.html", "front.svg"):
        assert (root / "report" / name).stat().st_size > 500
    assert json.loads((root / "skipped_photos.json").read_text())[0]["photo"].endswith("broken.jpg")
    with export.open_runner(root / "artifacts" / "chroma_unet-int8.onnx") as runner:
        answer = runner.infer({"input": np.full((1, 1, 64, 64), 0.5, np.float32)})
    assert answer["output"].shape == (1, 2, 64, 64)
    assert (root / "bundle" / "bundle.json").exists()
