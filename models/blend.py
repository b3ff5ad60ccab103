"""Soft Light, the blend mode of retouching overlays, in the three formulas that go by this name, and its inverse.

All three can be written ``f = a + (2b - 1) g(a)``: ``a`` is the photo, ``b`` the overlay (0.5 does nothing), and the
gain ``g`` is one function where the overlay darkens (b <= 0.5) and another where it lightens:

==============  ==============  =======================================================
formula         g, darkening    g, lightening
==============  ==============  =======================================================
``photoshop``   a - a^2         sqrt(a) - a
``w3c``         a - a^2         D(a) - a; D = ((16a - 12)a + 4)a up to 1/4, then sqrt(a)
``pegtop``      a - a^2         a - a^2
==============  ==============  =======================================================

So they agree where the overlay darkens. Lightening, Pegtop's is weaker in shadows and stronger in highlights than the
others, and Photoshop's has an infinite slope at black, which W3C's replaces by a polynomial. Values are sRGB with its
transfer curve, as the editors blend by default.

Source: W3C Compositing and Blending Level 1, section "soft-light" (also PDF 1.7, 11.3.5.2); Pegtop blend modes, "Soft
Light" (Jens Gruschel); Photoshop's formula as documented on Wikipedia, "Blend modes".
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from models.errors import ConfigError, explain

SoftLight = Literal["photoshop", "w3c", "pegtop"]
#: Sum of squared gains over the channels under which an overlay cannot be told from the result (near black and white).
_BLIND = 1e-4


def gains(photo: Tensor, formula: SoftLight = "photoshop") -> tuple[Tensor, Tensor]:
    """Return g(a) of a photo in [0, 1] (any shape) where the overlay darkens, and where it lightens.

    Raises:
        ConfigError: Another formula.
    """
    dark = photo * (1 - photo)
    if formula == "pegtop":
        return dark, dark
    if formula == "photoshop":
        return dark, photo.clamp_min(0).sqrt() - photo
    if formula == "w3c":
        low = ((16 * photo - 12) * photo + 4) * photo
        return dark, torch.where(photo <= 0.25, low, photo.clamp_min(0).sqrt()) - photo
    expected = " | ".join(get_args(SoftLight))
    raise ConfigError(explain("Soft Light formula", expected=expected, got=repr(formula), fix="choose one of these"))


def soft_light(photo: Tensor, overlay: Tensor, formula: SoftLight = "photoshop") -> Tensor:
    """Composite ``overlay`` over ``photo``.

    Args:
        photo: (N, 3, H, W) in [0, 1].
        overlay: (N, 1, H, W) or (N, 3, H, W) in [0, 1]; 0.5 leaves the photo as it is.
        formula: Which Soft Light.

    Returns:
        (N, 3, H, W), in [0, 1] for values in range; differentiable in ``overlay``.
    """
    dark, light = gains(photo, formula)
    strength = 2 * overlay - 1
    return photo + strength * torch.where(strength > 0, light, dark)


def solve_soft_light(photo: Tensor, result: Tensor, formula: SoftLight = "photoshop") -> Tensor:
    """Find the one-channel overlay that turns ``photo`` into ``result``: least squares over the channels.

    Darkening and lightening are each solved in closed form, and the better one is taken. Where the photo is black or
    white in all channels no overlay shows, and the answer is 0.5.

    Args:
        photo: (N, 3, H, W) in [0, 1].
        result: The retouched photo, same shape.
        formula: Which Soft Light.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    wanted = result - photo
    best = torch.zeros_like(photo[:, :1])
    error = wanted.square().sum(dim=1, keepdim=True)
    for gain, low, high in zip(gains(photo, formula), (-1.0, 0.0), (0.0, 1.0), strict=True):
        power = gain.square().sum(dim=1, keepdim=True)
        strength = ((wanted * gain).sum(dim=1, keepdim=True) / power.clamp_min(_BLIND)).clamp(low, high)
        strength = torch.where(power > _BLIND, strength, torch.zeros_like(strength))
        left = (wanted - strength * gain).square().sum(dim=1, keepdim=True)
        best, error = torch.where(left < error, strength, best), torch.minimum(left, error)
    return (best + 1) / 2
