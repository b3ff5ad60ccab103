"""Tiny photos, a tiny LPIPS, and the context that stages get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import save_tensors
from models.photos import PhotoSet, open_photos
from optimize.stage import StageContext


def paint(path: Path, seed: int, size: tuple[int, int] = (48, 56)) -> None:
    """Write a colourful picture: two gradients and a disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    first, second, disc = rng.uniform(30, 225, (3, 3))
    rgb = first + (second - first) * (rows * rng.uniform(0.3, 1) + columns * rng.uniform(0.3, 1))[..., None] / 2
    centre = rng.uniform(0.2, 0.8, 2)
    rgb[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.03] = disc
    Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(path)


def folder_of_photos(folder: Path, count: int, *, seed: int) -> PhotoSet:
    folder.mkdir(parents=True)
    for index in range(count):
        paint(folder / f"{index}.png", seed + index)
    return open_photos(folder)


@pytest.fixture(scope="session")
def train_photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoSet:
    """Six photos of 48x56 pixels."""
    return folder_of_photos(tmp_path_factory.mktemp("photos") / "train", 6, seed=1)


@pytest.fixture(scope="session")
def eval_photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoSet:
    """Two others."""
    return folder_of_photos(tmp_path_factory.mktemp("photos") / "eval", 2, seed=100)


@pytest.fixture(scope="session")
def random_lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS ``lite`` with random features: a distance all the same, and there before the trained one is."""
    from benchmarks.metrics.backbones import lite_features
    from benchmarks.metrics.lpips import LPIPS

    torch.manual_seed(11)
    path = tmp_path_factory.mktemp("lpips") / "lite.safetensors"
    save_tensors(LPIPS(lite_features(), "lite").state_dict(), path)
    return path


@pytest.fixture
def context(train_photos: PhotoSet, eval_photos: PhotoSet, random_lpips: Path) -> StageContext:
    """Everything small: 64x64, the random LPIPS."""
    return StageContext(
        train=train_photos,
        eval=eval_photos,
        calibration=train_photos,
        input_size=(64, 64),
        lpips_weights=random_lpips,
    )
