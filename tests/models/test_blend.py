"""Soft Light: the three formulas against numbers worked by hand, and the inverse against the formulas."""

from __future__ import annotations

import pytest
import torch

from models.blend import gains, soft_light, solve_soft_light
from models.errors import ConfigError

FORMULAS = ("photoshop", "w3c", "pegtop")

#: photo a, overlay b -> photoshop, w3c, pegtop. Worked by hand from the published piecewise forms:
#: b <= 1/2, all:   2ab + a^2 (1 - 2b):  0.25, 0.25 -> 0.125 + 0.0625 * 0.5 = 0.15625
#: photoshop:       2a(1 - b) + sqrt(a)(2b - 1):  0.25, 0.75 -> 0.125 + 0.5 * 0.5 = 0.375
#: w3c, a <= 1/4:   a + (2b - 1)(((16a - 12)a + 4)a - a):  0.04, 1 -> ((0.64 - 12) * 0.04 + 4) * 0.04 = 0.141824
#: pegtop:          (1 - 2b) a^2 + 2ab:  0.64, 0.75 -> -0.5 * 0.4096 + 0.96 = 0.7552
WORKED = (
    (0.25, 0.25, 0.15625, 0.15625, 0.15625),
    (0.25, 0.75, 0.375, 0.375, 0.34375),
    (0.04, 1.0, 0.2, 0.141824, 0.0784),
    (0.64, 0.75, 0.72, 0.72, 0.7552),
    (0.5, 0.0, 0.25, 0.25, 0.25),
    (0.3, 0.5, 0.3, 0.3, 0.3),
    (0.0, 1.0, 0.0, 0.0, 0.0),
    (1.0, 0.0, 1.0, 1.0, 1.0),
)


@pytest.mark.parametrize("row", WORKED, ids=lambda row: f"{row[0]}-{row[1]}")
@pytest.mark.parametrize("formula", FORMULAS)
def test_worked_numbers(formula: str, row: tuple[float, ...]) -> None:
    photo = torch.full((1, 3, 2, 2), row[0], dtype=torch.float64)
    overlay = torch.full((1, 1, 2, 2), row[1], dtype=torch.float64)
    expected = torch.full_like(photo, row[2 + FORMULAS.index(formula)])
    torch.testing.assert_close(soft_light(photo, overlay, formula), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_composite_stays_in_range(formula: str) -> None:
    ramp = torch.linspace(0, 1, 101)
    photo, overlay = (grid.view(1, 1, 101, 101) for grid in torch.meshgrid(ramp, ramp, indexing="ij"))
    result = soft_light(photo.expand(1, 3, -1, -1), overlay, formula)
    assert float(result.min()) >= -1e-6
    assert float(result.max()) <= 1 + 1e-6
    assert bool((result.diff(dim=3) >= -1e-6).all()), "a lighter overlay never darkens"


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_inverse_finds_the_overlay(formula: str) -> None:
    photo, overlay = torch.rand(2, 3, 16, 16) * 0.9 + 0.05, torch.rand(2, 1, 16, 16)
    found = solve_soft_light(photo, soft_light(photo, overlay, formula), formula)
    torch.testing.assert_close(found, overlay, rtol=0, atol=1e-3)


def test_where_no_overlay_shows_the_inverse_is_neutral() -> None:
    photo = torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)], dim=3)
    assert bool((solve_soft_light(photo, torch.rand(1, 3, 4, 8)) == 0.5).all())


def test_the_inverse_of_a_change_of_colour_is_the_nearest_composite() -> None:
    photo = torch.rand(1, 3, 8, 8) * 0.8 + 0.1
    wanted = (photo + torch.randn(1, 3, 8, 8) * 0.05).clamp(0, 1)
    found = solve_soft_light(photo, wanted)
    best = (soft_light(photo, found) - wanted).square().sum(dim=1)
    for step in torch.linspace(0, 1, 41):
        other = (soft_light(photo, torch.full_like(found, float(step))) - wanted).square().sum(dim=1)
        assert bool((best <= other + 1e-6).all())


def test_the_overlay_gets_a_gradient_at_neutral_and_at_black() -> None:
    photo = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    overlay = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    soft_light(photo, overlay).sum().backward()
    assert overlay.grad is not None
    assert bool(torch.isfinite(overlay.grad).all())
    assert float(overlay.grad[..., 1]) > 0


def test_another_formula_is_refused() -> None:
    message = r"Soft Light formula: expected photoshop \| w3c \| pegtop, got 'gimp'; fix: choose one of these"
    with pytest.raises(ConfigError, match=message):
        gains(torch.rand(1, 3, 2, 2), "gimp")  # type: ignore[arg-type]
