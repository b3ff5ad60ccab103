"""Any RGB picture to an RGB picture: the task of a network that a user brings.

Network input = the photo, network output = a picture, both sRGB in [0, 1]. There is no ground truth: what a restyling
or enhancing network should give is what the teacher gives, so the teacher's rendering is the target of distillation
and what quality is measured against. Pairs (N, 6, H, W) bring a truth along. A network with a degradation of its own
(noise, darkness), another range or other channels gets a task file of a few lines: subclass and override ``prepare``
and ``render``; override ``has_truth`` too where the photo itself is what a perfect network would give.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from models import color
from models.layers import upsample_bilinear
from models.spec import TensorSpec
from models.tasks.base import Task


class Image(Task):
    """RGB in [0, 1] -> RGB in [0, 1], the same size."""

    name: ClassVar[str] = "image"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    output_scale: ClassVar[float] = 1 / 255
    do_nothing: ClassVar[str] = "the input, unchanged"
    student: ClassVar[str | None] = "image_unet"
    paired: ClassVar[bool] = True

    def has_truth(self, rgb: Tensor) -> bool:
        """Pairs (N, 6, H, W) have one; plain photos (N, 3, H, W) have none."""
        return rgb.shape[1] == 6

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> the same, twice; pairs (N, 6, H, W) -> input and target."""
        if self.has_truth(rgb):
            photo, wanted = rgb.float().chunk(2, dim=1)
            return color.check_rgb(photo), color.check_rgb(wanted)
        photo = color.check_rgb(rgb).float()
        return photo, photo

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Clip the network's output (N, 3, H, W) to [0, 1]."""
        return outputs.float().clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """The input (N, 3, H, W) itself; enlarged where a task of yours gives larger pictures."""
        return upsample_bilinear(inputs, self.outputs[0].upscale)
