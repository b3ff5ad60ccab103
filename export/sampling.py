"""Sampling that some target lacks, as look-ups of each neighbour and their weighted sum: the same numbers.

OpenVINO and Core ML sample no volumes (the look-up tables of colour networks), and Core ML has no bicubic sampling.

Source: ``torch.nn.functional.grid_sample``; Keys 1981 (cubic convolution, a = -0.75).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

_NEAR = {"bilinear": (0, 1), "bicubic": (-1, 0, 1, 2), "nearest": (0,)}


def grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    """Do what ``grid_sample`` does to volumes (N, C, D, H, W), and bicubically to pictures (N, C, H, W).

    NotImplemented for what every target has, for reflected borders, and where the sizes are open.
    """
    if any(isinstance(side, torch.SymInt) for side in input.shape):
        return NotImplemented
    sides = [int(side) for side in input.shape[2:]]
    if padding_mode == "reflection" or (len(sides) == 2 and mode != "bicubic"):
        return NotImplemented
    flat, count = input.flatten(2), len(sides)
    choices = []
    for axis, side in enumerate(sides):
        unit = grid[..., count - 1 - axis].flatten(1)
        place = (unit + 1) / 2 * (side - 1) if align_corners else ((unit + 1) * side - 1) / 2
        if padding_mode == "border" and mode != "bicubic":
            place = place.clamp(0.0, float(side - 1))
        choices.append(_neighbours(place, side, mode, padding_mode))
    total: Any = 0
    for chosen in product(*choices):
        weight, index = chosen[0]
        for (more, inner), side in zip(chosen[1:], sides[1:], strict=True):
            weight, index = weight * more, index * side + inner
        values = flat.gather(2, index.to(torch.int64).unsqueeze(1).expand(-1, flat.shape[1], -1))
        total = total + values * weight.unsqueeze(1)
    return total.reshape(*total.shape[:2], *grid.shape[1:-1])


def _neighbours(place: Tensor, side: int, mode: str, padding_mode: str) -> list[tuple[Tensor, Tensor]]:
    """Return weight and index of each neighbour along an axis of ``side`` elements."""
    first = torch.round(place) if mode == "nearest" else torch.floor(place)
    found = []
    for tap in _NEAR[mode]:
        index = first + tap
        weight = _weight((place - index).abs(), mode)
        if padding_mode == "zeros":
            weight = weight * ((index >= 0) & (index <= side - 1)).to(place.dtype)
        found.append((weight, index.clamp(0.0, float(side - 1))))
    return found


def _weight(distance: Tensor, mode: str) -> Tensor:
    if mode == "nearest":
        return torch.ones_like(distance)
    if mode == "bilinear":
        return 1 - distance
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)
