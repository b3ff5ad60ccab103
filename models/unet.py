"""A plain U-Net: two 3x3 convolutions a level, max pooling down, 2x2 transposed convolutions up, skips joined.

The baseline of colorization beside ``resnet18_unet``: three halvings. Names and shapes of the state_dict are those of
milesial/Pytorch-UNet (``unet/unet_parts.py``, ``bilinear=False``): ``inc.double_conv.0``, ``down1.maxpool_conv.1``,
``up1.up``, ``up1.conv``, ``outc.conv``; its checkpoints load with ``levels=4, in_channels=3``. Height and width:
multiples of 2 ** ``levels``.

Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.errors import ConfigError, explain
from models.outputs import Form, bounded_map, check_form, neutral


class DoubleConv(nn.Module):
    """(3x3 convolution, BatchNorm, ReLU) twice: (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        y: Tensor = self.double_conv(x)
        return y


class Down(nn.Module):
    """Max pooling by 2, then two convolutions: (N, in, H, W) -> (N, out, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / 2, W / 2)."""
        y: Tensor = self.maxpool_conv(x)
        return y


class Up(nn.Module):
    """Transposed convolution by 2, the skip joined in front, two convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, 2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in, H, W) and (N, in / 2, 2H, 2W) -> (N, out, 2H, 2W)."""
        y: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return y


class OutConv(nn.Module):
    """The last 1x1 convolution, under the published name ``conv``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        y: Tensor = self.conv(x)
        return y


class UNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first level; each level doubles them.
        levels: Halvings.
        form: ``image``: what the last convolution gives; ``map``: see ``models.outputs``.

    Raises:
        ConfigError: No level.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 64,
        levels: int = 4,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form)
        if levels < 1:
            raise ConfigError(explain("levels of a U-Net", expected="1 or more", got=levels, fix="use for example 3"))
        self.form, self.levels = form, levels
        self.inc = DoubleConv(in_channels, width)
        for level in range(levels):
            self.add_module(f"down{level + 1}", Down(width * 2**level, width * 2 ** (level + 1)))
        for level in reversed(range(levels)):
            self.add_module(f"up{levels - level}", Up(width * 2 ** (level + 1), width * 2**level))
        self.outc = OutConv(width, out_channels)
        neutral(form, self.outc.conv)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x = self.inc(input)
        skips = []
        for level in range(self.levels):
            skips.append(x)
            x = getattr(self, f"down{level + 1}")(x)
        for level in range(self.levels):
            x = getattr(self, f"up{level + 1}")(x, skips.pop())
        x = self.outc(x)
        return bounded_map(x) if self.form == "map" else x


def unet(in_channels: int = 1, out_channels: int = 2, width: int = 64, levels: int = 3, form: Form = "image") -> UNet:
    """Build the baseline of colorization with random weights."""
    return UNet(in_channels, out_channels, width=width, levels=levels, form=form)
