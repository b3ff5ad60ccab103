"""AdaFM: a denoiser whose features are modified channel by channel, in proportion to the level.

After each convolution of the residual network, ``x + level * g(x)`` with a depthwise convolution g. With the
published kernel size of 1 that is ``x * (1 + level * weight) + level * bias``, which is how it is computed: a gain and
an offset a channel that engines fuse, in place of a convolution.

Training in two steps: the network at the start level, then g alone at the end level.

Source: He et al. 2019, "Modulating Image Restoration with Continual Levels via Adaptive Feature Modification Layers";
hejingwenhejingwen/AdaFM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.controls import spread, unpack
from models.dni import plain_of
from models.errors import UnsupportedError, explain
from models.fixed_level import Fixed
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

    @torch.no_grad()
    def at_level(self, level: float) -> Fixed:
        """Return the plain network of one level: gain and offset of a channel go into the convolution before them.

        Raises:
            UnsupportedError: The modification reaches over neighbours.
        """
        state: dict[str, Tensor] = {}
        before = ""
        for name, layer in self.named_modules():
            if isinstance(layer, AdaptiveFM):
                if layer.kernel_size > 1:
                    got, fix = f"kernels of {layer.kernel_size}", "export it with the level as an input"
                    raise UnsupportedError(explain("fixed level", expected="AdaFM of kernel size 1", got=got, fix=fix))
                gain, shift = 1 + level * layer.transformer.weight.flatten(), layer.transformer.bias
                assert shift is not None
                state[f"{before}.weight"] = state[f"{before}.weight"] * gain[:, None, None, None]
                state[f"{before}.bias"] = state[f"{before}.bias"] * gain + level * shift
            elif isinstance(layer, nn.Conv2d) and not name.endswith(".transformer"):
                assert layer.bias is not None
                state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight.clone(), layer.bias.clone()
                before = name
        return plain_of(self, state, level)

    def forward(self, input: Tensor, level: Tensor | None = None) -> Tensor:
        """Image (N, 3, H, W) and level (N,) or (1,), or both packed (N, 4, H, W) -> (N, 3, H, W); H and W even."""
        if level is None:
            input, level = unpack(input, 1)
        return self.run(input, level)


def adafm(width: int = 64, depth: int = 16, kernel_size: int = 1) -> AdaFM:
    """Build the network with random weights, its modification nothing."""
    return AdaFM(width, depth, kernel_size=kernel_size)
