"""What a calibration set covers, and which sets are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.errors import ConfigError, DataError
from models.photos import PhotoSet, open_photos
from models.registry import get_task
from optimize.calibration import describe, describe_coverage, gather, saturation

TASK = get_task("colorize")
SIZE = (32, 48)


def flat_photos(folder: Path, colours: list[tuple[int, int, int]], *, keep_grey: bool = False) -> PhotoSet:
    folder.mkdir()
    for index, colour in enumerate(colours):
        Image.new("RGB", (64, 64), colour).save(folder / f"{index}.png")
    return open_photos(folder, keep_grey=keep_grey)


def test_inputs_have_the_asked_number_and_size(train_photos: PhotoSet) -> None:
    few = gather(train_photos, TASK, samples=4, input_size=SIZE)
    assert few.inputs.shape == (4, 1, *SIZE)
    assert few.photos == 4
    many = gather(train_photos, TASK, samples=15, input_size=SIZE)
    assert many.inputs.shape == (15, 1, *SIZE)
    assert many.photos == len(train_photos) == 6
    different = {tuple(row.flatten().tolist()) for row in many.inputs}
    assert len(different) == 15, "a photo that is used again is cropped differently"


def test_a_seed_gives_the_same_inputs(train_photos: PhotoSet) -> None:
    one, same, other = (gather(train_photos, TASK, samples=9, input_size=SIZE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize("colours", [[(200, 30, 30)] * 3, [(200, 30, 30), (20, 60, 200)]])
def test_one_colour_is_an_error(tmp_path: Path, colours: list[tuple[int, int, int]]) -> None:
    photos = flat_photos(tmp_path / "flat", colours)
    match = r"calibration photos: expected photos with light and dark places, got 6 crops of one colour each \(mean RGB"
    with pytest.raises(DataError, match=match):
        gather(photos, TASK, samples=6, input_size=SIZE)


def test_grey_photos_are_warned_about(tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(folder / "ramp.png")
    found = gather(open_photos(folder, keep_grey=True), TASK, samples=2, input_size=SIZE)
    assert found.coverage["grey"] == 1.0
    assert any("the calibration photos are grey" in text for text in found.warnings)
    assert any("calibrated on 1 photos: 16 or more" in text for text in found.warnings)


def test_the_range_of_a_control_is_told(train_photos: PhotoSet) -> None:
    task = get_task("denoise")
    made = gather(train_photos, task, samples=24, input_size=(32, 32))
    levels = made.inputs[:, 3, 0, 0]
    low, high = made.coverage["controls"]["level"]
    assert (low, high) == (pytest.approx(float(levels.min()), abs=1e-4), pytest.approx(float(levels.max()), abs=1e-4))
    assert low < 0.2 < 0.8 < high
    assert describe(made.coverage).endswith(f", level {low:g} to {high:g}")
    assert not any("level" in warning for warning in made.warnings)
    one = gather(train_photos, task, samples=1, input_size=(32, 32))
    assert any(warning.startswith("calibrated on level from ") for warning in one.warnings)
    assert gather(train_photos, get_task("colorize"), samples=1, input_size=(32, 32)).coverage["controls"] == {}


def test_no_samples() -> None:
    with pytest.raises(ConfigError, match="calibration samples: expected 1 or more, got 0"):
        gather(PhotoSet([], root=Path()), TASK, samples=0, input_size=SIZE)


def test_coverage_of_a_picture_worked_by_hand() -> None:
    rgb = torch.zeros(1, 3, 4, 4)
    rgb[:, :, :, 2:] = 1.0  # half black, half white: two bins of luminance, no hue
    rgb[:, :, 0, :] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1)  # a quarter red: L 53.2, hue 40 degrees
    found = describe_coverage(rgb, photos=1)
    assert (found["luminance"][0], found["luminance"][8], found["luminance"][15]) == (0.375, 0.25, 0.375)
    assert found["luminance_covered"] == pytest.approx(3 / 16)
    assert found["hues"] == [0.0, 0.25] + [0.0] * 10
    assert found["grey"] == 0.75
    assert found["flat"] == 0
    assert any("cover 8% of the hues" in text for text in found["warnings"])
    assert any("cover 19% of the lightness range" in text for text in found["warnings"])
    assert describe(found) == "1 inputs of 1 photos, 19% of the lightness range, 8% of the hues, 75% grey"


def test_saturation_names_the_worst_layer() -> None:
    assert saturation([("a", 0.0), ("b", 0.02)]) == {"mean": 0.01, "worst": 0.02, "worst_layer": "b"}
    assert saturation([])["worst_layer"] is None
