"""Pairs through the stages: crops, training, distillation, evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import get_task
from models.artifact import save_network
from models.blend import soft_light
from models.paired_photos import PairedPhotos, open_pairs
from models.registry import create_model
from models.tasks.base import Augmentation
from optimize import distill, train
from optimize.calibration import gather
from optimize.data import PhotoCrops, to_float
from optimize.evaluate import evaluate, load_photos
from optimize.loop import FitConfig, Phase
from optimize.recipe import recipe_from
from optimize.sources import open_recipe_photos, recipe_task
from optimize.stage import StageContext

TINY = {"reduction": 2, "widths": [8, 16], "depths": [1, 1], "in_channels": 3, "out_channels": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, and what a retoucher made of them: all a bit lighter on the left."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("input", "target"):
        (root / name).mkdir()
    overlay = torch.linspace(0.7, 0.5, 64).expand(1, 1, 56, 64)
    for index in range(6):
        rng = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 7, 8, generator=rng) * 0.8 + 0.1
        photo = torch.nn.functional.interpolate(coarse, size=(56, 64), mode="bilinear")
        for name, picture in (("input", photo), ("target", soft_light(photo, overlay))):
            pixels = (255 * picture[0].permute(1, 2, 0)).round().byte().numpy()
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def pairs(folder: Path) -> PairedPhotos:
    return open_pairs(folder)


@pytest.fixture
def paired_context(pairs: PairedPhotos, random_lpips: Path) -> StageContext:
    train_set, eval_set = pairs[:4], pairs[4:]
    return StageContext(
        train=train_set, eval=eval_set, calibration=train_set, input_size=(32, 32), lpips_weights=random_lpips
    )


def test_crops_take_both_pictures_from_one_place_and_leave_their_tone(pairs: PairedPhotos) -> None:
    crops = PhotoCrops(pairs, 32, tone_jitter=3.0, seed=4)
    flips = set()
    for index in range(len(pairs)):
        crop = to_float(crops[index][None])
        assert crop.shape == (1, 6, 32, 32)
        _, overlay = get_task("overlay").prepare(crop)
        rows = overlay[0, 0].mean(dim=0)
        flips.add(bool(rows[0] < rows[-1]))
        slope = (rows - rows.flip(0)) / 2
        assert float(slope.abs().max()) > 0.02, "the overlay is the painted ramp, from the crop's place"
        assert 0.45 < float(overlay.mean()) < 0.75
    assert flips == {False, True}


def test_a_task_decides_what_is_done_to_its_photos(pairs: PairedPhotos) -> None:
    still = PhotoCrops(pairs, 32, augmentation=Augmentation(horizontal_flip=False), min_area=1.0)
    for epoch in range(4):
        still.epoch = epoch
        _, overlay = get_task("overlay").prepare(to_float(still[0][None]))
        assert float(overlay[..., 0].mean()) > float(overlay[..., -1].mean())
    upright = PhotoCrops(pairs, 32, min_area=1.0)
    turned = PhotoCrops(pairs, 32, min_area=1.0, augmentation=Augmentation(vertical_flip=True))
    crops = []
    for epoch in range(6):
        upright.epoch = turned.epoch = epoch
        crops.append((upright[0], turned[0]))
    assert any(not torch.equal(one, other) and torch.equal(one, other.flip(1)) for one, other in crops)


def test_evaluation_judges_against_the_composite(pairs: PairedPhotos, random_lpips: Path) -> None:
    task, rgb = get_task("overlay"), load_photos(pairs, (32, 32))
    assert rgb.shape == (6, 6, 32, 32)

    class Perfect(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            place = [int(np.argmin([(x[0] - other[:3]).abs().sum() for other in rgb])) + i for i in range(len(x))]
            return torch.cat([task.prepare(rgb[p : p + 1])[1] for p in place])

    scores = evaluate(Perfect(), task, rgb, lpips_weights=random_lpips)
    assert scores["lpips"] < 1e-5 < scores["lpips_do_nothing"]
    assert scores["psnr_db"] > 60 > scores["psnr_db_do_nothing"]


def test_a_recipe_opens_pairs_for_a_task_that_takes_them(folder: Path) -> None:
    recipe = recipe_from({"teacher": {"model": "chroma_unet", "task": "overlay"}, "data": {"source": str(folder)}})
    assert recipe_task(recipe).name == "overlay"
    photos = open_recipe_photos(recipe.data, seed=0, task=recipe_task(recipe))
    assert photos.train.load(0).shape[2] == 6
    capped = open_recipe_photos(replace(recipe.data, train_photos=2), seed=0, task=recipe_task(recipe))
    assert len(capped.train) == len(capped.calibration) == 2 < len(photos.train)
    assert set(capped.train.paths) < set(photos.train.paths)
    assert capped.eval.paths == photos.eval.paths
    assert recipe_task(recipe_from({})).name == "colorize"
    own = {"stages": [], "train": {"model": "chroma_unet", "task": "overlay"}}
    assert recipe_task(recipe_from(own)).name == "overlay"
    assert gather(photos.train, get_task("overlay"), samples=4, input_size=(32, 32)).inputs.shape == (4, 3, 32, 32)


def test_training_and_distillation_take_pairs(paired_context: StageContext, tmp_path: Path) -> None:
    fit = FitConfig(phases=(Phase(32, 2, 2),), mixed_precision="no")
    net = create_model("chroma_unet", **TINY)
    start = save_network(net, tmp_path / "start.safetensors", model="chroma_unet", task="overlay", model_kwargs=TINY)
    config = train.TrainConfig(model="chroma_unet", task="overlay", fit=fit, perceptual_weight=0.1, native_crops=True)
    teacher = train.run(start, config, paired_context, tmp_path)
    assert teacher.task == "overlay"
    assert teacher.metadata["scores"]["psnr_db_do_nothing"] > 10
    settings = distill.DistillConfig(
        student="chroma_unet",
        student_kwargs=TINY,
        fit=replace(fit, repeat=2),
        feature_weight=0.0,
        output_pixel="ms_ssim_l1",
        truth_pixel="huber",
        tv_weight=0.005,
    )
    student = distill.run(teacher, settings, paired_context, tmp_path / "distill")
    assert student.parent_sha256 == teacher.sha256
    assert np.isfinite(student.metadata["scores"]["student"]["psnr_db"])
