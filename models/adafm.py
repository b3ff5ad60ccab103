"""AdaFM: a denoiser whose features are modified channel by channel, in proportion to the level.

After each convolution of the residual network, ``x + level * g(x)`` with a depthwise convolution g. With the
published kernel size of 1 that is ``x * (1 + level * weight) + level * bias``, which is how it is computed: a gain and
an offset a channel that engines fuse, in place of a convolution.

Training in two steps: the network at the start level, then g alone at the end level.

Source: He et al. 2019, "Modulating Image Restoration with Continual Levels via Adaptive Feature Modification Layers";
hejingwenhejingwen/AdaFM.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.controls import spread, unpack
from models.residual_denoiser import ResidualDenoiser, Tunable


class AdaptiveFM(Tunable):
    """Modify features in proportion to the level: (N, C, H, W) -> (N, C, H, W); starts as nothing.

    Args:
        channels: C.
        kernel_size: Of the depthwise convolution; 1 costs least, larger ones reach further from the start level.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.transformer = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.kernel_size = kernel_size

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        """(N, C, H, W) and level (N,) or (1,) -> (N, C, H, W)."""
        if level is None:
            return x
        if self.kernel_size > 1:
            return x + spread(level) * self.transformer(x)
        gain, offset = self.transformer.weight.reshape(1, -1, 1, 1), self.transformer.bias
        assert offset is not None
        return x * (1 + spread(level) * gain) + spread(level) * offset.reshape(1, -1, 1, 1)


class AdaFM(ResidualDenoiser):
    """The network; see the module's docstring."""

    def __init__(self, width: int = 64, depth: int = 16, *, kernel_size: int = 1) -> None:
        super().__init__(width, depth, modifier=lambda channels: AdaptiveFM(channels, kernel_size))
        for layer in self.modules():
            if isinstance(layer, AdaptiveFM):
                nn.init.zeros_(layer.transformer.weight)

    def tuning_parameters(self) -> list[nn.Parameter]:
        """Return what the second step of the training changes."""
        return [p for layer in self.modules() if isinstance(layer, AdaptiveFM) for p in layer.parameters()]

    def forward(self, input: Tensor, level: Tensor | None = None) -> Tensor:
        """Image (N, 3, H, W) and level (N,) or (1,), or both packed (N, 4, H, W) -> (N, 3, H, W); H and W even."""
        if level is None:
            input, level = unpack(input, 1)
        return self.run(input, level)


def adafm(width: int = 64, depth: int = 16, kernel_size: int = 1) -> AdaFM:
    """Build the network with random weights, its modification nothing."""
    return AdaFM(width, depth, kernel_size=kernel_size)
