"""Retouching overlays: a photo in, a grey map centred on 0.5 out, composited over the photo by Soft Light.

The formula is Photoshop's (``models.blend`` has W3C's and Pegtop's beside it): the map can be handed to a retoucher as
a layer in Soft Light mode, and the composite here is what the editor shows. The target comes from a retoucher (a pair
of photo and map, or of photo and retouched photo, six channels), or is made from the photo by
``models.overlay_targets.dodge_and_burn``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models import blend, color
from models.overlay_targets import NEUTRAL, dodge_and_burn
from models.spec import TensorSpec
from models.tasks.base import Augmentation, Task

#: Mean of max(RGB) - min(RGB) under which the second picture of a pair may be a grey map, in [0, 1].
_GREY = 2 / 255


class Overlay(Task):
    """sRGB in, overlay out; rendered by compositing; doing nothing is the photo itself."""

    name: ClassVar[str] = "overlay"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (
        TensorSpec("output", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="overlay-soft-light"),
    )
    metrics: ClassVar[tuple[str, ...]] = ("lpips", "psnr", "ssim", "delta_e")
    output_scale: ClassVar[float] = 1 / 255
    skips_grey: ClassVar[bool] = True
    student: ClassVar[str | None] = "overlay_unet"
    do_nothing: ClassVar[str] = "the photo itself"
    paired: ClassVar[bool] = True
    augmentation: ClassVar[Augmentation] = Augmentation(tone_jitter=False)
    formula: ClassVar[blend.SoftLight] = "photoshop"

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W), or pairs (N, 6, H, W), in [0, 1] -> photo (N, 3, H, W) and overlay (N, 1, H, W).

        The second half of a pair is the overlay itself where it is grey and closer to 0.5 than to the photo;
        else it is the retouched photo, and the overlay is solved for (``blend.solve_soft_light``).
        """
        if rgb.shape[1] == 6:
            photo = color.check_rgb(rgb[:, :3]).float()
            return photo, self.overlay_of(photo, color.check_rgb(rgb[:, 3:], "target").float())
        photo = color.check_rgb(rgb).float()
        return photo, dodge_and_burn(photo, self.formula)

    def inputs_of(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3, H, W), or pairs (N, 6, H, W), in [0, 1] -> photo (N, 3, H, W)."""
        return color.check_rgb(rgb[:, :3]).float()

    def overlay_of(self, photo: Tensor, second: Tensor) -> Tensor:
        """Return the overlay (N, 1, H, W) that the second picture of a pair means; both (N, 3, H, W) in [0, 1]."""
        spread = (second.amax(dim=1) - second.amin(dim=1)).mean(dim=(1, 2))
        nearer = (second - NEUTRAL).abs().mean(dim=(1, 2, 3)) < (second - photo).abs().mean(dim=(1, 2, 3))
        is_map = ((spread < _GREY) & nearer).view(-1, 1, 1, 1)
        solved = blend.solve_soft_light(photo, second, self.formula)
        return torch.where(is_map, second.mean(dim=1, keepdim=True), solved)

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Photo (N, 3, H, W) and overlay (N, 1, H, W) -> composite (N, 3, H, W) in [0, 1]."""
        overlay = outputs.float().clamp(0, 1)
        return blend.soft_light(inputs.float(), overlay, self.formula).clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """A neutral overlay: 0.5 everywhere, (N, 1, H, W)."""
        return torch.full_like(inputs[:, :1], NEUTRAL)
