"""The student family of overlays, and a network that knows two ways to retouch.

``overlay_unet`` is the student family of ``models.chroma_unet`` with a bounded map at its end: predicted at a part of
the resolution, because an overlay is smooth, resized inside of the graph, and exactly neutral before training.

``film_unet`` has a run-time control, ``variant`` (0: dodge and burn, 1: volume): each level of the U-Net is scaled and
shifted by channel according to it (feature-wise linear modulation). For two variants the small network that usually
computes scale and shift has one binary input, so it is the same as two vectors, and a value in between blends them.

Source: own design; Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.chroma_unet import ChromaUNet
from models.controls import spread, unpack
from models.layers import upsample_bilinear
from models.outputs import bounded_map, neutral

_WIDTHS, _DEPTHS = (16, 32, 64, 128), (1, 1, 1, 2)


class OverlayUNet(ChromaUNet):
    """``ChromaUNet`` -> ``0.5 + tanh(x) / 2``; its last layer starts at zero, so the first overlay is 0.5."""

    def __init__(
        self, in_channels: int, out_channels: int, *, reduction: int, widths: Sequence[int], depths: Sequence[int]
    ) -> None:
        super().__init__(in_channels, out_channels, reduction=reduction, widths=widths, depths=depths)
        neutral("map", self.head)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W) in (0, 1); H and W multiples of reduction * 2^(levels - 1)."""
        return bounded_map(super().forward(input))


class Film(nn.Module):
    """Scale and shift each channel by a control: ``x (1 + v scale) + v shift``; the identity at v = 0 and at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, value: Tensor) -> Tensor:
        """(N, C, H, W) and control values (N,) or (1,) -> (N, C, H, W)."""
        v = spread(value)
        return x * (1 + v * self.scale.reshape(1, -1, 1, 1)) + v * self.shift.reshape(1, -1, 1, 1)


class FilmUNet(OverlayUNet):
    """``OverlayUNet`` with ``Film`` behind each level of encoder and decoder."""

    def __init__(
        self, in_channels: int, out_channels: int, *, reduction: int, widths: Sequence[int], depths: Sequence[int]
    ) -> None:
        super().__init__(in_channels, out_channels, reduction=reduction, widths=widths, depths=depths)
        self.encoder_film = nn.ModuleList(Film(width) for width in widths)
        self.decoder_film = nn.ModuleList(Film(width) for width in reversed(widths[:-1]))

    def forward(self, input: Tensor, variant: Tensor | None = None) -> Tensor:
        """Photo (N, in, H, W) and variant (N,) or (1,), or both packed (N, in + 1, H, W) -> (N, out, H, W)."""
        if variant is None:
            input, variant = unpack(input, 1)
        x = self.stem(input)
        skips: list[Tensor] = []
        for level, (blocks, film) in enumerate(zip(self.encoder, self.encoder_film, strict=True)):
            if level:
                skips.append(x)
                x = self.down[level - 1](x)
            x = film(blocks(x), variant)
        x = self.bottleneck(x)
        for lateral, decoder, film in zip(self.lateral, self.decoder, self.decoder_film, strict=True):
            up = functional.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = film(decoder(functional.relu(up + skips.pop())), variant)
        return bounded_map(upsample_bilinear(self.head(x), self.reduction))


def overlay_unet(
    in_channels: int = 3,
    out_channels: int = 1,
    reduction: int = 2,
    widths: Sequence[int] = _WIDTHS,
    depths: Sequence[int] = _DEPTHS,
) -> OverlayUNet:
    """Build the student of overlays with random weights."""
    return OverlayUNet(in_channels, out_channels, reduction=reduction, widths=widths, depths=depths)


def film_unet(
    in_channels: int = 3,
    out_channels: int = 1,
    reduction: int = 2,
    widths: Sequence[int] = _WIDTHS,
    depths: Sequence[int] = _DEPTHS,
) -> FilmUNet:
    """Build the network of two variants with random weights; ``in_channels`` are those of the photo."""
    return FilmUNet(in_channels, out_channels, reduction=reduction, widths=widths, depths=depths)
