"""Colour difference (CIEDE2000) and colourfulness."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.metrics.checks import check_pair, precise
from models.color import check_rgb, rgb_to_lab

_25_TO_7 = 25.0**7


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 of CIELab colours, kL = kC = kH = 1.

    Source: Sharma, Wu, Dalal 2005, doi 10.1002/col.20070, whose numbered equations are followed.

    Args:
        first: (N, 3, H, W) CIELab: L in [0, 100], a and b in their natural units.
        second: The same shape.

    Returns:
        (N, H, W), 0 for equal colours; about 1 is just visible.
    """
    (l1, a1, b1), (l2, a2, b2) = first.unbind(1), second.unbind(1)
    mean_c7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - torch.sqrt(mean_c7 / (mean_c7 + _25_TO_7)))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = _hue(a1, b1), _hue(a2, b2)
    grey = c1 * c2 == 0
    turn = h2 - h1
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn)).masked_fill(grey, 0)
    delta_h = 2 * torch.sqrt(c1 * c2) * _sin(turn / 2)
    total = h1 + h2
    apart = (h1 - h2).abs() > 180
    wrapped = torch.where(total < 360, total + 360, total - 360)
    hue = torch.where(grey, total, torch.where(apart, wrapped, total) / 2)
    return _weighted(l2 - l1, c2 - c1, delta_h, (l1 + l2) / 2, (c1 + c2) / 2, hue)


def _weighted(dl: Tensor, dc: Tensor, dh: Tensor, lightness: Tensor, chroma: Tensor, hue: Tensor) -> Tensor:
    """Weigh the three differences by the position in colour space (equations 15 to 22)."""
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    angle = 30 * torch.exp(-(((hue - 275) / 25) ** 2))
    c7 = chroma**7
    rotation = -_sin(2 * angle) * 2 * torch.sqrt(c7 / (c7 + _25_TO_7))
    offset = (lightness - 50) ** 2
    dl = dl / (1 + 0.015 * offset / torch.sqrt(20 + offset))
    dc = dc / (1 + 0.045 * chroma)
    dh = dh / (1 + 0.015 * chroma * t)
    return torch.sqrt((dl**2 + dc**2 + dh**2 + rotation * dc * dh).clamp_min(0))


def _hue(a: Tensor, b: Tensor) -> Tensor:
    degrees = torch.rad2deg(torch.atan2(b, a))
    return torch.where(degrees < 0, degrees + 360, degrees)


def _sin(degrees: Tensor) -> Tensor:
    return torch.sin(torch.deg2rad(degrees))


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(torch.deg2rad(degrees))


def delta_e_2000(preds: Tensor, target: Tensor) -> Tensor:
    """Mean CIEDE2000 colour difference over the pixels of each image.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1].
        target: The same shape.

    Returns:
        (N,), lower is better.

    Raises:
        ConfigError: Shape, type or range is another one.
    """
    check_pair(preds, target, metric="delta_e")
    first, second = (rgb_to_lab(image.clamp(0, 1)) for image in precise(preds, target))
    return ciede2000(first, second).mean(dim=(1, 2)).to(torch.float32)


def colourfulness(preds: Tensor, target: Tensor | None = None) -> Tensor:
    """How colourful ``preds`` is: the largest less the smallest of R, G and B, mean over pixels.

    It judges a colorizer beside a distance: 0 is a grey photo, and sepia is well below the photo's own value.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1].
        target: Not used; here so that all metrics are called alike. Divide by ``colourfulness(target)`` for the ratio.

    Returns:
        (N,) in [0, 1]; good is that of the target.

    Raises:
        ConfigError: Shape, type or range is another one.
    """
    check_rgb(preds, "preds")
    return (preds.amax(dim=1) - preds.amin(dim=1)).mean(dim=(1, 2))
