"""U-Net with a ConvNeXt V2 Tiny encoder.

Names and shapes below ``encoder.`` are those of facebookresearch/ConvNeXt-V2 (``models/convnextv2.py``) without the
classifier (``norm``, ``head``): ``encoder.downsample_layers.0.0``, ``encoder.stages.0.0.dwconv``,
``encoder.stages.0.0.grn.gamma``. Its checkpoints load with ``--encoder-weights FILE``. Height and width: multiples
of 32.

The global response norm divides by the mean of the channels' L2 norms; here both are root mean squares, which is the
same ratio and stays small, where a sum of squares over a large photo leaves the range of FP16.

Source: Woo et al. 2023, "ConvNeXt V2"; Liu et al. 2022, "A ConvNet for the 2020s".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.encoder_unet import EncoderUNet
from models.norms import LayerNorm2d
from models.outputs import Form


class GlobalResponseNorm(nn.Module):
    """Scale each channel by its share of the response of the whole photo: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        response = torch.sqrt((x * x).mean(dim=(1, 2), keepdim=True))
        share = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution and an inverted bottleneck beside a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXtEncoder(nn.Module):
    """The feature layers; returns the features at 1/4, 1/8, 1/16 and 1/32.

    Args:
        channels: Channels of the four stages.
        depths: Blocks of the four stages.
    """

    #: Beginnings of stored tensors that belong to the classifier; ``models.pretrained.load_encoder`` leaves them out.
    classifier = ("norm.", "head.")

    def __init__(self, channels: Sequence[int] = (96, 192, 384, 768), depths: Sequence[int] = (3, 3, 9, 3)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, channels[0], 4, 4), LayerNorm2d(channels[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for fine, coarse in pairwise(channels):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(fine), nn.Conv2d(fine, coarse, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*[ConvNeXtBlock(width) for _ in range(depth)])
            for width, depth in zip(channels, depths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> features, fine to coarse."""
        features = []
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
            features.append(x)
        return features


def unet_convnext(
    in_channels: int = 3,
    out_channels: int = 3,
    channels: Sequence[int] = (96, 192, 384, 768),
    depths: Sequence[int] = (3, 3, 9, 3),
    width: int = 32,
    form: Form = "image",
) -> EncoderUNet:
    """Build the network with random weights."""
    return EncoderUNet(
        ConvNeXtEncoder(channels, depths),
        channels,
        finest=4,
        in_channels=in_channels,
        out_channels=out_channels,
        width=width,
        form=form,
    )
