"""Photos as training batches: decoded on use, cropped, flipped, and gamma-shifted; kept in memory within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from models.errors import ConfigError, explain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.photos import PhotoSet

_MARGIN = 1.3


class PhotoCrops(Dataset[Tensor]):
    """Random square crops of photos as uint8 tensors (3, size, size).

    A crop depends on ``seed``, the epoch and the photo only, so that a resumed training sees the same ones.

    Args:
        photos: Where they come from.
        size: Side of a crop, pixels.
        seed: Start of the random numbers.
        min_area: Smallest share of the photo's central square that a crop covers, in (0, 1].
        tone_jitter: Half-width of the random gamma in log2 (0: none); applied to all channels alike.
        memory_mb: Decoded photos are kept up to this many megabytes; the rest is decoded again at each use.
    """

    def __init__(
        self,
        photos: PhotoSet,
        size: int,
        *,
        seed: int = 0,
        min_area: float = 0.4,
        tone_jitter: float = 0.15,
        memory_mb: int = 1500,
        repeat: int = 1,
    ) -> None:
        if size < 16 or not 0 < min_area <= 1 or repeat < 1:
            got = f"size {size}, min_area {min_area}, repeat {repeat}"
            expected = "size >= 16, 0 < min_area <= 1, repeat >= 1"
            raise ConfigError(explain("crops", expected=expected, got=got, fix="change the config"))
        self.photos, self.size, self.seed = photos, size, seed
        self.min_area, self.tone_jitter, self.repeat = min_area, tone_jitter, repeat
        self.epoch = 0
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._room = memory_mb * 2**20

    def __len__(self) -> int:
        return len(self.photos) * self.repeat

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        photo = Image.fromarray(self._photo(index % len(self.photos)))
        crop = photo.resize((self.size, self.size), Image.Resampling.BICUBIC, box=self._box(photo, rng), reducing_gap=2)
        pixels = np.asarray(crop)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.tone_jitter:
            gamma = 2 ** rng.uniform(-self.tone_jitter, self.tone_jitter)
            table = (255 * (np.arange(256) / 255) ** gamma + 0.5).astype(np.uint8)
            pixels = table[pixels]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _photo(self, index: int) -> NDArray[np.uint8]:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        pixels: NDArray[np.uint8] = self.photos.load(index, short_side=int(self.size * _MARGIN))
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return pixels

    def _box(self, photo: Image.Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
        width, height = photo.size
        side = min(width, height) * float(np.sqrt(rng.uniform(self.min_area, 1.0)))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        return left, top, left + side, top + side


def to_float(batch: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 in [0, 1]."""
    return batch.float() / 255
