"""DnCNN grey denoiser, sigma 25 (Zhang et al., TIP 2017; weights of github.com/cszn/KAIR, MIT), and its task.

Seventeen convolutions predict the noise, which is subtracted. Checkpoint: dncnn_25.pth.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.color import check_rgb
from models.spec import TensorSpec
from models.tasks.base import Task

SIGMA = 25 / 255


class DnCNN(nn.Module):
    """Noisy grey (N, 1, H, W) -> clean grey, the same shape."""

    def __init__(self, width: int = 64, depth: int = 17) -> None:
        super().__init__()
        sizes = [1, *[width] * (depth - 1), 1]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, input: Tensor) -> Tensor:
        """Subtract the noise."""
        return input - self.model(input)


class NoisyGrey(Task):
    """Grey photo + noise of sigma 25 in, the photo without it out: here the truth is known."""

    name = "noisy_grey"
    inputs = (TensorSpec("input", ("N", 1, "H", "W"), color_space="grey"),)  # noise leaves [0, 1]
    outputs = (TensorSpec("output", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="grey"),)
    metrics = ("psnr", "ssim", "lpips")
    output_scale = 1 / 255
    do_nothing = "the noisy photo"

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Luma, and luma with the same noise whenever the same photo comes."""
        grey = (check_rgb(rgb).float() * rgb.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        noise = [
            torch.randn(photo.shape, generator=torch.Generator().manual_seed(int(photo.double().sum() * 1e4)))
            for photo in grey.cpu()
        ]
        return grey + SIGMA * torch.stack(noise).to(grey), grey

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Grey as RGB."""
        return outputs.float().clamp(0, 1).expand(-1, 3, -1, -1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """Leave the noise in."""
        return inputs
