"""NAFNet: a U-Net without activation functions (gates, LayerNorm over channels, channel attention by one mean).

Names and shapes of the state_dict are those of megvii-research/NAFNet (``basicsr/models/archs/NAFNet_arch.py``), so its
checkpoints load: ``intro``, ``encoders.0.0.conv1``, ``downs.0``, ``middle_blks.0``, ``ups.0.0``, ``decoders.0.0``,
``ending``. Height and width: multiples of 2 to the number of levels (16 with four); the published code pads instead.

Trained ones reach activations above the largest half (65504) where the LayerNorm squares them
(NVIDIA/TensorRT#3897, #4338): ``export.screens`` finds such layers and keeps them in FP32.

Source: Chen et al. 2022, "Simple Baselines for Image Restoration".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.norms import LayerNorm2d
from models.outputs import Form, bounded_map, check_form, neutral


class SimpleGate(nn.Module):
    """The first half of the channels times the second: (N, 2C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2C, H, W) -> (N, C, H, W)."""
        first, second = x.chunk(2, dim=1)
        return first * second


class NAFBlock(nn.Module):
    """Gated depthwise convolution with channel attention, then a gated 1x1 pair: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, expand: int = 2) -> None:
        super().__init__()
        wide, half = channels * expand, channels * expand // 2
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide)
        self.conv3 = nn.Conv2d(half, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(half, half, 1))
        self.sg = SimpleGate()
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(half, channels, 1)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gated = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(gated * self.sca(gated)) * self.beta
        return x + self.conv5(self.sg(self.conv4(self.norm2(x)))) * self.gamma


class NAFNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first level; each level doubles them.
        encoder_blocks: Blocks of each level on the way down.
        middle_blocks: Blocks at the bottom.
        decoder_blocks: Blocks of each level on the way up.
        form: ``image``: the input is added to the output, as published; ``map``: see ``models.outputs``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 32,
        encoder_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form, skip=(in_channels, out_channels))
        self.form = form
        self.intro = nn.Conv2d(in_channels, width, 3, 1, 1)
        self.ending = nn.Conv2d(width, out_channels, 3, 1, 1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        channels = width
        for count in encoder_blocks:
            self.encoders.append(nn.Sequential(*[NAFBlock(channels) for _ in range(count)]))
            self.downs.append(nn.Conv2d(channels, 2 * channels, 2, 2))
            channels *= 2
        self.middle_blks = nn.Sequential(*[NAFBlock(channels) for _ in range(middle_blocks)])
        for count in decoder_blocks:
            self.ups.append(nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2)))
            channels //= 2
            self.decoders.append(nn.Sequential(*[NAFBlock(channels) for _ in range(count)]))
        neutral(form, self.ending)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x = self.intro(input)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            x = decoder(up(x) + skips.pop())
        x = self.ending(x)
        return bounded_map(x) if self.form == "map" else x + input


def nafnet_w32(
    in_channels: int = 3,
    out_channels: int = 3,
    width: int = 32,
    encoder_blocks: Sequence[int] = (1, 1, 1, 28),
    middle_blocks: int = 1,
    decoder_blocks: Sequence[int] = (1, 1, 1, 1),
    form: Form = "image",
) -> NAFNet:
    """Build NAFNet of width 32 (the network published for GoPro and REDS) with random weights."""
    return NAFNet(
        in_channels,
        out_channels,
        width=width,
        encoder_blocks=encoder_blocks,
        middle_blocks=middle_blocks,
        decoder_blocks=decoder_blocks,
        form=form,
    )
