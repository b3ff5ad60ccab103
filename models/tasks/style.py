"""Style transfer: a photo and a strength in, the photo painted in the style that the network carries out.

There is no ground truth: a network is trained by perceptual losses of its own (``models.adain``), and later stages are
judged against what it paints itself. Strength 0 is the photo as the network reproduces it, 1 the full style.

Source: Huang and Belongie 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from models import color, draws
from models.controls import pack
from models.spec import Control, TensorSpec
from models.tasks.base import Augmentation, Task

ALPHA = Control("alpha", "graph_input", 0.0, 1.0, 1.0)


class Style(Task):
    """sRGB and strength in, sRGB out; doing nothing is the photo."""

    name: ClassVar[str] = "style"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    metrics: ClassVar[tuple[str, ...]] = ("lpips", "psnr", "ssim", "delta_e")
    output_scale: ClassVar[float] = 1 / 255
    skips_grey: ClassVar[bool] = True
    do_nothing: ClassVar[str] = "the photo itself"
    controls: ClassVar[tuple[Control, ...]] = (ALPHA,)
    draws: ClassVar[bool] = True
    augmentation: ClassVar[Augmentation] = Augmentation()

    def has_truth(self, rgb: Tensor) -> bool:
        """There is none: what the teacher paints is the target."""
        return False

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> photo and strength (N, 4, H, W), photo; strengths uniform in [0, 1]."""
        photo = color.check_rgb(rgb).float()
        strength = draws.uniform(draws.generators(photo), ALPHA.minimum, ALPHA.maximum)
        return pack(photo, strength[:, None]), photo

    def prepare_at(self, rgb: Tensor, values: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The same at one strength."""
        photo = color.check_rgb(rgb).float()
        return pack(photo, torch.full((1, 1), float(values[0]))), photo

    def app_input(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3, H, W) at full strength: (N, 4, H, W)."""
        return self.prepare_at(rgb, [ALPHA.default])[0]

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The output, clipped: (N, 3, H, W) in [0, 1]."""
        return outputs.float().clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """The photo (N, 3, H, W)."""
        return inputs[:, :3]
