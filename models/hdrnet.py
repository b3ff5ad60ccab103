"""HDRNet: a small network looks at the photo at low resolution and predicts a bilateral grid of affine transforms.

Each full-resolution pixel takes its transform from the grid at its place and at the height that a learned grey *guide*
gives, interpolated linearly in all three directions. Scopes of google/hdrnet (``hdrnet/models.py``, ``HDRNetCurves``)
give the names: ``coefficients.splat.conv1``, ``coefficients.global_.fc1`` (the scope is a Python keyword),
``coefficients.local.conv2``, ``coefficients.prediction.conv1``, ``guide.ccm``, ``guide.shifts``,
``guide.channel_mixing``; its weights (TensorFlow, HWIO) load transposed. Strided convolutions pad at the right and
bottom, as TensorFlow's do.

**Slicing without gathers.** Linear interpolation is a product with a hat function. So the grid is brought to full size
by two matrix products (rows and columns of hat weights, constants of a fixed size) and the depth is summed with the
weights ``max(0, 1 - |depth * guide - (k + 0.5)|)``. Every target has these operators; a 5-D grid sample most lack. The
guide's 16-point curves and its colour matrix are one 1x1 convolution, a ReLU and another one.

Source: Gharbi et al. 2017, "Deep Bilateral Learning for Real-Time Image Enhancement".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ConfigError, explain
from models.layers import sizes
from models.outputs import Form, bounded_map, check_form, neutral

_POINTS = 16


def area_weights(size: int, target: int, like: Tensor) -> Tensor:
    """Weights (target, size) that average a side of ``size`` pixels to ``target`` cells, by area."""
    edges = torch.arange(target + 1, dtype=like.dtype, device=like.device) * (size / target)
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    upper = torch.minimum(edges[1:, None], place[None, :] + 1)
    lower = torch.maximum(edges[:-1, None], place[None, :])
    return (upper - lower).clamp_min(0) * (target / size)


def hat_weights(cells: int, size: int, like: Tensor) -> Tensor:
    """Weights (size, cells) of linear interpolation from ``cells`` to ``size``, half-pixel centres, ends held."""
    place = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * (cells / size)
    place = place.clamp(0.5, cells - 0.5)
    centres = torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5
    return (1 - (place[:, None] - centres[None, :]).abs()).clamp_min(0)


def slice_grid(grid: Tensor, guide: Tensor) -> Tensor:
    """Look a bilateral grid up at the place and the guide value of each pixel, trilinearly.

    Args:
        grid: (N, C, depth, h, w).
        guide: (N, 1, H, W) in [0, 1].

    Returns:
        (N, C, H, W).
    """
    n, channels, depth, h, w = sizes(grid)
    _, _, height, width = sizes(guide)
    flat = grid.reshape(n, channels * depth, h, w)
    columns = torch.matmul(flat, hat_weights(w, width, guide).transpose(0, 1))
    full = torch.matmul(hat_weights(h, height, guide), columns)
    centres = torch.arange(depth, dtype=guide.dtype, device=guide.device)[:, None, None] + 0.5
    place = (guide * depth).clamp(0.5, depth - 0.5)
    weights = (1 - (place - centres).abs()).clamp_min(0)
    return (full.reshape(n, channels, depth, height, width) * weights[:, None]).sum(dim=2)


class SameConv(nn.Conv2d):
    """3x3 convolution of stride 1 or 2, padded as TensorFlow's SAME does for even sides."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, stride, 1 if stride == 1 else 0, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return super().forward(input if self.stride[0] == 1 else functional.pad(input, (0, 1, 0, 1)))


class Coefficients(nn.Module):
    """Low-resolution photo (N, C, low, low) -> grid (N, transforms, depth, cells, cells)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, low: int, cells: int, depth: int, multiplier: int
    ) -> None:
        super().__init__()
        self.depth = depth
        base, made = multiplier * depth, in_channels
        self.splat, self.local, self.prediction = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.global_ = nn.ModuleDict()
        for level in range(int(math.log2(low // cells))):
            self.splat[f"conv{level + 1}"] = SameConv(made, base * 2**level, stride=2)
            made = base * 2**level
        self.global_["conv1"] = SameConv(made, 8 * base, stride=2)
        self.global_["conv2"] = SameConv(8 * base, 8 * base, stride=2)
        self.global_["fc1"] = nn.Linear((cells // 4) ** 2 * 8 * base, 32 * base)
        self.global_["fc2"] = nn.Linear(32 * base, 16 * base)
        self.global_["fc3"] = nn.Linear(16 * base, 8 * base)
        self.local["conv1"] = SameConv(made, 8 * base)
        self.local["conv2"] = SameConv(8 * base, 8 * base, bias=False)
        self.prediction["conv1"] = nn.Conv2d(8 * base, depth * out_channels * (in_channels + 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, low, low) -> (N, transforms, depth, cells, cells)."""
        for conv in self.splat.values():
            x = functional.relu(conv(x))
        layers = self.global_
        whole = functional.relu(layers["conv2"](functional.relu(layers["conv1"](x))))
        whole = whole.permute(0, 2, 3, 1).flatten(1)  # the order in which TensorFlow flattens
        whole = functional.relu(layers["fc2"](functional.relu(layers["fc1"](whole))))
        whole = layers["fc3"](whole)
        local = self.local["conv2"](functional.relu(self.local["conv1"](x)))
        grid = self.prediction["conv1"](functional.relu(local + whole[:, :, None, None]))
        n, made, rows, columns = sizes(grid)
        return grid.reshape(n, made // self.depth, self.depth, rows, columns)


class Guide(nn.Module):
    """Photo (N, C, H, W) -> grey guide (N, 1, H, W) in [0, 1]: colour matrix, a curve a channel, a weighted sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ccm = nn.Parameter(torch.eye(channels))
        self.ccm_bias = nn.Parameter(torch.zeros(channels))
        self.shifts = nn.Parameter(torch.arange(_POINTS).div(_POINTS).repeat(channels, 1))
        slopes = torch.zeros(channels, _POINTS)
        slopes[:, 0] = 1
        self.slopes = nn.Parameter(slopes)
        self.channel_mixing = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.channel_mixing.weight, 1 / channels)
        if self.channel_mixing.bias is not None:
            nn.init.zeros_(self.channel_mixing.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        channels = self.ccm.shape[0]
        weight = self.ccm.transpose(0, 1)[:, None, :].expand(channels, _POINTS, channels)
        bias = (self.ccm_bias[:, None] - self.shifts).reshape(-1)
        steps = functional.relu(functional.conv2d(x, weight.reshape(-1, channels, 1, 1), bias))
        mixing = self.channel_mixing.weight.reshape(channels, 1) * self.slopes
        return functional.conv2d(steps, mixing.reshape(1, -1, 1, 1), self.channel_mixing.bias).clamp(0, 1)


class HDRNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        low: Side of the photo that the grid is predicted from, pixels.
        cells: Cells of the grid along a side.
        depth: Cells of the grid along the guide.
        multiplier: Factor of the channels.
        form: ``image``: what the transforms give, as published; ``map``: see ``models.outputs``.

    Attributes:
        rewrites: What ``export.screens`` reports: operators that this code does without, and how.

    Raises:
        ConfigError: ``low`` is not ``cells`` times a power of two, or there are fewer than 4 cells.
    """

    rewrites: ClassVar[Mapping[str, str]] = {"grid sample": "the grid is looked up by products with hat weights"}

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        low: int = 256,
        cells: int = 16,
        depth: int = 8,
        multiplier: int = 1,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form)
        if cells < 4 or cells % 4 or low <= cells or low != cells * 2 ** int(math.log2(low // cells)):
            expected = "cells a multiple of 4, low = cells * 2, 4, 8, ..."
            got = f"cells {cells}, low {low}"
            raise ConfigError(explain("grid of hdrnet", expected=expected, got=got, fix="use cells=16, low=256"))
        self.form, self.low, self.out_channels = form, low, out_channels
        self.coefficients = Coefficients(
            in_channels, out_channels, low=low, cells=cells, depth=depth, multiplier=multiplier
        )
        self.guide = Guide(in_channels)
        head = self.coefficients.prediction["conv1"]
        assert isinstance(head, nn.Conv2d)
        neutral(form, head)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        _, _, height, width = sizes(input)
        rows, columns = area_weights(height, self.low, input), area_weights(width, self.low, input)
        small = torch.matmul(torch.matmul(rows, input), columns.transpose(0, 1))
        sliced = slice_grid(self.coefficients(small), self.guide(input))
        parts = sliced.split(self.out_channels, dim=1)
        x = parts[-1]
        for channel, gain in enumerate(parts[:-1]):
            x = x + gain * input[:, channel : channel + 1]
        return bounded_map(x) if self.form == "map" else x


def hdrnet(
    in_channels: int = 3,
    out_channels: int = 3,
    low: int = 256,
    cells: int = 16,
    depth: int = 8,
    multiplier: int = 1,
    form: Form = "image",
) -> HDRNet:
    """Build HDRNet with curves as the guide, as published, with random weights."""
    return HDRNet(in_channels, out_channels, low=low, cells=cells, depth=depth, multiplier=multiplier, form=form)
