"""Random numbers that a photo's content decides, so that training, resuming and judging repeat them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generators(photos: Tensor) -> list[torch.Generator]:
    """Return one seeded generator a photo of (N, C, H, W) in [0, 1]; rounding to 8 bits gives the same one."""
    levels = (photos.detach().cpu().clamp(0, 1) * 255).round().byte().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(photo.tobytes())) for photo in levels]


def uniform(sources: Sequence[torch.Generator], low: float, high: float) -> Tensor:
    """Draw one value a generator from [low, high): (N,)."""
    return torch.cat([low + (high - low) * torch.rand(1, generator=source) for source in sources])


def normal(sources: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise of ``shape`` a generator: (N, *shape)."""
    return torch.stack([torch.randn(*shape, generator=source) for source in sources])
