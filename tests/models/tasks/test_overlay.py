"""The overlay task: photo -> map -> composite, from single photos and from pairs."""

from __future__ import annotations

import pytest
import torch

from models import get_task
from models.blend import soft_light
from models.errors import ConfigError
from models.overlay_targets import dodge_and_burn
from models.tasks.overlay import Overlay


@pytest.fixture(scope="module")
def task() -> Overlay:
    task = get_task("overlay")
    assert isinstance(task, Overlay)
    return task


def test_a_single_photo_gets_a_made_target(task: Overlay) -> None:
    rgb = torch.rand(2, 3, 48, 40)
    inputs, target = task.prepare(rgb)
    assert torch.equal(inputs, rgb)
    assert torch.equal(target, dodge_and_burn(rgb))
    torch.testing.assert_close(task.truth(inputs, target), soft_light(rgb, target))


def test_doing_nothing_is_the_photo(task: Overlay) -> None:
    rgb = torch.rand(2, 3, 16, 16)
    idle = task.baseline(rgb)
    assert idle.shape == (2, 1, 16, 16)
    torch.testing.assert_close(task.render(rgb, idle), rgb, rtol=0, atol=1e-6)


def test_the_formula_is_photoshops(task: Overlay) -> None:
    photo = torch.full((1, 3, 1, 1), 0.04)
    torch.testing.assert_close(task.render(photo, torch.ones(1, 1, 1, 1)), torch.full((1, 3, 1, 1), 0.2))


def test_a_pair_of_photo_and_map(task: Overlay) -> None:
    photo, overlay = torch.rand(2, 3, 24, 24), 0.3 + 0.4 * torch.rand(2, 1, 24, 24)
    inputs, target = task.prepare(torch.cat([photo, overlay.expand(-1, 3, -1, -1)], dim=1))
    assert torch.equal(inputs, photo)
    torch.testing.assert_close(target, overlay)


def test_a_pair_of_photo_and_retouched_photo(task: Overlay) -> None:
    photo, overlay = 0.1 + 0.8 * torch.rand(2, 3, 24, 24), 0.3 + 0.4 * torch.rand(2, 1, 24, 24)
    retouched = soft_light(photo, overlay)
    inputs, target = task.prepare(torch.cat([photo, retouched], dim=1))
    torch.testing.assert_close(target, overlay, rtol=0, atol=1e-3)
    torch.testing.assert_close(task.render(inputs, target), retouched, rtol=0, atol=1e-4)


def test_a_retouched_grey_photo_is_not_taken_for_a_map(task: Overlay) -> None:
    photo = (0.2 + 0.6 * torch.rand(1, 1, 24, 24)).expand(1, 3, 24, 24)
    overlay = torch.full((1, 1, 24, 24), 0.6)
    _, target = task.prepare(torch.cat([photo, soft_light(photo, overlay)], dim=1))
    torch.testing.assert_close(target, overlay, rtol=0, atol=1e-3)


def test_augmentation_is_safe(task: Overlay) -> None:
    assert task.paired
    assert task.augmentation.horizontal_flip
    assert not task.augmentation.vertical_flip
    assert not task.augmentation.tone_jitter


def test_values_out_of_range_are_refused(task: Overlay) -> None:
    with pytest.raises(ConfigError, match=r"target: expected values in \[0, 1\], got values from 0 to 255"):
        task.prepare(torch.cat([torch.rand(1, 3, 2, 2), torch.tensor([0.0, 255.0]).expand(1, 3, 2, 2)], dim=1))
