"""A user's own network through the whole path: a file with a factory, published weights, no ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import Artifact, load_network
from models.registry import load_object
from optimize.cli import main

pytestmark = pytest.mark.slow

OWN = """
from torch import nn


def restyle():
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3, 2), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8),
        nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Sigmoid(),
    )
"""
WAVES = """
import torch
from torch import nn


class Waves(nn.Module):
    def forward(self, x):
        y = torch.fft.fft2(x).real
        if y.mean() > 0.1:
            y = y * 0.5
        return y


def waves():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Waves(), nn.Conv2d(8, 3, 1), nn.Sigmoid())
"""
TASK = """
from models.tasks.image import Image


class Brighter(Image):
    def prepare(self, rgb):
        return 1 + 2 * rgb, rgb
"""
UNRENDERED = """
from models.tasks.image import Image


class Signed(Image):
    def prepare(self, rgb):
        return rgb, rgb

    def render(self, inputs, outputs):
        return outputs * 2 - 1


class Odd(Image):
    def prepare(self, rgb):
        return rgb.nonsense, rgb
"""
METRIC = """
from models.tasks.image import Image


class Named(Image):
    metrics = ("psnr", "ssmi")
"""
ODD = """
import torch
from torch import nn


class Two(nn.Module):
    def forward(self, x, mask):
        return x * mask


class Large(nn.Module):
    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2)

"""
METRICS = """
import torch
from models.tasks.image import Image


def darkening(preds, target):
    return (target - preds).mean((1, 2, 3))


def one_number(preds, target):
    return (target - preds).mean()


class Darkening(Image):
    metrics = ("lpips", darkening)


class OneNumber(Image):
    metrics = (one_number,)


class Unnamed(Image):
    metrics = (lambda preds, target: preds.mean((1, 2, 3)),)
"""
RECIPE = """
stages: [distill, prune, quantize]
distill:
  student_kwargs: {reduction: 2, widths: [8, 16], depths: [1, 1]}
  perceptual_weight: 0
  fit: {phases: [{size: 32, epochs: 1, batch_size: 4}], repeat: 1}
prune: {pruning_ratio: 0.3, round_to: 1, fine_tune: false, photos: 2, engines: [torch], iterations: 1}
quantize: {max_lpips_drop: 10, calibration_samples: 4, sensitivity_photos: 1}
export: {targets: [onnx], precisions: [fp32, int8], reference_targets: []}
benchmark: {warmup: 1, iterations: 2, pictures: 1, probes: false}
gate: {max_lpips_drop: 10, min_gain: 0}
input_size: [64, 64]
threads: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, the file of the user's, weights as a training script saves them, a recipe."""
    folder = tmp_path_factory.mktemp("user")
    rows, columns = np.mgrid[0:64, 0:64] / 64
    (folder / "photos").mkdir()
    for index in range(8):
        waves = [np.sin(rows * (index + 2) + phase) * np.cos(columns * (9 - index) - phase) for phase in (0, 1, 2)]
        Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)).save(folder / "photos" / f"{index}.png")
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    (folder / "metrics.py").write_text(METRICS, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    torch.manual_seed(0)
    net = load_object(f"{folder / 'own.py'}:restyle")()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "net.pth")
    return folder


def test_a_task_that_leaves_its_own_range_is_refused_at_the_start(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "brighter.py").write_text(TASK, encoding="utf-8")
    argv = (
        f"run --config {folder / 'recipe.yaml'} --teacher {folder / 'own.py'}:restyle --weights {folder / 'net.pth'} "
    )
    argv += f"--task {folder / 'brighter.py'}:Brighter --data {folder / 'photos'} -o {tmp_path / 'run'} -q"
    assert main(argv.split()) == 2
    assert "makes: expected values in [0, 1], got 1.05 to 2.93; fix: correct its prepare" in capsys.readouterr().err
    assert not (tmp_path / "run/stages/01-distill").exists()


def test_one_stage_says_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("an odd one")

    (folder / "brighter.py").write_text(TASK, encoding="utf-8")
    (folder / "odd.py").write_text(ODD, encoding="utf-8")
    (folder / "metric.py").write_text(METRIC, encoding="utf-8")
    (folder / "unrendered.py").write_text(UNRENDERED, encoding="utf-8")
    common = f"distill --data {folder / 'photos'} --lpips-net lite --input-size 64 64 -q -o {tmp_path}"
    for name, task, status, message in (
        (f"{folder / 'own.py'}:restyle", f"{folder / 'brighter.py'}:Brighter", 2, "expected values in [0, 1], got"),
        (f"{folder / 'own.py'}:restyle", f"{folder / 'metric.py'}:Named", 2, "got 'ssmi'; fix: use 'ssim'"),
        (
            f"{folder / 'own.py'}:restyle",
            f"{folder / 'unrendered.py'}:Signed",
            2,
            "renders: expected values in [0, 1], got",
        ),
        (
            f"{folder / 'own.py'}:restyle",
            f"{folder / 'unrendered.py'}:Odd",
            2,
            "a prepare that takes a photo, got Attr",
        ),
        (
            f"{folder / 'own.py'}:restyle",
            f"{folder / 'metrics.py'}:OneNumber",
            2,
            "expected a tensor of shape (1,) for",
        ),
        (f"{folder / 'own.py'}:restyle", f"{folder / 'metrics.py'}:Unnamed", 2, "got '<lambda>'; fix: name each"),
        (f"{folder / 'odd.py'}:Two", "image", 1, "fix: write a small module around it whose forward takes one tensor"),
        (f"{folder / 'odd.py'}:Large", "image", 1, 'that says so in its outputs: ("N", 3, "2H", "2W")'),
    ):
        assert main([*common.split()[:-1], str(tmp_path / name.split(":")[1]), "--teacher", name, "--task", task]) == (
            status
        )
        assert message in capsys.readouterr().err
    monkeypatch.setattr("optimize.distill.run", fail)
    own = [str(tmp_path / "odd"), "--teacher", f"{folder / 'own.py'}:restyle", "--task", "image"]
    assert main([*common.split()[:-1], *own]) == 1
    said = capsys.readouterr().err
    assert "stage distill: expected a network that it can work on, got KeyError: 'an odd one'; fix: set PARE" in said


def test_a_network_that_no_target_takes_is_named_with_layer_operator_and_a_way_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnxruntime", "coremltools"):
        pytest.importorskip(package)
    (folder / "waves.py").write_text(WAVES, encoding="utf-8")
    net = load_object(f"{folder / 'waves.py'}:waves")()
    torch.save(net.state_dict(), folder / "waves.pth")
    argv = f"run --config {folder / 'recipe.yaml'} --teacher {folder / 'waves.py'}:waves --weights "
    argv += f"{folder / 'waves.pth'} --task image --data {folder / 'photos'} -o {tmp_path / 'run'} -q --keep-going"
    sets = ["stages=[]", "export.targets=[onnx,coreml]", "export.precisions=[fp32]"]
    assert main([*argv.split(), *(word for value in sets for word in ("--set", value))]) == 1
    said = capsys.readouterr().err
    assert "got onnx fp32: " in said
    assert "layer 1: operator _local_scalar_dense: Python code decides by the values of a tensor" in said
    assert "coreml fp32: " in said
    assert "def forward" not in said
    assert "distill the network into a student" in said
    assert "max-lpips-drop" not in said


@pytest.mark.parametrize("student", ["image_unet", "teacher"])
def test_the_teacher_is_the_truth_from_distillation_to_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], student: str
) -> None:
    pytest.importorskip("onnxruntime")
    argv = (
        f"run --config {folder / 'recipe.yaml'} --teacher {folder / 'own.py'}:restyle --weights {folder / 'net.pth'} "
    )
    task = "image" if student == "image_unet" else f"{folder / 'metrics.py'}:Darkening"
    argv += f"--task {task} --student {student} --data {folder / 'photos'} -o {tmp_path / 'run'} -q --json"
    extra = ["--set", "distill.narrow=0.5"] if student == "teacher" else []
    assert main([*argv.split(), *extra]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [stage["accepted"] for stage in summary["stages"]] == [True] * 3
    assert {row["status"] for row in summary["artifacts"]} == {"built"}
    rows = json.loads((tmp_path / "run/report/report.json").read_text())["rows"]
    by_target = {(row["target"], row["stage"], row["precision"]): row for row in rows}
    teacher, int8 = by_target["torch", "teacher", "fp32"], by_target["onnx", "quantize", "int8"]
    assert (teacher["lpips"], teacher["lpips_vs_teacher"]) == (None, pytest.approx(0, abs=1e-5))
    assert int8["lpips"] is None
    assert int8["lpips_vs_teacher"] > 0.01
    assert int8["psnr_db"] < 60
    assert "no ground truth" in int8["reason"]
    distilled = Artifact.load(summary["stages"][0]["artifact"])
    assert distilled.model == ("image_unet" if student == "image_unet" else f"{folder / 'own.py'}:restyle")
    whole = sum(p.numel() for p in load_network(tmp_path / "run/stages/00-teacher/teacher.safetensors").parameters())
    small = sum(p.numel() for p in load_network(summary["stages"][1]["artifact"]).parameters())
    if student == "teacher":
        assert small < 0.7 * whole
    scores = json.loads((tmp_path / "run/stages/00-teacher/scores.json").read_text())["scores"]
    if student == "teacher":  # whose task has a metric of its own, in the scores of each stage and in the report
        assert scores["darkening"] == pytest.approx(0, abs=1e-6)
        assert abs(int8["own_metrics"]["darkening"]) > 1e-4
        assert "| darkening |" in (tmp_path / "run/report/report.md").read_text()
        assert ">darkening<" in (tmp_path / "run/report/index.html").read_text()
    assert scores["lpips_to"] == "teacher"
    assert scores["psnr_db"] == 100
