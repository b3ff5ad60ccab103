"""Two ways to retouch in one network: the task ``overlay`` with a run-time control that chooses.

``variant`` 0 is dodge and burn, 1 is volume (``models.overlay_targets``); values between them blend what it does. In
training a photo's variant is drawn from its pixels (whether their 8-bit sum is odd), so that evaluation repeats it,
and a mirrored crop keeps it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models import color
from models.controls import pack, spread
from models.overlay_targets import dodge_and_burn, volume
from models.spec import Control
from models.tasks.overlay import Overlay

VARIANT = Control("variant", "graph_input", 0.0, 1.0, 0.0)


class OverlayVariants(Overlay):
    """sRGB and variant in (packed: ``models.controls``), overlay out; targets are made from single photos."""

    name: ClassVar[str] = "overlay_variants"
    paired: ClassVar[bool] = False
    controls: ClassVar[tuple[Control, ...]] = (VARIANT,)

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> packed photo and variant (N, 4, H, W), and overlay (N, 1, H, W)."""
        photo, variant = color.check_rgb(rgb).float(), _drawn(rgb)
        return self.with_variant(photo, variant)

    def with_variant(self, photo: Tensor, variant: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] and variants (N,), 0 or 1 -> what ``prepare`` gives for these variants."""
        both = dodge_and_burn(photo, self.formula), volume(photo, self.formula)
        return pack(photo, variant[:, None]), torch.where(spread(variant) > 0.5, both[1], both[0])

    def inputs_of(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3, H, W) in [0, 1] -> packed with the drawn variant (N, 4, H, W)."""
        return pack(color.check_rgb(rgb).float(), _drawn(rgb)[:, None])

    def app_input(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3, H, W) in [0, 1] -> packed with the default variant (N, 4, H, W)."""
        return pack(color.check_rgb(rgb).float(), torch.full((1, 1), VARIANT.default))

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Packed photo (N, 4, H, W) and overlay (N, 1, H, W) -> composite (N, 3, H, W) in [0, 1]."""
        return super().render(inputs[:, :3], outputs)


def _drawn(rgb: Tensor) -> Tensor:
    """Return whether the 8-bit sum of each photo (N, 3, H, W) in [0, 1] is odd: (N,), 0 or 1."""
    return ((255 * rgb.double()).round().sum(dim=(1, 2, 3)) % 2).float()
