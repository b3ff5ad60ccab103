"""Zero-DCE low-light curves (Guo et al., CVPR 2020; github.com/Li-Chongyi/Zero-DCE, CC BY-NC: academic use only).

Seven convolutions predict eight curves x + r (x^2 - x) for each pixel and colour. Checkpoint: Epoch99.pth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroDCE(nn.Module):
    """RGB (N, 3, H, W) in [0, 1] -> brighter RGB, the same shape."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(zip((0, 1, 1, 1, 2, 2, 2), (1, 1, 1, 1, 1, 1, 0), strict=True), 1):
            self.add_module(f"e_conv{number}", nn.Conv2d(inputs * width or 3, outputs * width or 24, 3, padding=1))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the eight curves one after the other."""
        x1 = self.e_conv1(input).relu()
        x2 = self.e_conv2(x1).relu()
        x3 = self.e_conv3(x2).relu()
        x4 = self.e_conv4(x3).relu()
        x5 = self.e_conv5(torch.cat([x3, x4], 1)).relu()
        x6 = self.e_conv6(torch.cat([x2, x5], 1)).relu()
        for curve in self.e_conv7(torch.cat([x1, x6], 1)).tanh().split(3, dim=1):
            input = input + curve * (input * input - input)
        return input
