"""A decoder for encoders of classifiers: pixel-shuffle upsampling, skips joined, full size, then the map or picture.

Source: fastai's DynamicUnet (layout).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import ConvNormAct, PixelShuffleUpsample, icnr_
from models.outputs import Form, bounded_map, check_form, neutral
from models.resnet18_unet import DecoderBlock

#: Mean and standard deviation of sRGB over ImageNet, which published encoders were trained on.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalized(nn.Module):
    """sRGB (N, 3, H, W) in [0, 1] -> what published encoders read: mean 0, deviation 1 over ImageNet; no weights."""

    scale: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", 1 / deviation, persistent=False)
        self.register_buffer("offset", -mean / deviation, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W)."""
        return x * self.scale + self.offset


class EncoderUNet(nn.Module):
    """Encoder, one decoder block a skip, pixel shuffle to full size, the input joined, two convolutions, a head.

    Args:
        encoder: (N, 3, H, W), normalized -> features, fine to coarse, each half the size of the one before.
        channels: Channels of these features.
        finest: Size of the photo over that of the finest feature: 2 or 4.
        in_channels: Channels of the input: 3 are sRGB in [0, 1], others go through a 1x1 convolution.
        out_channels: Channels of the output.
        width: Channels of the full-size layers.
        form: ``image``: the input is added to the output; ``map``: see ``models.outputs``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: Sequence[int],
        *,
        finest: int,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 32,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form, skip=(in_channels, out_channels))
        self.form = form
        self.stem = Normalized() if in_channels == 3 else nn.Conv2d(in_channels, 3, 1)
        self.encoder = encoder
        self.decoder = nn.ModuleList()
        made = channels[-1]
        for skip in reversed(channels[:-1]):
            self.decoder.append(DecoderBlock(made, skip, skip))
            made = skip
        ups: list[nn.Module] = []
        for _ in range(finest // 2):
            ups.append(PixelShuffleUpsample(made, width))
            made = width
        self.last_up = nn.Sequential(*ups)
        self.refine = nn.Sequential(ConvNormAct(width + in_channels, width), ConvNormAct(width, width))
        self.head = nn.Conv2d(width, out_channels, 1)
        for module in self.modules():
            if isinstance(module, PixelShuffleUpsample):
                icnr_(module.conv.weight, module.scale)
        neutral(form, self.head)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        *skips, x = self.encoder(self.stem(input))
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x, skip)
        x = self.head(self.refine(torch.cat([self.last_up(x), input], dim=1)))
        return bounded_map(x) if self.form == "map" else x + input
