"""The overlay task with a variant: which target a photo gets, and what travels with it."""

from __future__ import annotations

import pytest
import torch

from models import get_task
from models.controls import unpack
from models.overlay_targets import dodge_and_burn, volume
from models.tasks.overlay_variants import OverlayVariants


@pytest.fixture(scope="module")
def task() -> OverlayVariants:
    task = get_task("overlay_variants")
    assert isinstance(task, OverlayVariants)
    return task


def photos(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 40, 40)) / 255


def test_a_photo_keeps_its_variant_mirrored_and_alone(task: OverlayVariants) -> None:
    rgb = photos(16)
    variants = unpack(task.prepare(rgb)[0], 1)[1]
    assert set(variants.tolist()) == {0.0, 1.0}
    assert torch.equal(unpack(task.prepare(rgb.flip(3))[0], 1)[1], variants)
    assert torch.equal(unpack(task.prepare(rgb[5:6])[0], 1)[1], variants[5:6])


def test_the_target_is_that_of_the_variant(task: OverlayVariants) -> None:
    rgb = photos(12)
    inputs, target = task.prepare(rgb)
    photo, variants = unpack(inputs, 1)
    assert torch.equal(photo, rgb)
    for index, variant in enumerate(variants.tolist()):
        made = (dodge_and_burn, volume)[int(variant)](rgb[index : index + 1])
        torch.testing.assert_close(target[index : index + 1], made, rtol=0, atol=1e-6)


def test_rendering_leaves_the_variant_out(task: OverlayVariants) -> None:
    rgb = photos(2)
    inputs, _ = task.prepare(rgb)
    torch.testing.assert_close(task.render(inputs, task.baseline(inputs)), rgb, rtol=0, atol=1e-6)


def test_an_app_gets_the_default_variant(task: OverlayVariants) -> None:
    photo, variant = unpack(task.app_input(photos(2)), 1)
    assert photo.shape == (2, 3, 40, 40)
    assert variant.tolist() == [0.0, 0.0]
