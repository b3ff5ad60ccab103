"""Two ways to retouch in one network: the task ``overlay`` with a run-time control that chooses.

``variant`` 0 is dodge and burn, 1 is volume (``models.overlay_targets``); a value between them means the two overlays
blended by it. In training a photo's variant is drawn from its pixels (whether their 8-bit sum is odd), so that
evaluation repeats it, and a mirrored crop keeps it. The targets are made from single photos, or are those of a
retoucher: ``input/``, ``target/dodge_and_burn/`` and ``target/volume/`` with equal names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from models import color
from models.controls import pack, spread
from models.overlay_targets import VARIANTS
from models.spec import Control
from models.tasks.overlay import Overlay

if TYPE_CHECKING:
    from models.photos import PhotoSet

VARIANT = Control("variant", "graph_input", 0.0, 1.0, 0.0)


class OverlayVariants(Overlay):
    """sRGB and variant in (packed: ``models.controls``), overlay out."""

    name: ClassVar[str] = "overlay_variants"
    controls: ClassVar[tuple[Control, ...]] = (VARIANT,)

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] -> packed photo and variant (N, 4, H, W), and overlay (N, 1, H, W).

        Or photos with what a retoucher made of them in both variants, (N, 9, H, W).
        """
        return self._with_variant(rgb, _drawn(rgb))

    def prepare_at(self, rgb: Tensor, values: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The same at one variant, or at a blend of the two."""
        return self._with_variant(rgb, torch.full((len(rgb),), float(values[0]), device=rgb.device))

    def _with_variant(self, rgb: Tensor, variant: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``prepare`` gives for variants (N,) in [0, 1]."""
        photo = _photo(rgb)
        if rgb.shape[1] == 9:
            both = [self.overlay_of(photo, color.check_rgb(rgb[:, at : at + 3], "target").float()) for at in (3, 6)]
        else:
            both = [make(photo, self.formula) for make in VARIANTS]
        return pack(photo, variant[:, None]), torch.lerp(both[0], both[1], spread(variant))

    def open_pairs(self, folder: str | Path) -> PhotoSet:
        """Open a folder of photos with a target for each variant; see ``models.variant_pairs``.

        Raises:
            DataError: There is not one usable photo.
        """
        from models.variant_pairs import open_variant_pairs

        return open_variant_pairs(folder, [make.__name__ for make in VARIANTS])

    def inputs_of(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3 or 9, H, W) in [0, 1] -> packed with the drawn variant (N, 4, H, W)."""
        return pack(_photo(rgb), _drawn(rgb)[:, None])

    def app_input(self, rgb: Tensor) -> Tensor:
        """Photos (N, 3 or 9, H, W) in [0, 1] -> packed with the default variant (N, 4, H, W)."""
        return pack(_photo(rgb), torch.full((1, 1), VARIANT.default))

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Packed photo (N, 4, H, W) and overlay (N, 1, H, W) -> composite (N, 3, H, W) in [0, 1]."""
        return super().render(inputs[:, :3], outputs)


def _photo(rgb: Tensor) -> Tensor:
    """Return the photos of (N, 3 or 9, H, W): (N, 3, H, W)."""
    return color.check_rgb(rgb[:, :3] if rgb.shape[1] == 9 else rgb).float()


def _drawn(rgb: Tensor) -> Tensor:
    """Return whether the 8-bit sum of each photo (N, 3 or 9, H, W) in [0, 1] is odd: (N,), 0 or 1."""
    return ((255 * rgb[:, :3].double()).round().sum(dim=(1, 2, 3)) % 2).float()
