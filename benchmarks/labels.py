"""Placing labels beside points so that none covers another label or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = 14.0
_POINT = 8.0
_BOLD = 1.16  #: Of the width of regular letters, in the widest of the fonts that a page falls back on.
_NARROW, _WIDE = frozenset("iljtfr.,:;'|!() "), frozenset("mwMWOQCDGHNUV%@")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Estimate the width of ``text`` in a sans-serif font of ``size`` pixels, rather too wide than too narrow."""
    units = sum(0.34 if letter in _NARROW else 0.82 if letter in _WIDE else 0.60 for letter in text)
    return units * size * (_BOLD if bold else 1.0)


@dataclass(frozen=True)
class Box:
    """A rectangle, pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: Box) -> float:
        """Return the area that lies outside of ``frame``."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


@dataclass(frozen=True)
class Label:
    """Where a label goes.

    Attributes:
        x: Left end of the text.
        y: Baseline of the text.
        box: What it covers.
        leader: Whether it is so far away that a line should lead to it.
        anchor: Where that line ends.
    """

    x: float
    y: float
    box: Box
    leader: bool
    anchor: tuple[float, float]


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    *,
    order: Sequence[int],
    frames: Sequence[Box],
    obstacles: Sequence[Box] = (),
) -> list[Label | None]:
    """Place one label a point, nearest free place first.

    Args:
        points: Centres, pixels.
        widths: Widths of the texts, pixels.
        order: Which label chooses first.
        frames: Where each label may lie.
        obstacles: What no label may cover, besides the points.

    Returns:
        One label a point; None where no free place is left (the point then has only its tooltip).
    """
    taken = [Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    taken += obstacles
    placed: list[Label | None] = [None] * len(points)
    for index in order:
        own = taken[index]
        best = None
        for label in _candidates(*points[index], widths[index]):
            clash = label.box.outside(frames[index])
            clash += sum(label.box.overlap(box) for box in taken if box is not own)
            if clash == 0.0:
                best = label
                break
        if best is not None:
            placed[index] = best
            taken.append(best.box)
    return placed


def _candidates(x: float, y: float, width: float) -> list[Label]:
    """List places around a point: beside it, above, below, then on widening rings with a leader line."""
    places = [(x + 11, y + 4, False), (x - 11 - width, y + 4, False)]
    places += [(x - width / 2, y - 12, False), (x - width / 2, y + 22, False)]
    places += [
        (x + 8, y - 9, False),
        (x + 8, y + 18, False),
        (x - 8 - width, y - 9, False),
        (x - 8 - width, y + 18, False),
    ]
    for radius in (26, 38, 52, 68, 86, 106, 130, 156):
        for step in range(16):
            angle = math.pi * step / 8
            cx, cy = x + radius * math.cos(angle), y + radius * math.sin(angle)
            left = cx if math.cos(angle) > 0.3 else cx - width if math.cos(angle) < -0.3 else cx - width / 2
            places.append((left, cy + 4, True))
    labels = []
    for left, base, leader in places:
        box = Box(left - 2, base - _LINE + 2, left + width + 2, base + 4)
        anchor = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
        labels.append(Label(left, base, box, leader, anchor))
    return labels


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move ascending ``heights`` as little as needed to lie ``gap`` apart between ``top`` and ``bottom``.

    The gap shrinks where there is no room for it.
    """
    if not heights:
        return []
    gap = min(gap, (bottom - top) / max(len(heights) - 1, 1))
    blocks: list[tuple[float, int]] = []  # (centre, size) of runs that touch
    for height in heights:
        centre, size = height, 1
        while blocks and blocks[-1][0] + gap * (blocks[-1][1] + size) / 2 > centre:
            before, count = blocks.pop()
            centre, size = (before * count + centre * size) / (count + size), count + size
        half = gap * (size - 1) / 2
        blocks.append((min(max(centre, top + half), bottom - half), size))
    places = [centre + gap * (index - (size - 1) / 2) for centre, size in blocks for index in range(size)]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    shift = max(places[-1] - bottom, 0.0)
    return [place - shift for place in places]
