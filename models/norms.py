"""LayerNorm over the channels of (N, C, H, W), written so that every engine keeps it in the layout it is in.

The published codes move the channels last, normalize and move them back; the mean and the mean square over dimension 1
give the same numbers without the two transposes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """Normalize each pixel over its channels, then scale and shift: (N, C, H, W) -> (N, C, H, W).

    Source: NAFNet's ``LayerNorm2d``; ConvNeXt's ``LayerNorm(data_format="channels_first")``.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        centred = x - x.mean(dim=1, keepdim=True)
        spread = (centred * centred).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(spread + self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


class BiasFreeNorm2d(nn.Module):
    """Divide each pixel by the deviation of its channels, nothing subtracted: (N, C, H, W) -> (N, C, H, W).

    Source: Restormer's ``BiasFree_LayerNorm``.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        centred = x - x.mean(dim=1, keepdim=True)
        spread = (centred * centred).mean(dim=1, keepdim=True)
        return x / torch.sqrt(spread + self.eps) * self.weight[:, None, None]
