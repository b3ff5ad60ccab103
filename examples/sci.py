"""SCI low-light enhancement (Ma et al., CVPR 2022; github.com/vis-opt-group/SCI, MIT): the network used at inference.

A dark photo is divided by its estimated illumination. Checkpoint: ``enhance.*`` of easy.pt, medium.pt or difficult.pt.
"""

from __future__ import annotations

from torch import Tensor, nn


class SCI(nn.Module):
    """RGB (N, 3, H, W) in [0, 1] -> brighter RGB, the same shape."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList([self.conv])  # one module under two names, as published
        self.out_conv = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, input: Tensor) -> Tensor:
        """Divide by the illumination, which is at least 1e-4."""
        features = self.in_conv(input)
        for block in self.blocks:
            features = features + block(features)
        illumination = (self.out_conv(features) + input).clamp(1e-4, 1)
        return (input / illumination).clamp(0, 1)
