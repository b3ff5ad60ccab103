"""Overlay targets made from photos: what they change, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from models.blend import soft_light
from models.overlay_targets import LIMIT, VARIANTS, box_mean, dodge_and_burn, guided, luma, volume


def blob(size: int, sigma: float, height: float) -> torch.Tensor:
    """A grey picture (1, 3, size, size) of 0.5 with one soft bump in the middle."""
    place = torch.arange(size) - size / 2
    bump = torch.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * sigma**2))
    return (0.5 + height * bump).expand(1, 3, size, size).contiguous()


def test_box_mean_is_the_mean_of_the_part_inside() -> None:
    image = torch.rand(2, 3, 9, 7)
    found = box_mean(image, 2)
    torch.testing.assert_close(found[:, :, 4, 3], image[:, :, 2:7, 1:6].mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, :, 0, 0], image[:, :, :3, :3].mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, :, 8, 6], image[:, :, 6:, 4:].mean(dim=(2, 3)))
    torch.testing.assert_close(box_mean(image, 50), image.mean(dim=(2, 3), keepdim=True).expand_as(image))


def test_the_guided_filter_keeps_edges_and_smooths_the_rest() -> None:
    step = torch.zeros(1, 1, 32, 32)
    step[..., 16:] = 0.8
    noisy = step + 0.01 * torch.randn_like(step)
    found = guided(noisy, 4, 0.05**2)
    assert float((found[..., 15] - found[..., 16]).abs().min()) > 0.7
    assert float(found[..., :8].std()) < 0.5 * float(noisy[..., :8].std())


def test_dodge_and_burn_evens_out_a_blotch() -> None:
    photo = blob(64, 5, -0.05)
    result = soft_light(photo, dodge_and_burn(photo))
    before, after = float(0.5 - photo[0, 0, 32, 32]), float(0.5 - result[0, 0, 32, 32])
    assert 0 < after < 0.6 * before


def test_dodge_and_burn_leaves_edges_texture_and_flat_parts_alone() -> None:
    step = torch.full((1, 3, 64, 64), 0.2)
    step[..., 32:] = 0.8
    assert float((soft_light(step, dodge_and_burn(step)) - step).abs().max()) < 0.008
    rows = torch.arange(64)
    texture = (0.5 + 0.02 * ((rows[:, None] + rows[None, :]) % 2 * 2 - 1)).expand(1, 3, 64, 64)
    moved = soft_light(texture, dodge_and_burn(texture))
    assert float((moved - texture).abs().max()) < 0.004
    assert bool((dodge_and_burn(torch.full((1, 3, 40, 40), 0.6)) - 0.5).abs().max() < 1e-4)


def test_volume_deepens_a_large_shape() -> None:
    photo = blob(192, 24, 0.25)
    result = soft_light(photo, volume(photo))
    contrast = [float(image[0, 0, 96, 96] - image[0, 0, 96, 20]) for image in (photo, result)]
    assert contrast[1] > 1.1 * contrast[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_are_overlays_repeat_and_do_not_depend_on_the_batch(variant) -> None:
    photos = torch.rand(3, 3, 40, 56)
    found = variant(photos)
    assert found.shape == (3, 1, 40, 56)
    assert float((found - 0.5).abs().max()) <= LIMIT + 1e-6
    assert float(found.std()) > 0
    assert torch.equal(found, variant(photos))
    torch.testing.assert_close(variant(photos[1:2]), found[1:2], rtol=0, atol=1e-6)


def test_the_overlay_of_a_tile_is_that_of_the_photo() -> None:
    photo = torch.rand(1, 3, 128, 128)
    inner = dodge_and_burn(photo[..., 16:112, 16:112])[..., 26:70, 26:70]
    torch.testing.assert_close(inner, dodge_and_burn(photo)[..., 42:86, 42:86], rtol=0, atol=1e-4)


def test_luma_weights_sum_to_one() -> None:
    torch.testing.assert_close(luma(torch.full((1, 3, 2, 2), 0.3)), torch.full((1, 1, 2, 2), 0.3))
