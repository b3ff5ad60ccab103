"""The overlay task with a variant: which target a photo gets, and what travels with it."""

from __future__ import annotations

import pytest
import torch

from models import get_task
from models.blend import soft_light
from models.controls import unpack
from models.errors import ConfigError
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


def test_a_variant_can_be_asked_for_and_a_value_between_is_their_blend(task: OverlayVariants) -> None:
    rgb = photos(3)
    ends = [make(rgb) for make in (dodge_and_burn, volume)]
    for value, wanted in ((0.0, ends[0]), (1.0, ends[1]), (0.25, 0.75 * ends[0] + 0.25 * ends[1])):
        inputs, target = task.prepare_at(rgb, [value])
        photo, variants = unpack(inputs, 1)
        assert torch.equal(photo, rgb)
        assert variants.tolist() == [value] * 3
        torch.testing.assert_close(target, wanted, rtol=0, atol=1e-6)


def test_what_a_retoucher_made_is_the_target_of_its_variant(task: OverlayVariants) -> None:
    """The first one as a map, the second one as a retouched photo."""
    photo, (first, second) = 0.1 + 0.8 * torch.rand(6, 3, 24, 24), 0.3 + 0.4 * torch.rand(2, 6, 1, 24, 24)
    rgb = torch.cat([photo, first.expand(-1, 3, -1, -1), soft_light(photo, second)], dim=1)
    inputs, target = task.prepare(rgb)
    variants = unpack(inputs, 1)[1]
    assert set(variants.tolist()) == {0.0, 1.0}
    assert torch.equal(inputs, task.inputs_of(rgb))
    assert torch.equal(inputs[:, :3], photo)
    assert torch.equal(task.app_input(rgb)[:, :3], photo)
    torch.testing.assert_close(target, torch.where(variants[:, None, None, None] > 0, second, first), rtol=0, atol=1e-3)
    between = task.prepare_at(rgb, [0.5])[1]
    torch.testing.assert_close(between, (first + second) / 2, rtol=0, atol=1e-3)


def test_a_pair_of_one_target_is_refused(task: OverlayVariants) -> None:
    with pytest.raises(ConfigError, match=r"rgb: expected shape \(N, 3, H, W\), got \(1, 6, 8, 8\)"):
        task.prepare(torch.rand(1, 6, 8, 8))
