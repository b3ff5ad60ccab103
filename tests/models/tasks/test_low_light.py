"""Raw pairs made from photos: repeatable, of the right exposure, noisier where darker; and pairs of a camera."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.color import DAYLIGHT_GAINS, linear_to_srgb, srgb_to_linear, unpack_bayer
from models.controls import unpack
from models.errors import UnsupportedError
from models.paired_photos import open_for
from models.photos import to_batch
from models.registry import get_task
from models.tasks.low_light import RATIO, LowLight, make_raw


def photo(value: float = 0.5, size: int = 32) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


def test_the_same_photo_gives_the_same_raw_and_another_photo_another() -> None:
    task, batch = LowLight(), torch.rand(3, 3, 16, 16)
    first, target = task.prepare(batch)
    assert first.shape == (3, 5, 8, 8)
    assert torch.equal(target, batch)
    assert torch.equal(first, task.prepare(batch)[0])
    assert torch.equal(first[1:2], task.prepare(batch[1:2])[0])  # whatever else is in the batch
    assert len(set(first[:, 4, 0, 0].tolist())) == 3


def test_raw_is_the_linear_photo_over_the_ratio_and_the_gains() -> None:
    raw, ratio = make_raw(photo(0.7, 256))
    assert 20 <= float(ratio) <= 300
    linear = srgb_to_linear(torch.tensor(0.7))
    means = raw.mean(dim=(0, 2, 3)) * ratio
    for plane, gain in zip((0, 1, 2, 3), (*DAYLIGHT_GAINS, 1.0), strict=True):
        assert float(means[plane]) == pytest.approx(float(linear) / gain, rel=0.08)
    assert torch.allclose((raw * 15871).round(), raw * 15871, atol=1e-2)  # steps of the sensor


def test_doing_nothing_finds_the_mean_colour_of_a_flat_photo_but_not_its_calm() -> None:
    task = LowLight()
    inputs, target = task.prepare(photo(0.5, 128))
    idle = task.render(inputs, task.baseline(inputs))
    assert idle.shape == target.shape
    mean = linear_to_srgb(srgb_to_linear(idle).mean(dim=(2, 3)))
    assert torch.allclose(mean, torch.full((1, 3), 0.5), atol=0.06)
    assert float(idle.std()) > 0.01


def test_amplifications_are_drawn_over_the_range_of_the_control() -> None:
    ratios = unpack(LowLight().prepare(torch.rand(64, 3, 16, 16))[0], 1)[1]
    assert float(ratios.min()) < 40
    assert float(ratios.max()) > 200
    assert RATIO.maximum >= float(ratios.max())


def test_a_pair_of_a_camera_keeps_its_values_and_its_ratio() -> None:
    raw, rgb = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 16, 16)
    pair = torch.cat([rgb, unpack_bayer(raw), torch.full((1, 1, 16, 16), 1 / 250)], dim=1)
    inputs, target = LowLight().prepare(pair)
    assert torch.equal(inputs[:, :4], raw)
    assert torch.equal(target, rgb)
    assert float(inputs[0, 4, 0, 0]) == pytest.approx(250)
    with pytest.raises(UnsupportedError, match="expected photos to make raw ones from, got pairs of a camera; fix"):
        LowLight().prepare_at(pair, [100.0])


def test_the_published_pairs_read(pare_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    folder = pare_data / "sid"
    if not folder.is_dir():
        pytest.skip("PARE_DATA has no sid/")
    for name, real in (("input", "small_short_cropped"), ("target", "small_long_cropped")):
        (tmp_path / name).symlink_to(folder / real, target_is_directory=True)
    task = get_task("low_light")
    pairs = open_for(tmp_path, task=task)
    assert len(pairs) == 4
    assert pairs.load(0).shape == (512, 512, 5)
    inputs, target = task.prepare(to_batch([pairs.load(0)]))
    assert inputs.shape == (1, 5, 256, 256)
    assert target.shape[2:] == task.photo_size((256, 256))
    # Two greens of one cell see the same light, and red is not green: the planes are R, G, B, G.
    raw, ratio = unpack(inputs, 1)
    assert float((raw[:, 1].mean() / raw[:, 3].mean() - 1).abs()) < 0.05
    assert float((raw[:, 0].mean() / raw[:, 1].mean() - 1).abs()) > 0.2
    assert len(torch.unique(target)) > 5000  # of 8 bits there are 256
    assert 1 <= float(ratio) < 3  # stored amplified
