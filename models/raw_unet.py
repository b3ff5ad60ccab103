"""The student family of low light: raw developed by one convolution, and what a small U-Net adds to that.

Amplified values are coded by their square root, close to the curve of sRGB: noise then has about one strength at all
brightnesses, and INT8 keeps as many steps for the dark as for the bright. A 3x3 convolution that starts as the bilinear
demosaicing with the white balance of daylight makes the picture, and ``models.chroma_unet`` predicts what to add: a new
network starts where ``sid_unet`` needs minutes of training to get to (docs/low_light.md).

Source: own design; square root: Anscombe 1948 (variance-stabilizing transformation of Poisson noise).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import color
from models.chroma_unet import ChromaUNet
from models.controls import unpack
from models.sid_unet import amplify

#: Below the square root: its slope at zero would be infinite.
_DARKEST = 1e-4
#: Of the finished photo in a cell of the sensor: three colours at 2x2 places.
_OUT = 12
#: Bilinear demosaicing at distances -1, 0, 1: of green, which every second place has, and of red or blue.
_GREEN = ((0.0, 0.25, 0.0), (0.25, 1.0, 0.25), (0.0, 0.25, 0.0))
_OTHER = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))
#: Colour of each plane of packed raw.
_COLOURS = (0, 1, 2, 1)


class RawUNet(ChromaUNet):
    """The network; see the module's docstring.

    Args:
        reduction: The U-Net works at 1/reduction of the packed raw: 1, 2, 4 or 8.
        widths: Channels of each level, fine to coarse; each level halves the resolution.
        depths: Residual blocks of each level of the encoder.
    """

    def __init__(self, *, reduction: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__(4, _OUT, reduction=reduction, widths=widths, depths=depths, tail="shuffle")
        self.demosaic = nn.Conv2d(4, _OUT, 3, padding=1)
        with torch.no_grad():
            self.demosaic.weight.copy_(bilinear_demosaic([gain**0.5 for gain in color.DAYLIGHT_GAINS]))
            nn.init.zeros_(self.demosaic.bias)  # type: ignore[arg-type]
        self.start_small()

    def forward(self, input: Tensor, ratio: Tensor | None = None) -> Tensor:
        """Packed raw (N, 4, H, W) and ratio (N,) or (1,), or both packed (N, 5, H, W) -> sRGB (N, 3, 2H, 2W).

        Raw is black level 0, white level 1, channels R G B G; H and W multiples of reduction * 2^(levels - 1). The
        output is about [0, 1].
        """
        if ratio is None:
            input, ratio = unpack(input, 1)
        x = torch.sqrt(amplify(input, ratio) + _DARKEST)
        return functional.pixel_shuffle(self.demosaic(x) + super().forward(x), 2)


def bilinear_demosaic(gains: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Return the weight (12, 4, 3, 3) that demosaics packed R, G, B, G bilinearly, before a pixel shuffle of 2.

    Args:
        gains: What red, green and blue are multiplied by.
    """
    weight = torch.zeros(3, 2, 2, 4, 3, 3)
    for plane, ((row, column), colour) in enumerate(zip(color.BAYER_SITES, _COLOURS, strict=True)):
        kernel = _GREEN if colour == 1 else _OTHER
        for place in range(4):
            y, x = divmod(place, 2)
            for tap in range(9):
                down, right = 2 * (tap // 3 - 1) + row - y, 2 * (tap % 3 - 1) + column - x
                if max(abs(down), abs(right)) <= 1:
                    weight[colour, y, x, plane, tap // 3, tap % 3] = gains[colour] * kernel[down + 1][right + 1]
    return weight.flatten(0, 2)


def raw_unet(
    reduction: int = 1, widths: Sequence[int] = (16, 32, 64, 128), depths: Sequence[int] = (0, 1, 1, 1)
) -> RawUNet:
    """Build the student with random weights."""
    return RawUNet(reduction=reduction, widths=widths, depths=depths)
