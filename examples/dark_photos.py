"""A task for low-light networks: ordinary photos are darkened; what the teacher makes of them is the target."""

from __future__ import annotations

from torch import Tensor

from models.tasks.image import Image


class DarkPhotos(Image):
    """RGB -> a photo of about a tenth of the light -> what the teacher renders. There is no other truth."""

    name = "dark_photos"
    do_nothing = "the dark photo"

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Raise photos (N, 3, H, W) in [0, 1] to the power of 2 and dim them to 0.4."""
        photo, _ = super().prepare(rgb)
        dark = 0.4 * photo**2
        return dark, dark
