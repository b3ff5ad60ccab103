"""The feature stacks that LPIPS reads: AlexNet, VGG16, SqueezeNet 1.1 and our own ``lite``.

The three official stacks are the convolutional parts of the torchvision networks of the same name, with torchvision's
``state_dict`` names (``0.weight``, ``3.squeeze.weight``, ...; torchvision puts ``features.`` before them), so that its
published weights load. Architecture sources: Krizhevsky 2014 (arXiv 1404.5997), Simonyan and Zisserman 2014 (arXiv
1409.1556), Iandola et al. 2016 (arXiv 1602.07360); taps as in Zhang et al. 2018 (arXiv 1801.03924).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """SqueezeNet's block: 1x1 convolution down to ``squeeze`` channels, then 1x1 and 3x3 up, side by side.

    Input (N, ``channels``, H, W), output (N, ``expand1x1 + expand3x3``, H, W), both after a ReLU.
    """

    def __init__(self, channels: int, squeeze: int, expand1x1: int, expand3x3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand1x1, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand3x3, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        x = torch.relu(self.squeeze(x))
        return torch.cat((torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))), dim=1)


class FeatureStack(nn.Sequential):
    """A sequential stack that returns what comes out of the layers named in ``taps``.

    Args:
        layers: The layers, in order.
        taps: Indices of the layers whose outputs are returned, ascending; later layers are left out.
        channels: The number of channels at each tap.
    """

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__(*layers[: taps[-1] + 1])
        self.taps, self.channels = taps, channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features at the taps for ``x`` of shape (N, 3, H, W), ImageNet-normalized."""
        features = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return features


def alexnet_features() -> FeatureStack:
    """AlexNet up to relu5: five taps, strides 4 to 16."""

    def block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding), nn.ReLU()]

    layers = [*block(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *block(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2)]
    layers += [*block(192, 384, 3, 1, 1), *block(384, 256, 3, 1, 1), *block(256, 256, 3, 1, 1)]
    return FeatureStack(layers, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256))


def vgg16_features() -> FeatureStack:
    """VGG16 up to relu5_3: five taps, strides 1 to 16."""
    layers: list[nn.Module] = []
    taps, channels, inputs = [], (64, 128, 256, 512, 512), 3
    for outputs, repeats in zip(channels, (2, 2, 3, 3, 3), strict=True):
        for _ in range(repeats):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        taps.append(len(layers) - 1)
        layers.append(nn.MaxPool2d(2, 2))
    return FeatureStack(layers, tuple(taps), channels)


FireWidths = tuple[int, int, int]
SQUEEZE_TAPS = (1, 4, 7, 9, 10, 11, 12)
SQUEEZE_FIRES: tuple[FireWidths, ...] = (
    (16, 64, 64),
    (16, 64, 64),
    (32, 128, 128),
    (32, 128, 128),
    (48, 192, 192),
    (48, 192, 192),
    (64, 256, 256),
    (64, 256, 256),
)


def fire_features(stem: int, fires: tuple[FireWidths, ...]) -> FeatureStack:
    """Build a stack of SqueezeNet 1.1's shape: seven taps, strides 2 to 16.

    Args:
        stem: Channels of the first convolution (3x3, stride 2).
        fires: ``(squeeze, expand1x1, expand3x3)`` of the eight fire modules.
    """
    blocks, inputs = [], stem
    for squeeze, expand1x1, expand3x3 in fires:
        blocks.append(Fire(inputs, squeeze, expand1x1, expand3x3))
        inputs = expand1x1 + expand3x3

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    first: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2), nn.ReLU()]
    layers = [*first, pool(), *blocks[:2], pool(), *blocks[2:4], pool(), *blocks[4:]]
    widths = [one + three for _, one, three in fires]
    return FeatureStack(layers, SQUEEZE_TAPS, (stem, widths[1], widths[3], *widths[4:]))


def squeezenet_features() -> FeatureStack:
    """SqueezeNet 1.1 up to its last fire module: seven taps, strides 2 to 16."""
    return fire_features(64, SQUEEZE_FIRES)


@dataclass(frozen=True)
class NetSource:
    """Where the official weights of one net come from.

    Attributes:
        build: Makes the stack with random weights.
        checkpoint: File name of torchvision's published checkpoint; its hash is in the name.
    """

    build: Callable[[], FeatureStack]
    checkpoint: str


OFFICIAL_NETS: dict[str, NetSource] = {
    "squeeze": NetSource(squeezenet_features, "squeezenet1_1-b8a52dc0.pth"),
    "alex": NetSource(alexnet_features, "alexnet-owt-7be5be79.pth"),
    "vgg": NetSource(vgg16_features, "vgg16-397923af.pth"),
}

LITE_STEM = 64
LITE_FIRES: tuple[FireWidths, ...] = (
    (16, 56, 56),
    (16, 56, 56),
    (32, 112, 112),
    (32, 120, 112),
    (48, 144, 128),
    (48, 136, 120),
    (64, 136, 128),
    (64, 144, 160),
)


def lite_features() -> FeatureStack:
    """Our own stack, 0.47 M parameters: SqueezeNet's shape and strides, narrowed to what LPIPS reads."""
    return fire_features(LITE_STEM, LITE_FIRES)
