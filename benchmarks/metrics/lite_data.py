"""Groups of photos and their distorted versions, from which ``lite`` learns; seed and step fix a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.metrics.distortions import CHROMA_KINDS, TRAINED, Random
from models.photos import PhotoSet, open_photos

VERSIONS = 4
_KINDS = list(TRAINED)
_WEIGHTS = np.array([2.0 if kind in CHROMA_KINDS else 1.0 for kind in _KINDS])
_SHARES = _WEIGHTS / _WEIGHTS.sum()
_FULL, _GREY = 0.1, 0.08


def join_photos(folders: Sequence[Path]) -> PhotoSet:
    """Open several folders as one set.

    Raises:
        DataError: A folder is missing or holds no usable photo.
    """
    sets = [open_photos(folder) for folder in folders]
    paths = tuple(path for photos in sets for path in photos.paths)
    root = Path(os.path.commonpath([photos.root for photos in sets]))
    return PhotoSet(paths, root=root, skipped=[entry for photos in sets for entry in photos.skipped])


def random_crop(rgb: np.ndarray, size: int, rng: Random) -> Tensor:
    """Cut a random square out of (H, W, 3) uint8, as (3, ``size``, ``size``) in [0, 1], flipped half of the time.

    Half of the time at the photo's own resolution, else of any side from ``size`` to the whole; small photos are
    enlarged.
    """
    from PIL import Image

    height, width = rgb.shape[:2]
    short = min(height, width)
    native = short >= size and rng.random() < 0.5
    side = min(short, size if native else round(rng.uniform(min(size, short), max(size, short))))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    box = (left, top, left + side, top + side)
    square = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC, box=box))
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return torch.from_numpy(square.copy()).permute(2, 0, 1).float() / 255


def distort(photo: Tensor, rng: Random, other: Tensor) -> Tensor:
    """Apply one kind that is used in training; colour kinds, small strengths and the full one are drawn more often."""
    kind = str(rng.choice(_KINDS, p=_SHARES))
    strength = 1.0 if rng.random() < _FULL else float(rng.random() ** 2)
    return TRAINED[kind](photo, strength, rng, other)


class Groups:
    """Batches (G, 4, 3, S, S): a photo and three versions of it, each made of the photo or of the version before.

    One photo in twelve is made grey first.

    Args:
        photos: What to draw from.
        sizes: ``(side, probability)`` of the squares; large ones are drawn from photos that are large enough, if any.
        pixels: Pixels in a batch, about.
        seed: Together with the step it fixes a batch.
    """

    def __init__(self, photos: PhotoSet, sizes: Sequence[tuple[int, float]], pixels: int, seed: int) -> None:
        self.photos, self.sizes, self.pixels, self.seed = photos, list(sizes), pixels, seed
        short = np.array([_short_side(path) for path in photos.paths])
        everything = np.arange(len(photos))
        self._pools = {side: found if len(found := everything[short >= side]) else everything for side, _ in sizes}

    def batch(self, step: int, rank: int = 0) -> Tensor:
        """Make the batch of ``step`` for process ``rank``."""
        rng = np.random.default_rng((self.seed, step, rank))
        weights = np.array([weight for _, weight in self.sizes])
        side = self.sizes[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
        groups = max(1, round(self.pixels / (VERSIONS * side * side)))
        drawn = rng.choice(self._pools[side], size=groups + 1)
        crops = [random_crop(self.photos.load(int(index)), side, rng) for index in drawn]
        return torch.stack([self._versions(crops[index], crops[index + 1], rng) for index in range(groups)])

    @staticmethod
    def _versions(photo: Tensor, other: Tensor, rng: Random) -> Tensor:
        if rng.random() < _GREY:
            photo = TRAINED["desaturate"](photo, 1.0, rng, other)
        versions = [photo]
        for _ in range(VERSIONS - 1):
            source = versions[-1] if rng.random() < 0.4 else photo
            versions.append(distort(source, rng, other))
        return torch.stack(versions)


def _short_side(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        return min(image.size)
