"""Photos as training batches: decoded on use, cropped, flipped, and gamma-shifted; kept in memory within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from models.errors import ConfigError, explain
from models.raw_crops import is_raw_pair, random_cut
from models.tasks.base import Augmentation

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from models.photos import PhotoSet

    Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

_MARGIN = 1.3
ANY = Augmentation()


class PhotoCrops(Dataset[Tensor]):
    """Random square crops of photos as uint8 tensors (3, size, size), of pairs (6, size, size) from one place.

    Of raw pairs they are uint16 (5, size, size), whole cells at their own resolution, mirrored so that red stays first
    (``models.raw_crops``); ``min_area``, ``tone_jitter`` and ``native`` do not count.

    A crop depends on ``seed``, the epoch and the photo only, so that a resumed training sees the same ones.

    Args:
        photos: Where they come from.
        size: Side of a crop, pixels.
        seed: Start of the random numbers.
        min_area: Smallest share of the photo's central square that a crop covers, in (0, 1].
        tone_jitter: Half-width of the random gamma in log2 (0: none); applied to all channels alike, never to a pair.
        augmentation: What the task allows.
        native: Cut crops at the photo's own resolution, as tiles will be (``export.tiling``): nothing is shrunk, and
            ``min_area`` does not count; a photo smaller than a crop is enlarged.
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
        augmentation: Augmentation = ANY,
        native: bool = False,
    ) -> None:
        if size < 16 or not 0 < min_area <= 1 or repeat < 1:
            got = f"size {size}, min_area {min_area}, repeat {repeat}"
            expected = "size >= 16, 0 < min_area <= 1, repeat >= 1"
            raise ConfigError(explain("crops", expected=expected, got=got, fix="change the config"))
        self.photos, self.size, self.seed = photos, size, seed
        self.min_area, self.repeat, self.augmentation = min_area, repeat, augmentation
        self.native = native
        self.tone_jitter = tone_jitter if augmentation.tone_jitter else 0.0
        self.epoch = 0
        self._kept: dict[int, Pixels] = {}
        self._room = memory_mb * 2**20

    def __len__(self) -> int:
        return len(self.photos) * self.repeat

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        photo = self._photo(index % len(self.photos))
        pixels = self._raw_crop(photo, rng) if is_raw_pair(photo) else self._crop(photo, rng)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _raw_crop(self, pair: Pixels, rng: np.random.Generator) -> Pixels:
        allowed = self.augmentation
        mirror, turn = allowed.horizontal_flip, allowed.vertical_flip
        pixels: Pixels = random_cut(pair, self.size, self.size, rng, mirror=mirror, turn=turn)
        return pixels

    def _crop(self, photo: Pixels, rng: np.random.Generator) -> Pixels:
        box = self._box(photo.shape[0], photo.shape[1], rng)
        if self.native:  # whole pixels: cut first, so that a large photo is not copied
            left, top, right, bottom = (int(side) for side in box)
            photo, box = photo[top:bottom, left:right], (0.0, 0.0, float(right - left), float(bottom - top))
        pixels: Pixels = np.concatenate(
            [self._cut(photo[..., at : at + 3], box) for at in range(0, photo.shape[2], 3)], axis=2
        )
        if rng.random() < 0.5 and self.augmentation.horizontal_flip:
            pixels = pixels[:, ::-1]
        if self.augmentation.vertical_flip and rng.random() < 0.5:
            pixels = pixels[::-1]
        if self.tone_jitter and photo.shape[2] == 3:
            gamma = 2 ** rng.uniform(-self.tone_jitter, self.tone_jitter)
            table = (255 * (np.arange(256) / 255) ** gamma + 0.5).astype(np.uint8)
            pixels = table[pixels]
        return pixels

    def _photo(self, index: int) -> Pixels:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        pixels: Pixels = self.photos.load(index, short_side=None if self.native else int(self.size * _MARGIN))
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return pixels

    def _cut(self, rgb: Pixels, box: tuple[float, float, float, float]) -> Pixels:
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        size = (self.size, self.size)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2))

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        if self.native:
            whole = min(width, height, self.size)
            x, y = int(rng.integers(0, width - whole + 1)), int(rng.integers(0, height - whole + 1))
            return float(x), float(y), float(x + whole), float(y + whole)
        side = min(width, height) * float(np.sqrt(rng.uniform(self.min_area, 1.0)))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        return left, top, left + side, top + side


def to_float(batch: Tensor) -> Tensor:
    """uint8 (N, 3 or 6, H, W), or of raw pairs uint16 (N, 5, H, W) -> float32 in [0, 1]."""
    return batch.float() / torch.iinfo(batch.dtype).max
