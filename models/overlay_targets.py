"""Overlay targets made from any photo, so that an overlay network can be trained where no retoucher's layers are.

Two variants, both deterministic and local (their scales are pixels, so that the map of a tile is the map of the photo
there; shrink or enlarge the photo to retouch at another scale):

- ``dodge_and_burn`` evens out what is larger than skin texture and smaller than a shape: blotches, bags, wrinkles'
  shadows. The luma is smoothed with two self-guided filters (radius 2 and 10 pixels); what only the smaller one keeps
  is the band of such irregularities. An edge is kept by both, so it is in neither's difference and is left alone; so is
  the texture that the smaller one removes.
- ``volume`` deepens the large light and shade that shapes an object: the luma smoothed at 16 pixels (edge-aware)
  against a blur of about 37 pixels; lighter parts are dodged, darker ones burned.

The wanted luma is turned into a Soft Light overlay by its closed form, damped towards black and white, where no overlay
shows, and kept within 0.5 +- 0.3 by a tanh.

Source: He et al. 2013, "Guided image filtering"; the two variants follow what retouchers paint by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models import blend
from models.color import check_rgb

NEUTRAL = 0.5
LIMIT = 0.3

_LUMA = (0.2126, 0.7152, 0.0722)
_EDGE = 0.05**2
_SHAPE_EDGE = 0.1**2
_FINE, _BLOTCH, _SHAPE, _SURROUND = 2, 10, 16, 36
_EVEN_OUT, _DEEPEN = 0.8, 0.5
_DAMPING = 0.05


def luma(rgb: Tensor) -> Tensor:
    """Rec. 709 luma of sRGB values with their transfer curve: (N, 3, H, W) -> (N, 1, H, W)."""
    weights = torch.tensor(_LUMA, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return (rgb * weights).sum(dim=1, keepdim=True)


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Mean over a square of ``2 radius + 1`` pixels; at the border, over the part inside. (N, C, H, W) -> same."""
    for dim in (2, 3):
        size = image.shape[dim]
        place = torch.arange(size, device=image.device)
        after, before = (place + radius + 1).clamp_max(size), (place - radius).clamp_min(0)
        first = torch.zeros_like(image.narrow(dim, 0, 1))
        total = torch.cat([first, image.cumsum(dim)], dim)
        shape = [1, 1, 1, 1]
        shape[dim] = size
        span = (total.index_select(dim, after) - total.index_select(dim, before)) / (after - before).view(shape)
        image = span.to(image.dtype)
    return image


def guided(image: Tensor, radius: int, edge: float) -> Tensor:
    """Self-guided filter: smooths where the variance is under ``edge``, keeps edges. (N, C, H, W) -> same.

    Source: He et al. 2013.
    """
    mean = box_mean(image, radius)
    variance = (box_mean(image * image, radius) - mean * mean).clamp_min(0)
    slope = variance / (variance + edge)
    return box_mean(slope, radius) * image + box_mean(mean * (1 - slope), radius)


def dodge_and_burn(rgb: Tensor, formula: blend.SoftLight = "photoshop") -> Tensor:
    """Overlay that evens out blotches: photos (N, 3, H, W) in [0, 1] -> (N, 1, H, W) in 0.5 +- 0.3."""
    light = luma(check_rgb(rgb).float())
    band = guided(light, _FINE, _EDGE) - guided(light, _BLOTCH, _EDGE)
    return _overlay_of(light, -_EVEN_OUT * band, formula)


def volume(rgb: Tensor, formula: blend.SoftLight = "photoshop") -> Tensor:
    """Overlay that deepens large light and shade: photos (N, 3, H, W) in [0, 1] -> (N, 1, H, W) in 0.5 +- 0.3."""
    light = luma(check_rgb(rgb).float())
    surround = light
    for _ in range(3):
        surround = box_mean(surround, _SURROUND)
    return _overlay_of(light, _DEEPEN * (guided(light, _SHAPE, _SHAPE_EDGE) - surround), formula)


VARIANTS = (dodge_and_burn, volume)


def _overlay_of(light: Tensor, change: Tensor, formula: blend.SoftLight) -> Tensor:
    """Return the overlay that changes the luma by ``change``, both (N, 1, H, W)."""
    dark_gain, light_gain = blend.gains(light, formula)
    gain = torch.where(change > 0, light_gain, dark_gain)
    offset = change * gain / (gain.square() + _DAMPING**2) / 2
    return NEUTRAL + LIMIT * torch.tanh(offset / LIMIT)
