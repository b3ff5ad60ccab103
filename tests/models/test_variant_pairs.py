"""Folders of photos with a target for each variant: what is matched, what is skipped and why, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from models.paired_photos import open_for
from models.photos import centre_square, to_batch
from models.registry import get_task
from models.variant_pairs import VariantPairs
from optimize.data import PhotoCrops, to_float

FOLDERS = ("input", "target/dodge_and_burn", "target/volume")


def save(folder: Path, name: str, seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / name)
    return rgb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three whole photos, one that lacks a target, one whose second target has another size."""
    for index, name in enumerate("abc"):
        for place, part in enumerate(FOLDERS):
            save(tmp_path / part, f"{name}.png", 10 * place + index)
    for part in FOLDERS[:2]:
        save(tmp_path / part, "single.png", 5)
    for part in FOLDERS:
        save(tmp_path / part, "large.png", 6, size=(48, 66) if part.endswith("volume") else (48, 64))
    return tmp_path


def open_it(folder: Path) -> VariantPairs:
    found = open_for(folder, task=get_task("overlay_variants"))
    assert isinstance(found, VariantPairs)
    return found


def test_a_photo_brings_both_of_its_targets(folder: Path) -> None:
    found = open_it(folder)
    assert found.names == ("input/a.png", "input/b.png", "input/c.png")
    pictures = found.load(1)
    assert pictures.shape == (48, 64, 9)
    for place, part in enumerate(FOLDERS):
        assert np.array_equal(pictures[..., 3 * place : 3 * place + 3], np.asarray(Image.open(folder / part / "b.png")))
    assert found.load(0, short_side=32).shape == (32, 43, 9)
    assert found.split(0.4)[0].load(0).shape[2] == 9


def test_what_lacks_a_target_is_listed_with_the_reason(folder: Path) -> None:
    reasons = {entry.path.name: entry.reason for entry in open_it(folder).skipped}
    assert reasons == {
        "single.png": "has no partner: no single.* in target/volume/",
        "large.png": "is 48x64, but its target large.png is 48x66",
    }


def test_crops_keep_the_three_pictures_aligned(folder: Path) -> None:
    for part in FOLDERS[1:]:
        rgb = np.asarray(Image.open(folder / "input" / "a.png"))
        Image.fromarray(rgb if part.endswith("volume") else 255 - rgb).save(folder / part / "a.png")
    found = open_it(folder)
    crop = to_float(PhotoCrops(found, 32)[0][None])
    assert crop.shape == (1, 9, 32, 32)
    square = to_batch([centre_square(found.load(0), 40)])
    for batch in (crop, square):
        assert float((batch[:, 6:] - batch[:, :3]).abs().max()) == 0
        assert float((batch[:, 3:6] + batch[:, :3] - 1).abs().max()) < 3 / 255
        assert get_task("overlay_variants").prepare(batch)[0].shape[1] == 4


def test_a_changed_target_changes_the_fingerprint(folder: Path) -> None:
    before = open_it(folder).fingerprint
    save(folder / "target" / "volume", "b.png", 99)
    assert open_it(folder).fingerprint != before


def test_the_layout_is_asked_for(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "target" / "volume").iterdir():
        file.rename(folder / "target" / file.name)
    (folder / "target" / "volume").rmdir()
    message = r"expected folders target/dodge_and_burn, target/volume, got no target/volume; fix: sort the targets by"
    with pytest.raises(DataError, match=message):
        open_it(folder)
    (folder / "target" / "volume").mkdir()
    with pytest.raises(DataError, match=r"at least one usable photo, got \d+ files, all skipped: \d+ partner"):
        open_it(folder)
