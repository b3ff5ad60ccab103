"""Noise of the right level, the same again for the same photo."""

from __future__ import annotations

import pytest
import torch

from models.errors import UnsupportedError
from models.registry import get_task
from models.tasks.denoise import SIGMAS, Denoise


def test_noise_has_the_deviation_of_its_level() -> None:
    photo = torch.full((1, 3, 128, 128), 0.5)
    for level in (0.0, 0.5):
        packed, target = Denoise().prepare_at(photo, [level])
        sigma = SIGMAS[0] + level * (SIGMAS[1] - SIGMAS[0])
        assert float((packed[:, :3] - target).std()) == pytest.approx(sigma, rel=0.03)
        assert float(packed[0, 3, 0, 0]) == level
    assert torch.allclose((packed[:, :3] * 255).round(), packed[:, :3] * 255, atol=1e-3)


def test_levels_are_drawn_from_the_photo_and_cover_the_range() -> None:
    photos = torch.rand(48, 3, 16, 16)
    packed, target = Denoise().prepare(photos)
    assert torch.equal(target, photos)
    assert torch.equal(packed, Denoise().prepare(photos)[0])
    levels = packed[:, 3, 0, 0]
    assert float(levels.min()) < 0.15
    assert float(levels.max()) > 0.85


def test_an_app_feeds_its_photo_as_it_is() -> None:
    photo = torch.rand(1, 3, 16, 16)
    packed = Denoise().app_input(photo)
    assert torch.equal(packed[:, :3], photo)
    assert float(packed[0, 3, 0, 0]) == 0.5


def test_a_task_without_controls_says_so() -> None:
    with pytest.raises(UnsupportedError, match="task colorize: expected controls that can be fixed, got none"):
        get_task("colorize").prepare_at(torch.rand(1, 3, 8, 8), [1.0])
