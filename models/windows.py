"""Windows of pixels for window attention, in tensors of at most five dimensions (Core ML takes no more).

Source: Liu et al. 2021, "Swin Transformer".
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers import sizes

MASKED = -100.0
#: What ``export.screens`` reports of a module that calls ``roll``.
ROLL = {"cyclic shift": "slices and a concatenation"}


def partition(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) -> (N * H * W / window^2, window^2, C), windows in reading order."""
    n, h, w, c = sizes(x)
    rows = x.reshape(n * (h // window), window, w // window, window * c)
    return rows.permute(0, 2, 1, 3).reshape(n * (h // window) * (w // window), window * window, c)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo ``partition``: (N * H * W / window^2, window^2, C) -> (N, H, W, C)."""
    c = sizes(windows)[2]
    rows = windows.reshape(-1, width // window, window, window * c).permute(0, 2, 1, 3)
    return rows.reshape(-1, height, width, c)


def roll(x: Tensor, shift: int) -> Tensor:
    """Move (N, H, W, C) cyclically by ``shift`` pixels along both sides (slices and concatenations)."""
    for dim in (1, 2):
        size = sizes(x)[dim]
        cut = -shift if shift < 0 else size - shift
        x = torch.cat([x.narrow(dim, cut, size - cut), x.narrow(dim, 0, cut)], dim=dim)
    return x


def regions(size: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Number the three parts (size,) that a side falls into: no window may look from one part into another."""
    place = torch.arange(size, device=like.device)
    return (place >= size - window).to(like.dtype) + (place >= size - shift).to(like.dtype)


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Return what is added to the attention of shifted windows: (H * W / window^2, 1, window^2, window^2).

    Zero where two pixels of a window were neighbours before the cyclic shift, ``MASKED`` elsewhere.
    """
    rows, columns = regions(height, window, shift, like), regions(width, window, shift, like)
    labels = (3 * rows[:, None] + columns[None, :])[None, :, :, None]
    parts = partition(labels, window)[:, :, 0]
    return (parts[:, None, :] != parts[:, :, None]).to(like.dtype)[:, None] * MASKED


def relative_places(window: int) -> Tensor:
    """Return the row of the position table for each pair of pixels of a window: (window^2, window^2) int64."""
    place = torch.arange(window * window)
    rows, columns = place // window, place % window
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """Attention inside of windows.

    Args:
        q: Queries (windows, heads, pixels, c).
        k: Keys, likewise.
        v: Values (windows, heads, pixels, d).
        bias: Added for each pair of pixels (heads, pixels, pixels).
        mask: (windows of one photo, 1, pixels, pixels), added; None: none.
        scale: Factor of the queries.

    Returns:
        (windows, pixels, heads * d).
    """
    scores = torch.matmul(q * scale, k.transpose(-2, -1)) + bias
    if mask is not None:
        count, (_, heads, pixels, _) = sizes(mask)[0], sizes(scores)
        scores = scores.reshape(-1, count, heads, pixels, pixels) + mask
        scores = scores.reshape(-1, heads, pixels, pixels)
    mixed = torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2)
    windows, pixels, heads, channels = sizes(mixed)
    return mixed.reshape(windows, pixels, heads * channels)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(windows, pixels, heads * c) -> (windows, heads, pixels, c)."""
    windows, pixels, channels = sizes(x)
    return x.reshape(windows, pixels, heads, channels // heads).transpose(1, 2)
