"""The residual network that the tunable denoisers modify.

A strided convolution, residual blocks with one shortcut around them all, pixel shuffle, two convolutions: the network
works at half of the resolution. Every 3x3 convolution between is followed by a layer that a family puts there
(``modifier``): nothing, an adaptive feature modification, or a change of its kernel.

Source: He et al. 2019; names and shapes of hejingwenhejingwen/AdaFM (``AdaResNet`` with pixel shuffle), recorded in
tests/models/state_dicts/{adafm,dni}.json.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

#: (layer that a convolution is followed by, or None) of a number of channels.
Modifier = Callable[[int], nn.Module]


class ResidualBlock(nn.Module):
    """Two convolutions, each modified, and a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, width: int, convolution: Modifier, modifier: Modifier) -> None:
        super().__init__()
        self.res = nn.Sequential(convolution(width), modifier(width), nn.ReLU(), convolution(width), modifier(width))

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        """(N, C, H, W) and level (N,), (1,) or None -> (N, C, H, W)."""
        return x + tuned(self.res, x, level)


class Shortcut(nn.Module):
    """Residual blocks, one more modified convolution, and the shortcut around them."""

    def __init__(self, width: int, depth: int, convolution: Modifier, modifier: Modifier) -> None:
        super().__init__()
        blocks = [ResidualBlock(width, convolution, modifier) for _ in range(depth)]
        self.sub = nn.Sequential(*blocks, convolution(width), modifier(width))

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        """(N, C, H, W) and level -> (N, C, H, W)."""
        return x + tuned(self.sub, x, level)


class Tunable(nn.Module):
    """A layer that takes the level: ``forward(x, level)``."""


class Unmodified(Tunable):
    """No modification."""

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        """Return ``x``."""
        return x


def tuned(layers: nn.Sequential, x: Tensor, level: Tensor | None) -> Tensor:
    """Run layers in turn; those that take the level get it."""
    for layer in layers:
        takes = isinstance(layer, (Tunable, ResidualBlock, Shortcut))
        x = layer(x, level) if takes else layer(x)
    return x


class ResidualDenoiser(nn.Module):
    """The network; see the module's docstring.

    Args:
        width: Channels.
        depth: Residual blocks.
        convolution: Makes the 3x3 convolutions of the blocks; None: plain ones.
        modifier: Makes what follows each of them; None: nothing.
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 16,
        *,
        convolution: Modifier | None = None,
        modifier: Modifier | None = None,
    ) -> None:
        super().__init__()
        plain = convolution or (lambda channels: nn.Conv2d(channels, channels, 3, padding=1))
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            Shortcut(width, depth, plain, modifier or (lambda _: Unmodified())),
            nn.Conv2d(width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:  # the blocks start small, as the authors' do
                nn.init.kaiming_normal_(layer.weight)
                layer.weight.data *= 0.1 if ".sub." in name else 1.0
                nn.init.zeros_(layer.bias)

    def run(self, image: Tensor, level: Tensor | None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] and level -> (N, 3, H, W); H and W even."""
        return tuned(self.model, image, level)
