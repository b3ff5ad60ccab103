"""ResNet18 encoder with a Dynamic-U-Net decoder: the colorization teacher.

Input L (N, 1, H, W), a 1-to-3 convolution, the ResNet18 of torchvision without its head (state_dict names
``encoder.conv1.weight``, ``encoder.layer1.0.conv1.weight``, ...), then four decoder blocks that upsample by pixel
shuffle, concatenate the encoder's features of that size, and convolve twice; a last pixel shuffle to full size, the
input joined, two convolutions, and a 1x1 convolution to the output channels. Height and width: multiples of 32.

Source: He et al. 2016 (ResNet); Shi et al. 2016 (pixel shuffle); fastai's DynamicUnet (layout of the decoder).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import ConvNormAct, PixelShuffleUpsample, icnr_


class BasicBlock(nn.Module):
    """The two-convolution residual block of ResNet18, torchvision's names."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + identity)


class ResNet18Encoder(nn.Module):
    """ResNet18 without pooling head; returns the features at 1/2, 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.conv1 = nn.Conv2d(3, w, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(w, w), BasicBlock(w, w))
        self.layer2 = nn.Sequential(BasicBlock(w, 2 * w, 2), BasicBlock(2 * w, 2 * w))
        self.layer3 = nn.Sequential(BasicBlock(2 * w, 4 * w, 2), BasicBlock(4 * w, 4 * w))
        self.layer4 = nn.Sequential(BasicBlock(4 * w, 8 * w, 2), BasicBlock(8 * w, 8 * w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> five feature maps, fine to coarse."""
        x0 = self.relu(self.bn1(self.conv1(x)))
        x1 = self.layer1(self.maxpool(x0))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x0, x1, x2, x3, self.layer4(x3)


class DecoderBlock(nn.Module):
    """Pixel-shuffle up by 2, join the skip, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = PixelShuffleUpsample(in_channels, in_channels // 2)
        self.skip_norm = nn.BatchNorm2d(skip_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = ConvNormAct(in_channels // 2 + skip_channels, out_channels)
        self.conv2 = ConvNormAct(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in, H, W) and (N, skip, 2H, 2W) -> (N, out, 2H, 2W)."""
        joined = torch.cat([self.up(x), self.skip_norm(skip)], dim=1)
        return self.conv2(self.conv1(self.relu(joined)))


class ResNet18UNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first stage; 64 is the ResNet18 of the paper.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2, width: int = 64) -> None:
        super().__init__()
        w = width
        self.stem = nn.Conv2d(in_channels, 3, 1)
        self.encoder = ResNet18Encoder(w)
        self.decoder = nn.ModuleList(
            [
                DecoderBlock(8 * w, 4 * w, 4 * w),
                DecoderBlock(4 * w, 2 * w, 2 * w),
                DecoderBlock(2 * w, w, w),
                DecoderBlock(w, w, w // 2),
            ]
        )
        self.last_up = PixelShuffleUpsample(w // 2, w // 2)
        self.refine = nn.Sequential(ConvNormAct(w // 2 + in_channels, w // 2), ConvNormAct(w // 2, w // 2))
        self.head = nn.Conv2d(w // 2, out_channels, 1)
        for module in self.modules():
            if isinstance(module, PixelShuffleUpsample):
                icnr_(module.conv.weight, module.scale)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x0, x1, x2, x3, x4 = self.encoder(self.stem(input))
        x = x4
        for block, skip in zip(self.decoder, (x3, x2, x1, x0), strict=True):
            x = block(x, skip)
        x = torch.cat([self.last_up(x), input], dim=1)
        return self.head(self.refine(x))


def resnet18_unet(in_channels: int = 1, out_channels: int = 2, width: int = 64) -> ResNet18UNet:
    """Build the colorization teacher with random weights."""
    return ResNet18UNet(in_channels, out_channels, width)
