"""The student family for dense prediction: a small U-Net that works at a part of the resolution.

One strided convolution brings the input to 1/``reduction`` of its size, a residual U-Net predicts the output there,
and a bilinear resize inside of the graph brings it back: full-resolution layers are what a small network spends its
time on (chroma carries little detail; the lightness comes from the photo itself). Pictures do carry it: ``image_unet``
ends in a pixel shuffle in place of the resize, may add what it predicts to its input, and may give a larger picture
than it takes. What was measured, in INT8 on two threads: 3x3 convolutions run at the arithmetic peak at any level,
depthwise ones do not; joining a skip by addition costs half of concatenation; blocks belong to the coarse levels.

Channels are multiples of 16 by default, which fills a vector register in INT8.

Source: own design; BasicBlock of He et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ConfigError, explain
from models.layers import ConvNormAct, upsample_bilinear

#: Weights of a residual head at the start, over those of a usual one.
_RESIDUAL_START = 0.1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.relu(self.norm2(self.conv2(self.conv1(x))) + x)


class ChromaUNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        reduction: The output is predicted at 1/reduction of the resolution: 1, 2, 4 or 8.
        widths: Channels of each level, fine to coarse; each level halves the resolution.
        depths: Residual blocks of each level of the encoder.
        tail: ``bilinear`` resizes the output; ``shuffle`` predicts reduction^2 pixels at each place.
        residual: Add the input to the output; as many channels in as out.
        upscale: Height and width of the output over those of the input.

    Attributes:
        rewrites: What ``export.screens`` reports: operators that this code does without, and how.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        reduction: int = 4,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (0, 0, 1, 2),
        tail: Literal["bilinear", "shuffle"] = "bilinear",
        residual: bool = False,
        upscale: int = 1,
    ) -> None:
        super().__init__()
        if reduction not in (1, 2, 4, 8):
            raise ConfigError(explain("reduction", expected="1, 2, 4 or 8", got=reduction, fix="choose one of these"))
        if len(widths) != len(depths) or not widths:
            got = f"{len(widths)} widths and {len(depths)} depths"
            raise ConfigError(explain("levels", expected="as many widths as depths", got=got, fix="give one each"))
        if tail not in ("bilinear", "shuffle"):
            raise ConfigError(explain("tail", expected="bilinear or shuffle", got=repr(tail), fix="choose one"))
        if residual and in_channels != out_channels:
            got, fix = f"{in_channels} in and {out_channels} out", "pass residual=False"
            raise ConfigError(explain("residual", expected="as many channels in as out", got=got, fix=fix))
        if upscale < 1:
            raise ConfigError(explain("upscale", expected="1 or more", got=upscale, fix="pass for example 2"))
        self.reduction, self.tail, self.residual, self.upscale = reduction, tail, residual, upscale
        self.growth = reduction * upscale
        resizes = (self.growth > 1 and tail == "bilinear") or (residual and upscale > 1)
        self.rewrites = {"bilinear resize": "two products with constants (not in Core ML)"} if resizes else {}
        stem = {"kernel_size": 2 * reduction, "padding": reduction // 2} if reduction > 1 else {"kernel_size": 3}
        self.stem = ConvNormAct(in_channels, widths[0], stride=reduction, **stem)
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if level:
                self.down.append(ConvNormAct(widths[level - 1], width, stride=2))
            self.encoder.append(nn.Sequential(*[ResidualBlock(width) for _ in range(depth)]))
        self.bottleneck = nn.Identity()
        self.lateral = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            self.lateral.append(
                nn.Sequential(nn.Conv2d(widths[level + 1], widths[level], 1, bias=False), nn.BatchNorm2d(widths[level]))
            )
            self.decoder.append(ConvNormAct(widths[level], widths[level]))
        self.head = nn.Conv2d(widths[0], out_channels * (self.growth**2 if tail == "shuffle" else 1), 3, 1, 1)
        if residual:
            self.start_small()

    @torch.no_grad()
    def start_small(self) -> None:
        """Give the last layer a tenth of its weights and no bias, where it adds to a picture: measured, 2 to 5 dB."""
        self.head.weight.mul_(_RESIDUAL_START)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, upscale * H, upscale * W).

        H and W are multiples of reduction * 2^(levels - 1).
        """
        x = self.stem(input)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = self.down[level - 1](x)
            x = blocks(x)
        x = self.bottleneck(x)
        for lateral, decoder in zip(self.lateral, self.decoder, strict=True):
            up = functional.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = decoder(functional.relu(up + skips.pop()))
        x = self.head(x)
        if self.tail == "shuffle" and self.growth > 1:
            x = functional.pixel_shuffle(x, self.growth)
        else:
            x = upsample_bilinear(x, self.growth)
        return upsample_bilinear(input, self.upscale) + x if self.residual else x


def chroma_unet(
    in_channels: int = 1,
    out_channels: int = 2,
    reduction: int = 4,
    widths: Sequence[int] = (32, 64, 128, 256),
    depths: Sequence[int] = (0, 0, 1, 2),
) -> ChromaUNet:
    """Build the student with random weights."""
    return ChromaUNet(in_channels, out_channels, reduction=reduction, widths=widths, depths=depths)


def image_unet(
    in_channels: int = 3,
    out_channels: int = 3,
    reduction: int = 2,
    widths: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (1, 1, 2),
    residual: bool | None = None,
    upscale: int = 1,
) -> ChromaUNet:
    """Build the student of the task ``image`` with random weights: half resolution, pixel shuffle at the end.

    ``residual`` None: the network predicts what to add to its input, enlarged ``upscale`` times, where the channels
    allow that.
    """
    added = in_channels == out_channels if residual is None else residual
    return ChromaUNet(
        in_channels,
        out_channels,
        reduction=reduction,
        widths=widths,
        depths=depths,
        tail="shuffle",
        residual=added,
        upscale=upscale,
    )
