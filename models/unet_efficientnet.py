"""U-Net with an EfficientNet-B4 encoder.

Names and shapes below ``encoder.`` are those of torchvision's ``efficientnet_b4`` without the last convolution and the
classifier (``features.8``, ``classifier``): ``encoder.features.0.0``, ``encoder.features.1.0.block.1.fc1``. Its
checkpoint loads with ``--encoder-weights FILE``. Height and width: multiples of 32.

Source: Tan and Le 2019, "EfficientNet"; torchvision, ``models/efficientnet.py`` (names).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.encoder_unet import EncoderUNet
from models.outputs import Form

#: Expansion, kernel, stride, channels and blocks of the seven stages of B0.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM = 32
_SKIPS = (1, 2, 3, 5, 7)  # features at 1/2, 1/4, 1/8, 1/16, 1/32
_BN_EPS = 1e-5


def _round(channels: float) -> int:
    """Round to a multiple of 8, down by at most a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvNormSiLU(nn.Sequential):
    """Convolution, BatchNorm and, unless ``linear``, SiLU: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(
        self, made_of: int, made: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(made_of, made, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(made, eps=_BN_EPS),
        ]
        super().__init__(*layers, *([] if linear else [nn.SiLU()]))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all means: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.activation = nn.Conv2d(channels, squeezed, 1), nn.SiLU()
        self.fc2, self.scale_activation = nn.Conv2d(squeezed, channels, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gate = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * gate


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, made_of: int, made: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = _round(made_of * expansion)
        layers: list[nn.Module] = [] if wide == made_of else [ConvNormSiLU(made_of, wide, 1)]
        layers += [
            ConvNormSiLU(wide, wide, kernel, stride=stride, groups=wide),
            SqueezeExcitation(wide, max(1, made_of // 4)),
            ConvNormSiLU(wide, made, 1, linear=True),
        ]
        self.block = nn.Sequential(*layers)
        self.has_skip = stride == 1 and made_of == made

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return y + x if self.has_skip else y


class EfficientNetEncoder(nn.Module):
    """The feature layers; returns the features at 1/2, 1/4, 1/8, 1/16 and 1/32.

    Args:
        width: Factor of the channels of B0; 1.4 is B4.
        depth: Factor of its blocks; 1.8 is B4.
    """

    #: Beginnings of stored tensors that belong to the classifier; ``models.pretrained.load_encoder`` leaves them out.
    classifier = ("features.8.", "classifier.")

    def __init__(self, *, width: float = 1.4, depth: float = 1.8) -> None:
        super().__init__()
        made = _round(_STEM * width)
        stages: list[nn.Module] = [ConvNormSiLU(3, made, 3, stride=2)]
        self.channels: list[int] = []
        for number, (expansion, kernel, stride, base, count) in enumerate(_STAGES, start=1):
            blocks = []
            for index in range(math.ceil(count * depth)):
                steps = {"expansion": expansion, "kernel": kernel, "stride": stride if index == 0 else 1}
                blocks.append(MBConv(made, _round(base * width), **steps))
                made = _round(base * width)
            stages.append(nn.Sequential(*blocks))
            if number in _SKIPS:
                self.channels.append(made)
        self.features = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> features, fine to coarse."""
        features = []
        for index, stage in enumerate(self.features):
            x = stage(x)
            if index in _SKIPS:
                features.append(x)
        return features


def unet_efficientnet_b4(
    in_channels: int = 3,
    out_channels: int = 3,
    width: float = 1.4,
    depth: float = 1.8,
    head_width: int = 32,
    form: Form = "image",
) -> EncoderUNet:
    """Build the network with random weights."""
    encoder = EfficientNetEncoder(width=width, depth=depth)
    return EncoderUNet(
        encoder,
        encoder.channels,
        finest=2,
        in_channels=in_channels,
        out_channels=out_channels,
        width=head_width,
        form=form,
    )
