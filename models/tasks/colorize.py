"""Colorization: the lightness of a photo in, its two chroma channels out.

Normalization: network input = L / 100 in [0, 1]; network output = (a, b) / 255, about [-0.42, 0.39], neutral at 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models import color
from models.spec import TensorSpec
from models.tasks.base import Task

#: Near the root mean square of a and b on either side of zero over 650 photos (11, 16, 19, 25), but for red: in its own
#: unit it pulls leaves from green to orange.
_GREEN, _MAGENTA, _BLUE, _YELLOW = 7.0, 22.0, 16.0, 25.0
_LARGEST_WEIGHT = 8.0


class Colorize(Task):
    """RGB -> CIELab; L/100 in, ab/255 out; rendered by joining both and clipping to the sRGB gamut."""

    name: ClassVar[str] = "colorize"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (
        TensorSpec("input", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="cielab-l/100"),
    )
    outputs: ClassVar[tuple[TensorSpec, ...]] = (
        TensorSpec("output", ("N", 2, "H", "W"), value_range=(-0.5, 0.5), color_space="cielab-ab/255"),
    )
    metrics: ClassVar[tuple[str, ...]] = ("lpips", "psnr", "ssim", "delta_e", "colourfulness")
    output_scale: ClassVar[float] = 1 / color.AB_SCALE
    skips_grey: ClassVar[bool] = True
    do_nothing: ClassVar[str] = "the photo without its chroma"
    student: ClassVar[str | None] = "chroma_unet"

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> L/100 (N, 1, H, W) and ab/255 (N, 2, H, W)."""
        return color.normalize_lab(color.rgb_to_lab(color.check_rgb(rgb).float()))

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """L/100 (N, 1, H, W) and ab/255 (N, 2, H, W) -> RGB (N, 3, H, W) in [0, 1]."""
        return color.lab_to_rgb(color.denormalize_lab(inputs.float(), outputs.float()))

    def baseline(self, inputs: Tensor) -> Tensor:
        """No chroma: zeros (N, 2, H, W)."""
        return inputs.new_zeros(inputs.shape[0], 2, *inputs.shape[2:])

    def loss_weight(self, target: Tensor) -> Tensor:
        """Weigh a pixel by how rare its colour is, 0.5 to 4: plain regression would give sepia, and olive grass.

        Half of 1 + z^2, z the chroma in units of its usual size, which is smallest towards green. Where a leaf may be
        green or brown, the photos have brown more often; weighed like this, both count alike. (N, 1, H, W).

        Source: class rebalancing of Zhang et al. 2016, "Colorful Image Colorization", as a formula.
        """
        a, b = (target.float() * color.AB_SCALE).split(1, dim=1)
        z2 = (a / torch.where(a < 0, _GREEN, _MAGENTA)).square() + (b / torch.where(b < 0, _BLUE, _YELLOW)).square()
        return (1 + z2).clamp_max(_LARGEST_WEIGHT) / 2
