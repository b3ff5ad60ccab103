"""The U-Net of "Learning to See in the Dark": packed Bayer raw in, sRGB of twice its height and width out.

Four levels of max pooling, leaky ReLU of slope 0.2, transposed convolutions of kernel and stride 2, skips by
concatenation, twelve channels at the end that depth-to-space turns into RGB. The amplification is an input of the
graph: the app knows the exposure that it wants, the network sees raw values times this ratio, at most 1.

Channels 32-512 are the original's; 8-256 (``width=8``, ``deepest=256``) is the small variant.

Source: Chen et al. 2018; names and shapes of the published PyTorch port lavi135246/pytorch-Learning-to-See-in-the-Dark
(``conv1_1`` ... ``conv10_1``, ``upv6`` ... ``upv9``; recorded in tests/models/state_dicts/sid_unet.json).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.controls import spread, unpack

_SLOPE = 0.2
_LEVELS = 5


class SidUNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        width: Channels of the finest level; each level has twice those of the one above.
        deepest: Channels of the coarsest level; None: sixteen times ``width``.
    """

    def __init__(self, width: int = 32, deepest: int | None = None) -> None:
        super().__init__()
        widths = [width << level for level in range(_LEVELS)]
        widths[-1] = deepest or widths[-1]
        before = 4
        for level, channels in enumerate(widths, start=1):
            self.add_module(f"conv{level}_1", nn.Conv2d(before, channels, 3, padding=1))
            self.add_module(f"conv{level}_2", nn.Conv2d(channels, channels, 3, padding=1))
            before = channels
        for stage, channels in enumerate(reversed(widths[:-1]), start=_LEVELS + 1):
            self.add_module(f"upv{stage}", nn.ConvTranspose2d(before, channels, 2, stride=2))
            self.add_module(f"conv{stage}_1", nn.Conv2d(2 * channels, channels, 3, padding=1))
            self.add_module(f"conv{stage}_2", nn.Conv2d(channels, channels, 3, padding=1))
            before = channels
        self.conv10_1 = nn.Conv2d(before, 12, 1)
        self.bottleneck = nn.Identity()
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor, ratio: Tensor | None = None) -> Tensor:
        """Packed raw (N, 4, H, W) and ratio (N,) or (1,), or both packed (N, 5, H, W) -> sRGB (N, 3, 2H, 2W).

        Raw is black level 0, white level 1, channels R G B G; H and W multiples of 16. The output is about [0, 1].
        """
        if ratio is None:
            input, ratio = unpack(input, 1)
        x = amplify(input, ratio)
        skips: list[Tensor] = []
        for level in range(1, _LEVELS + 1):
            x = self._pair(x, level)
            if level < _LEVELS:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for stage in range(_LEVELS + 1, 2 * _LEVELS):
            x = torch.cat([self.get_submodule(f"upv{stage}")(x), skips.pop()], dim=1)
            x = self._pair(x, stage)
        return functional.pixel_shuffle(self.conv10_1(x), 2)

    def _pair(self, x: Tensor, stage: int) -> Tensor:
        for part in (1, 2):
            x = functional.leaky_relu(self.get_submodule(f"conv{stage}_{part}")(x), _SLOPE)
        return x


def amplify(raw: Tensor, ratio: Tensor) -> Tensor:
    """Multiply raw values (N, 4, H, W) by ratios (N,) or (1,), at most 1.

    A minimum, and not a clamp: a clamp would be quantized, and dark values lost before they are amplified.
    """
    return torch.minimum(raw * spread(ratio), spread(torch.ones_like(ratio)))


def sid_unet(width: int = 32, deepest: int | None = None) -> SidUNet:
    """Build the network with random weights."""
    return SidUNet(width, deepest)
