"""The task of colour balance: what it distorts, how much, and that it repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import color
from models.cube import Cube, identity_3d, write_cube
from models.errors import ConfigError, DataError
from models.registry import get_task
from models.tasks.balance import Balance, cast, film, gamma, mixed_light, random_table


def _photos(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_prepare_distorts_each_photo_alike_in_any_batch() -> None:
    task, rgb = get_task("balance"), _photos()
    bad, target = task.prepare(rgb)
    assert torch.equal(target, rgb)
    assert 0 <= float(bad.min()) <= float(bad.max()) <= 1
    assert all(float((a - b).abs().max()) > 0.02 for a, b in zip(bad, rgb, strict=True))
    assert torch.equal(task.prepare(rgb[1:])[0], bad[1:])
    assert torch.equal(task.prepare(rgb.flip(0))[0].flip(0), bad)


def test_photos_get_different_tables() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    other = grey.clone()
    other[..., 0, 0] = 0.25
    bad = Balance().prepare(torch.cat([grey, other]))[0]
    assert float((bad[0, :, 4, 4] - bad[1, :, 4, 4]).abs().max()) > 0.005


def test_pairs_are_taken_as_they_are() -> None:
    pair = _photos(seed=1).repeat(1, 2, 1, 1)
    pair[:, 3:] *= 0.5
    bad, target = Balance().prepare(pair)
    assert torch.equal(bad, pair[:, :3])
    assert torch.equal(target, pair[:, 3:])


def test_do_nothing_and_rendering() -> None:
    task, rgb = Balance(), _photos(1)
    assert torch.equal(task.baseline(rgb), rgb)
    assert torch.equal(task.render(rgb, rgb * 3 - 1), (rgb * 3 - 1).clamp(0, 1))


def test_gamma_bends_all_channels_alike() -> None:
    torch.testing.assert_close(
        gamma(torch.full((1, 3, 1, 1, 1), 0.5), torch.tensor([1.0])).flatten(), torch.full((3,), 0.25)
    )


def test_a_cast_is_a_gain_in_linear_light() -> None:
    rgb = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1, 1)
    ratio = color.srgb_to_linear(cast(rgb, torch.tensor([0.6, 0.0]))) / color.srgb_to_linear(rgb)
    assert float(ratio[0, 0] / ratio[0, 2]) == pytest.approx(2**0.6, rel=1e-4)  # red over blue, in octaves
    assert float(ratio.mean()) == pytest.approx(1.0, rel=1e-4)


def test_mixed_light_tints_shadows_and_highlights_apart() -> None:
    dark, bright = (
        mixed_light(torch.full((1, 3, 1, 1, 1), value), torch.tensor([0.8, 0.0])).flatten() for value in (0.1, 0.9)
    )
    assert float(dark[0] - dark[2]) > 0.01
    assert float(bright[2] - bright[0]) > 0.01


def test_film_lifts_blacks_and_lowers_whites() -> None:
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1).expand(1, 3, 2, 1, 1)
    bent = film(ends, torch.tensor([0.0] * 3 + [1.0] * 3 + [0.5] * 3))
    torch.testing.assert_close(bent[0, 0].flatten(), torch.tensor([0.12, 0.94]))


def test_random_tables_are_in_range_and_never_the_identity() -> None:
    for seed in range(20):
        table = random_table(torch.Generator().manual_seed(seed), 5)
        assert table.shape == (3, 5, 5, 5)
        assert 0 <= float(table.min()) <= float(table.max()) <= 1
        assert float((table - identity_3d(5)).abs().max()) > 1e-3


def test_own_cube_files_distort(tmp_path: Path) -> None:
    write_cube(Cube(1 - identity_3d(2)), tmp_path / "negative.cube")
    rgb = _photos(2)
    torch.testing.assert_close(Balance(tmp_path).prepare(rgb)[0], 1 - rgb)
    with pytest.raises(DataError, match=r"expected at least one \.cube file"):
        Balance(tmp_path / "none")


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"values in \[0, 1\]"):
        Balance().prepare(_photos() * 255)
