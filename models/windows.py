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


def shift_masks(height: int, width: int, window: int, shift: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is added to the attention of shifted windows, for each row of windows and for each column of them.

    Zero where two pixels of a window were neighbours before the cyclic shift, ``MASKED`` elsewhere. The mask of a
    window is the sum of its row's and its column's; those of all windows of 512x512 would take 67 MB.

    Returns:
        (height / window, 1, window^2, window^2) and (width / window, 1, window^2, window^2).
    """
    rows, columns = (regions(size, window, shift, like).reshape(-1, window) for size in (height, width))
    down = rows[:, :, None].expand(-1, window, window).flatten(1)  # the part of each pixel of a window, row by row
    right = columns[:, None, :].expand(-1, window, window).flatten(1)
    return _apart(down), _apart(right)


def _apart(parts: Tensor) -> Tensor:
    """(windows, pixels) numbers of parts -> (windows, 1, pixels, pixels), ``MASKED`` where two pixels differ."""
    return (parts[:, None, :] != parts[:, :, None]).to(parts.dtype)[:, None] * MASKED


def relative_places(window: int) -> Tensor:
    """Return the row of the position table for each pair of pixels of a window: (window^2, window^2) int64."""
    place = torch.arange(window * window)
    rows, columns = place // window, place % window
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, masks: tuple[Tensor, Tensor] | None, *, scale: float
) -> Tensor:
    """Attention inside of windows.

    Args:
        q: Queries (windows, heads, pixels, c).
        k: Keys, likewise.
        v: Values (windows, heads, pixels, d).
        bias: Added for each pair of pixels (heads, pixels, pixels).
        masks: Of ``shift_masks``, added; None: none.
        scale: Factor of the queries.

    Returns:
        (windows, pixels, heads * d).
    """
    scores = torch.matmul(q * scale, k.transpose(-2, -1)) + bias
    if masks is not None:
        (rows, columns), (_, heads, pixels, _) = masks, sizes(scores)
        down, across = sizes(rows)[0], sizes(columns)[0]
        scores = scores.reshape(-1, across, heads, pixels, pixels) + columns
        scores = scores.reshape(-1, down, across * heads, pixels, pixels) + rows
        scores = scores.reshape(-1, heads, pixels, pixels)
    mixed = torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2)
    windows, pixels, heads, channels = sizes(mixed)
    return mixed.reshape(windows, pixels, heads * channels)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(windows, pixels, heads * c) -> (windows, heads, pixels, c)."""
    windows, pixels, channels = sizes(x)
    return x.reshape(windows, pixels, heads, channels // heads).transpose(1, 2)
