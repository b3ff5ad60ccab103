"""Distortions: in range, repeatable, and doing what their name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.metrics.distortions import CHROMA_KINDS, HELD_OUT, TRAINED, gaussian_blur
from models.color import rgb_to_lab
from models.photos import centre_square, embedded_photos, to_batch

KINDS = {**TRAINED, **HELD_OUT}


@pytest.fixture(scope="module")
def two() -> torch.Tensor:
    found = embedded_photos("train")
    return to_batch([centre_square(found.load(index), 48) for index in (0, 5)])


def test_held_out_kinds_are_never_trained_on() -> None:
    assert not set(TRAINED) & set(HELD_OUT)
    assert set(KINDS) >= CHROMA_KINDS


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @pytest.mark.parametrize("strength", [0.0, 0.37, 1.0])
    def test_stays_in_range_and_shape(self, kind: str, strength: float, two: torch.Tensor) -> None:
        out = KINDS[kind](two[0], strength, np.random.default_rng(1), two[1])
        assert out.shape == two[0].shape
        assert out.dtype == torch.float32
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1

    def test_depends_on_the_generator_only(self, kind: str, two: torch.Tensor) -> None:
        first, second = (KINDS[kind](two[0], 0.5, np.random.default_rng(7), two[1]) for _ in range(2))
        assert torch.equal(first, second)

    def test_changes_the_photo_more_when_stronger(self, kind: str, two: torch.Tensor) -> None:
        weak, strong = (KINDS[kind](two[0], strength, np.random.default_rng(2), two[1]) for strength in (0.1, 1.0))
        assert (strong - two[0]).abs().mean() > (weak - two[0]).abs().mean()


@pytest.mark.parametrize("kind", ["desaturate", "colorizer", "chroma_blur", "chroma_blocks", "chroma_swap"])
def test_colour_kinds_keep_lightness_where_the_gamut_allows(kind: str, two: torch.Tensor) -> None:
    out = KINDS[kind](two[0], 0.6, np.random.default_rng(0), two[1])
    inside = ((out > 0.01) & (out < 0.99)).all(dim=0)
    difference = (rgb_to_lab(out[None])[0, 0] - rgb_to_lab(two[:1])[0, 0]).abs()
    assert inside.float().mean() > 0.3
    assert float(difference[inside].max()) < 0.1


def test_desaturating_fully_leaves_no_chroma(two: torch.Tensor) -> None:
    out = KINDS["desaturate"](two[0], 1.0, np.random.default_rng(0), two[1])
    assert float((out.amax(dim=0) - out.amin(dim=0)).max()) < 0.01


def test_swapping_fully_takes_the_chroma_of_the_other_photo(two: torch.Tensor) -> None:
    out = KINDS["chroma_swap"](two[0], 1.0, np.random.default_rng(0), two[1])
    inside = ((out > 0.01) & (out < 0.99)).all(dim=0)
    difference = (rgb_to_lab(out[None])[0, 1:] - rgb_to_lab(two[1:])[0, 1:]).abs().amax(dim=0)
    assert float(difference[inside].max()) < 0.2


def test_banding_leaves_few_levels(two: torch.Tensor) -> None:
    out = KINDS["banding"](two[0], 1.0, np.random.default_rng(0), two[1])
    assert len(out.unique()) <= 4


def test_gaussian_blur_of_a_point_is_the_gaussian() -> None:
    point = torch.zeros(1, 21, 21)
    point[0, 10, 10] = 1
    blurred = gaussian_blur(point, 2.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float(blurred[0, 10, 12] / blurred[0, 10, 10]) == pytest.approx(np.exp(-(2**2) / (2 * 2.0**2)), rel=1e-4)
