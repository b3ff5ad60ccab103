"""The student of colour balance: a small convolutional network that predicts a 3D look-up table, and applies it.

A 64x64 thumbnail goes through strided convolutions to one vector; a linear layer turns it into a 3D table of 8 nodes a
side, added to the identity. Its columns are basis tables and the vector their weights, as in the paper. The table is
applied to the full-size input inside of the graph by trilinear interpolation, written as hat functions: the products
of the green and blue hats (64 of them) times the table is one matrix product, which leaves 8 red nodes a channel to be
weighted by the red hats. So no target needs a 5-D grid sample, which Core ML and TensorRT lack. ``table`` gives the
look-up table alone, for an app that applies it itself (``models.cube``).

Source: Zeng et al. 2020, "Learning image-adaptive 3D lookup tables for high performance photo enhancement in
real-time".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.cube import identity_3d
from models.layers import ConvNormAct, resize_bilinear


class BalanceLut(nn.Module):
    """The network; see the module's docstring.

    Args:
        widths: Channels of each convolution of stride 2, fine to coarse.
        basis: Length of the vector, the number of basis tables.
        nodes: Nodes of the table along an axis.
        thumbnail: Side of the thumbnail, pixels.
    """

    #: What ``export.screens`` reports: operators that this code does without, and how.
    rewrites: ClassVar[Mapping[str, str]] = {"grid sample": "the table is looked up by products with hat weights"}
    identity: Tensor
    knots: Tensor

    def __init__(self, widths: Sequence[int], *, basis: int, nodes: int, thumbnail: int) -> None:
        super().__init__()
        self.nodes, self.thumbnail = nodes, thumbnail
        ins = (3, *widths[:-1])
        self.features = nn.Sequential(*[ConvNormAct(a, b, stride=2) for a, b in zip(ins, widths, strict=True)])
        self.weights = nn.Conv2d(widths[-1], basis, 1)
        self.relu = nn.ReLU()
        self.tables = nn.Linear(basis, 3 * nodes**3)
        nn.init.normal_(self.tables.weight, std=1e-3)
        nn.init.zeros_(self.tables.bias)
        self.register_buffer("identity", identity_3d(nodes).permute(0, 3, 1, 2).reshape(1, 3 * nodes, nodes**2))
        self.register_buffer("knots", torch.arange(nodes, dtype=torch.float32).view(1, nodes, 1))

    def _table(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W) -> the table (N, 3 * red nodes, blue nodes * green nodes)."""
        small = resize_bilinear(rgb, (self.thumbnail, self.thumbnail)) * 2 - 1
        vector = self.relu(self.weights(self.features(small))).mean(dim=(2, 3))
        return self.tables(vector).reshape(-1, 3 * self.nodes, self.nodes**2) + self.identity

    def table(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] -> the 3D tables (N, 3, blue, green, red), as ``models.cube`` keeps them."""
        n = self.nodes
        return self._table(rgb).reshape(-1, 3, n, n, n).permute(0, 1, 3, 4, 2)

    def _hats(self, channel: Tensor) -> Tensor:
        """Values (N, 1, P) in [0, 1] -> weights of the nodes (N, nodes, P), linear between two neighbours."""
        return torch.relu(1 - (channel * (self.nodes - 1) - self.knots).abs())

    def forward(self, input: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] -> RGB (N, 3, H, W) in [0, 1]; any H and W."""
        table, n = self._table(input), self.nodes
        flat = input.clamp(0, 1).flatten(2)
        red, green, blue = (self._hats(flat[:, i : i + 1]) for i in range(3))
        planes = (blue[:, :, None] * green[:, None]).flatten(1, 2)
        sliced = torch.matmul(table, planes).reshape(-1, 3, n, flat.shape[2])
        return (sliced * red[:, None]).sum(dim=2).reshape(input.shape).clamp(0, 1)


def balance_lut(
    widths: Sequence[int] = (16, 32, 64, 64, 64), basis: int = 48, nodes: int = 8, thumbnail: int = 64
) -> BalanceLut:
    """Build the student with random weights."""
    return BalanceLut(widths, basis=basis, nodes=nodes, thumbnail=thumbnail)
