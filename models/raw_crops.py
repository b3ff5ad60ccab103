"""Cutting raw pairs: whole Bayer cells, nothing resized, all 16 bits kept.

A raw pair is one array (2H, 2W, 5) uint16, 65535 for white: red, green and blue of the finished photo, the RGGB mosaic
of the short exposure, and 65535 over the ratio of the two exposures.

Source of the mirroring: Liu et al. 2019, "Learning Raw Image Denoising with Bayer Pattern Unification and Bayer
Preserving Augmentation": a mirrored mosaic that begins one column later is RGGB again, and stays on its photo.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.errors import DataError, explain


def is_raw_pair(photo: Any) -> bool:
    """Say whether an array (H, W, C) is a raw pair; photos and pairs of photos are uint8."""
    return bool(photo.dtype == np.uint16)


def centre_cut(pair: Any, height: int, width: int) -> Any:
    """Cut (height, width, 5) out of the middle of a raw pair, at a whole cell.

    Raises:
        DataError: The pair is smaller, or a side is odd.
    """
    rows, columns = _room(pair, height, width)
    top, left = rows // 4 * 2, columns // 4 * 2
    return pair[top : top + height, left : left + width]


def random_cut(
    pair: Any, height: int, width: int, rng: np.random.Generator, *, mirror: bool = True, turn: bool = False
) -> Any:
    """Cut (height, width, 5) out of a raw pair at a random place.

    Args:
        pair: Raw pair.
        height: Even.
        width: Even.
        rng: Draws the place.
        mirror: Left and right may change places, where the pair is wider than the crop.
        turn: Top and bottom may, where it is higher.

    Raises:
        DataError: The pair is smaller, or a side is odd.
    """
    rows, columns = _room(pair, height, width)
    (top, turned), (left, mirrored) = _place(rows, rng, turn), _place(columns, rng, mirror)
    part = pair[top : top + height, left : left + width]
    part = part[::-1] if turned else part
    return part[:, ::-1] if mirrored else part


def _place(room: int, rng: np.random.Generator, may_reverse: bool) -> tuple[int, bool]:
    """Return where a crop starts and whether it is reversed: at an odd place then, so that red comes first again."""
    reverse = may_reverse and room >= 2 and rng.random() < 0.5
    return 2 * int(rng.integers(0, room // 2 + (not reverse))) + reverse, reverse


def _room(pair: Any, height: int, width: int) -> tuple[int, int]:
    rows, columns = pair.shape[0] - height, pair.shape[1] - width
    if min(rows, columns) < 0 or height % 2 or width % 2:
        fix = "pass a smaller --input-size, or smaller sizes in fit.phases: raw pairs are cut, never resized"
        expected = f"crops of even sides up to {pair.shape[0]}x{pair.shape[1]}, the size of its photo"
        raise DataError(explain("raw pair", expected=expected, got=f"{height}x{width}", fix=fix))
    return rows, columns
