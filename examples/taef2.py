"""TAEF2, the tiny autoencoder of FLUX.2's latents (github.com/madebyollin/taesd, MIT): photo -> 1/8 size -> photo.

Checkpoint: the folder with taef2_encoder.pth and taef2_decoder.pth.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Block(nn.Module):
    """Three convolutions with a skip; with ``norm``, a normalized 1x1 bottleneck before them."""

    def __init__(self, width: int, norm: bool = False) -> None:
        super().__init__()
        three = [part for _ in range(3) for part in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*three[:-1])
        wide = nn.Conv2d(width, 4 * width, 1, bias=False)
        narrow = nn.Conv2d(4 * width, width, 1, bias=False)
        self.pool = nn.Sequential(wide, nn.GroupNorm(4, 4 * width), nn.ReLU(), narrow) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        x = x if self.pool is None else x + self.pool(x)
        return (self.conv(x) + x).relu()


class Squash(nn.Module):
    """Keep latents within [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        """3 tanh(x / 3)."""
        return (x / 3).tanh() * 3


class TAEF2(nn.Module):
    """RGB (N, 3, H, W) in [0, 1] -> the same photo through 32 latent channels; H and W multiples of 8."""

    def __init__(self, width: int = 64, latents: int = 32) -> None:
        super().__init__()
        down = [nn.Conv2d(3, width, 3, padding=1), Block(width)]
        up: list[nn.Module] = [Squash(), nn.Conv2d(latents, width, 3, padding=1), nn.ReLU()]
        for level in range(3):
            down += [nn.Conv2d(width, width, 3, 2, 1, bias=False), *[Block(width, level == 2) for _ in range(3)]]
            up += [*[Block(width, level == 0) for _ in range(3)], nn.Upsample(scale_factor=2)]
            up += [nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, latents, 3, padding=1))
        self.decoder = nn.Sequential(*up, Block(width), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, input: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decoder(self.encoder(input)).clamp(0, 1)

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``taef2_encoder.0.weight`` (file, then name) -> ``encoder.0.weight``."""
        return {name.removeprefix("taef2_"): tensor for name, tensor in state.items()}
