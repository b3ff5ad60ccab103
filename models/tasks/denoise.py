"""Tunable denoising: a photo with Gaussian noise and the level of the noise in, the photo out.

Level 0 is the start level (sigma 15 of 255), level 1 the end level (sigma 75), and the noise grows linearly between
them. Noisy values are rounded to 8 bits and clipped, as a photo is that an app opens.

Source: He et al. 2019 (AdaFM): levels 15 to 75; its data generator stores noisy photos in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from models import color, draws
from models.controls import pack, spread
from models.spec import Control, TensorSpec
from models.tasks.base import Augmentation, Task

SIGMAS = (15 / 255, 75 / 255)
LEVEL = Control("level", "graph_input", 0.0, 1.0, 0.5)


class Denoise(Task):
    """Noisy sRGB and level in, sRGB out; doing nothing is the noisy photo."""

    name: ClassVar[str] = "denoise"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    metrics: ClassVar[tuple[str, ...]] = ("psnr", "lpips", "ssim", "delta_e")
    output_scale: ClassVar[float] = 1 / 255
    skips_grey: ClassVar[bool] = True
    do_nothing: ClassVar[str] = "the noisy photo"
    controls: ClassVar[tuple[Control, ...]] = (LEVEL,)
    draws: ClassVar[bool] = True
    augmentation: ClassVar[Augmentation] = Augmentation(tone_jitter=False)

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> noisy photo and level (N, 4, H, W), photo; levels uniform in [0, 1]."""
        return self._noisy(color.check_rgb(rgb).float(), None)

    def prepare_at(self, rgb: Tensor, values: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The same at one level; the noise of a photo is the same at every level, scaled."""
        return self._noisy(color.check_rgb(rgb).float(), float(values[0]))

    def app_input(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3, H, W), which an app takes as they are, at the default level: (N, 4, H, W)."""
        return pack(color.check_rgb(rgb).float(), torch.full((1, 1), LEVEL.default))

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The output, clipped: (N, 3, H, W) in [0, 1]."""
        return outputs.float().clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """The noisy photo (N, 3, H, W)."""
        return inputs[:, :3]

    def _noisy(self, photo: Tensor, level: float | None) -> tuple[Tensor, Tensor]:
        sources = draws.generators(photo)
        drawn = draws.uniform(sources, 0.0, 1.0)
        levels = drawn if level is None else torch.full_like(drawn, level)
        sigma = SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * levels
        noise = (spread(sigma) * draws.normal(sources, photo.shape[1:])).to(photo.device)
        noisy = ((photo + noise) * 255).round().clamp(0, 255) / 255
        return pack(noisy, levels[:, None]), photo
