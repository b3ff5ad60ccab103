"""Colour against scikit-image, which shares no code with ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import color as reference
from torch import Tensor

from models import color
from models.errors import ConfigError

#: CIELab of the sRGB primaries, D65, 2 degrees: textbook numbers, to a tenth.
PRIMARIES = {
    (1.0, 0.0, 0.0): (53.2, 80.1, 67.2),
    (0.0, 1.0, 0.0): (87.7, -86.2, 83.2),
    (0.0, 0.0, 1.0): (32.3, 79.2, -107.9),
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
}


def patch(rgb: tuple[float, ...]) -> Tensor:
    """A 4x4 patch of one colour."""
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def photos(count: int = 2) -> Tensor:
    """All kinds of colours, the dark ones too."""
    rgb = torch.rand(count, 3, 24, 16)
    rgb[:, :, :8] *= 0.05
    return rgb


def rows(image: Tensor) -> np.ndarray:
    return image.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize(("rgb", "lab"), PRIMARIES.items())
def test_primaries(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    got = color.rgb_to_lab(patch(rgb))[0, :, 0, 0]
    np.testing.assert_allclose(got, lab, atol=0.06)
    np.testing.assert_allclose(got, reference.rgb2lab(np.array([[rgb]]))[0, 0], atol=2e-3)


def test_pure_red_keeps_its_channel_order() -> None:
    lab = color.rgb_to_lab(patch((1.0, 0.0, 0.0)))
    back = color.lab_to_rgb(lab)
    np.testing.assert_allclose(back[0, :, 0, 0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(back[0, :, 0, 0], reference.lab2rgb(rows(lab))[0, 0, 0], atol=1e-3)


def test_rgb_to_lab_is_that_of_scikit_image() -> None:
    rgb = photos()
    np.testing.assert_allclose(rows(color.rgb_to_lab(rgb)), reference.rgb2lab(rows(rgb)), atol=5e-3)


def test_lab_to_rgb_is_that_of_scikit_image() -> None:
    lab = torch.from_numpy(reference.rgb2lab(rows(photos()))).permute(0, 3, 1, 2).float()
    np.testing.assert_allclose(rows(color.lab_to_rgb(lab)), reference.lab2rgb(rows(lab)), atol=1e-4)


def test_round_trip() -> None:
    rgb = photos()
    torch.testing.assert_close(color.lab_to_rgb(color.rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-4)


def test_colours_outside_of_the_gamut_are_clipped() -> None:
    rgb = color.lab_to_rgb(torch.tensor([50.0, 150.0, -150.0]).view(1, 3, 1, 1))
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    expected = reference.lab2rgb(np.array([[[50.0, 150.0, -150.0]]]))[0, 0]
    np.testing.assert_allclose(rgb[0, :, 0, 0], expected, atol=1e-3)


def test_transfer_curve_is_that_of_the_standard() -> None:
    values = torch.tensor([0.0, 0.02, 0.04045, 0.5, 1.0])
    linear = color.srgb_to_linear(values)
    np.testing.assert_allclose(linear, [0, 0.02 / 12.92, 0.0031308, 0.214041, 1.0], atol=1e-6)
    torch.testing.assert_close(color.linear_to_srgb(linear), values, rtol=0, atol=1e-6)


def test_network_values() -> None:
    lab = color.rgb_to_lab(photos())
    lightness, chroma = color.normalize_lab(lab)
    assert lightness.shape == (2, 1, 24, 16)
    assert chroma.shape == (2, 2, 24, 16)
    torch.testing.assert_close(lightness[:, 0] * 100, lab[:, 0])
    torch.testing.assert_close(chroma * 255, lab[:, 1:])
    torch.testing.assert_close(color.denormalize_lab(lightness, chroma), lab)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_at_the_ends(value: float) -> None:
    rgb = torch.full((1, 3, 2, 2), value, requires_grad=True)
    color.lab_to_rgb(color.rgb_to_lab(rgb)).sum().backward()
    assert rgb.grad is not None
    assert torch.isfinite(rgb.grad).all()


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (torch.zeros(3, 8, 8), r"rgb: expected shape \(N, 3, H, W\), got \(3, 8, 8\); fix: stack photos"),
        (torch.zeros(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"floating values in \[0, 1\], got torch.uint8; fix: divide"),
        (torch.full((1, 3, 8, 8), 255.0), r"values in \[0, 1\], got values from 255 to 255; fix: divide by 255"),
        (torch.full((1, 3, 8, 8), -0.5), r"got values from -0\.5 to -0\.5"),
        (torch.full((1, 3, 8, 8), float("nan")), r"got values from nan to nan"),
    ],
)
def test_wrong_photos_are_refused(rgb: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        color.check_rgb(rgb)


def test_right_photos_pass() -> None:
    rgb = photos()
    assert color.check_rgb(rgb) is rgb
    assert color.check_rgb(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
