"""Raw pairs through the stages: 16 bits from the file to the losses, the cache and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifact import Artifact, save_network
from models.paired_photos import open_for
from models.raw_pairs import RawPairs, write_pair
from models.registry import create_model, get_task
from models.tasks.low_light import make_raw
from optimize.calibration import gather
from optimize.cli import main
from optimize.data import PhotoCrops, to_float
from optimize.teacher_answers import AnswerConfig, compute_answers

pytest.importorskip("tifffile")

KWARGS = {"width": 4, "deepest": 8}
RATIO = 200.0
FIT = "{phases: [{size: 64, epochs: 1, batch_size: 2}], repeat: 1, mixed_precision: 'no'}"
RECIPE = f"""
stages: [distill, quantize]
train: {{perceptual_weight: 0, fit: {FIT}}}
distill: {{student: sid_unet, student_kwargs: {{width: 4, deepest: 8}}, perceptual_weight: 0, fit: {FIT}}}
quantize: {{max_lpips_drop: 10, calibration_samples: 4, sensitivity_photos: 1, sensitivity_size: 32}}
export: {{targets: [onnx], precisions: [int8], reference_targets: []}}
benchmark: {{warmup: 0, iterations: 1, pictures: 1, probes: false}}
gate: {{max_lpips_drop: 10}}
data: {{eval_fraction: 0.34}}
input_size: [32, 32]
threads: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of 72x80 pixels, darker than one step of 8 bits."""
    root = tmp_path_factory.mktemp("raw")
    for index in range(6):
        rng = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 9, 10, generator=rng) * 0.6
        photo = torch.nn.functional.interpolate(coarse, size=(72, 80), mode="bilinear")
        write_pair(root, str(index), make_raw(photo, ratio=RATIO)[0], photo)
    (root / "pairs.json").write_text(json.dumps({"ratio": RATIO}))
    return root


@pytest.fixture
def pairs(folder: Path) -> RawPairs:
    found = open_for(folder, task=get_task("low_light"))
    assert isinstance(found, RawPairs)
    return found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sid") / "sid.safetensors"
    return save_network(
        create_model("sid_unet", **KWARGS), path, model="sid_unet", task="low_light", model_kwargs=KWARGS
    )


def test_crops_keep_their_bits_and_the_kept_photos_their_type(pairs: RawPairs) -> None:
    crops = PhotoCrops(pairs, 32)
    crop = crops[0]
    assert crop.dtype == torch.uint16
    inputs, target = get_task("low_light").prepare(to_float(crop[None]))
    assert inputs.shape == (1, 5, 16, 16)
    raw = inputs[:, :4]
    assert float(raw.max()) < 1 / 255
    assert len(torch.unique(raw)) > 10  # in 8 bits one or two
    assert len(torch.unique(target)) > 256
    assert float(inputs[0, 4, 0, 0]) == pytest.approx(RATIO, rel=2e-3)
    assert {kept.dtype for kept in crops._kept.values()} == {np.dtype(np.uint16)}
    sums = set()
    for crops.epoch in range(6):
        sums.add(float(crops[0].float().sum()))
    assert len(sums) > 3


def test_the_cache_of_answers_keeps_sixteen_bits(pairs: RawPairs, teacher: Artifact, tmp_path: Path) -> None:
    answers = compute_answers(teacher, pairs[:2], AnswerConfig(size=64, views=2, features=False), cache=tmp_path)
    crops = PhotoCrops(pairs[:2], 64, repeat=2)
    rgb, output, _ = answers[3]
    assert rgb.dtype == torch.uint16
    assert torch.equal(rgb.int(), crops[3].int())
    assert output.shape == (3, 64, 64)


def test_calibration_takes_random_parts_of_whole_cells(pairs: RawPairs) -> None:
    found = gather(pairs, get_task("low_light"), samples=12, input_size=(16, 16))
    assert found.inputs.shape == (12, 5, 16, 16)
    assert torch.allclose(found.inputs[:, 4], torch.tensor(RATIO), rtol=2e-3)
    assert len({round(float(part[:4].double().sum()), 9) for part in found.inputs}) == 12


@pytest.mark.slow
def test_the_command_line_trains_and_runs_on_raw_pairs(
    folder: Path, teacher: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``train``; then ``run``: distil, quantize, export and measure, all on the pairs of ``--data``."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    common = f"--config {tmp_path / 'recipe.yaml'} --teacher sid_unet --data {folder} -q --json"
    assert main(f"train {common} --weights {teacher.path} -o {tmp_path / 'train'}".split()) == 0
    capsys.readouterr()
    weights = next((tmp_path / "train").rglob("sid_unet.safetensors"))
    assert main(f"run {common} --weights {weights} -o {tmp_path / 'run'}".split()) == 0
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    (int8,) = (row for row in report["rows"] if row["target"] == "onnx")
    assert int8["status"] == "measured"
    assert int8["psnr_db"] > 5
