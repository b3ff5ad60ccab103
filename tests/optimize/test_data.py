"""Crops of photos: reproducible, varied, inside the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.errors import ConfigError
from models.photos import PhotoSet, open_photos
from models.tasks.base import Augmentation
from optimize.data import PhotoCrops, to_float


def test_a_crop_is_a_uint8_tensor(train_photos: PhotoSet) -> None:
    crop = PhotoCrops(train_photos, 32)[0]
    assert crop.shape == (3, 32, 32)
    assert crop.dtype == torch.uint8


def test_a_crop_depends_on_seed_epoch_and_photo_only(train_photos: PhotoSet) -> None:
    one, other = PhotoCrops(train_photos, 32, seed=5), PhotoCrops(train_photos, 32, seed=5, memory_mb=0)
    for index in (3, 0):
        one[index]
    assert torch.equal(one[1], other[1])
    one.epoch = 1
    assert not torch.equal(one[1], other[1])
    other.epoch = 1
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[1], PhotoCrops(train_photos, 32, seed=6)[1])


def test_repeats_give_other_crops_of_the_same_photo(train_photos: PhotoSet) -> None:
    crops = PhotoCrops(train_photos, 32, repeat=3)
    assert len(crops) == 3 * len(train_photos)
    assert not torch.equal(crops[0], crops[len(train_photos)])


def test_the_whole_square_without_tone_is_the_photo_or_its_mirror(tmp_path: Path) -> None:
    ramp = np.linspace(20, 220, 64).astype(np.uint8)
    rgb = np.stack([np.tile(ramp, (64, 1)), np.full((64, 64), 90), np.full((64, 64), 40)], -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    crops = PhotoCrops(open_photos(tmp_path), 64, min_area=1.0, tone_jitter=0.0)
    want = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    sides = set()
    for epoch in range(12):
        crops.epoch = epoch
        crop = crops[0]
        mirrored = bool(crop[0, 0, 0] > crop[0, 0, -1])
        sides.add(mirrored)
        torch.testing.assert_close(crop.flip(2) if mirrored else crop, want, rtol=0, atol=1)
    assert sides == {False, True}


def test_tone_moves_all_channels_alike(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.png")
    photos = open_photos(tmp_path)
    plain = PhotoCrops(photos, 32, tone_jitter=0.0)[0][:, 0, 0].double() / 255
    crops = PhotoCrops(photos, 32, tone_jitter=1.0)
    gammas = []
    for epoch in range(6):
        crops.epoch = epoch
        toned = crops[0][:, 0, 0].double() / 255
        gamma = toned.log() / plain.log()
        torch.testing.assert_close(gamma, gamma[:1].expand(3), rtol=0.03, atol=0.03)
        gammas.append(float(gamma[0]))
    assert 0.49 <= min(gammas) < 0.9 < 1.1 < max(gammas) <= 2.03


def test_small_photos_are_enlarged_and_memory_is_bounded(train_photos: PhotoSet) -> None:
    crops = PhotoCrops(train_photos, 96, memory_mb=0)
    assert crops[0].shape == (3, 96, 96)
    assert crops._kept == {}
    kept = PhotoCrops(train_photos, 32)
    kept[0]
    assert list(kept._kept) == [0]


def test_a_photo_that_breaks_is_replaced(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    photos = open_photos(tmp_path)
    assert PhotoCrops(photos, 32)[0].shape == (3, 32, 32)
    assert [entry.path.name for entry in photos.skipped] == ["a.png"]


@pytest.mark.parametrize("settings", [{"size": 8}, {"size": 32, "min_area": 0.0}, {"size": 32, "repeat": 0}])
def test_wrong_settings_are_refused(train_photos: PhotoSet, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="crops: expected size >= 16, 0 < min_area <= 1, repeat >= 1, got size"):
        PhotoCrops(train_photos, **settings)


def test_to_float() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_native_crops_are_the_pixels_of_the_photo(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    crops = PhotoCrops(open_photos(tmp_path), 32, native=True, tone_jitter=0.0, augmentation=Augmentation(False))
    windows = np.lib.stride_tricks.sliding_window_view(rgb, (32, 32), axis=(0, 1))
    places = set()
    for epoch in range(4):
        crops.epoch = epoch
        crop = crops[0].numpy()
        found = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
        assert len(found) == 1
        places.add(tuple(found[0]))
    assert len(places) > 1


def test_a_photo_smaller_than_a_native_crop_is_enlarged(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 52, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.png")
    crop = PhotoCrops(open_photos(tmp_path), 64, native=True, tone_jitter=0.0)[0]
    assert crop.shape == (3, 64, 64)
    assert crop[:, 5, 60].tolist() == [200, 100, 50]
