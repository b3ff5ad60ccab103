"""Restormer: a U-Net of transformers whose attention runs over channels, so that its cost grows with the pixels.

Names and shapes of the state_dict are those of swz30/Restormer (``basicsr/models/archs/restormer_arch.py``), so its
checkpoints load: ``patch_embed.proj``, ``encoder_level1.0.attn.qkv``, ``down1_2.body.0``, ``latent.0``,
``reduce_chan_level3``, ``refinement.0``, ``output``. Height and width: multiples of 8.

The published norm flattens the pixels and moves the channels last; here it runs over dimension 1 (the same numbers).

Source: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import sizes
from models.norms import BiasFreeNorm2d, LayerNorm2d
from models.outputs import Form, bounded_map, check_form, neutral

Norm = Literal["BiasFree", "WithBias"]


class LayerNorm(nn.Module):
    """The norm under the published name ``body``: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, kind: Norm) -> None:
        super().__init__()
        self.body = BiasFreeNorm2d(channels) if kind == "BiasFree" else LayerNorm2d(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = self.body(x)
        return y


class FeedForward(nn.Module):
    """Gated depthwise convolution: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, 1, 1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(functional.gelu(gate) * value)


class Attention(nn.Module):
    """Attention between channels: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, 1, 1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        n, _, h, w = sizes(x)
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(n, self.heads, sizes(part)[1] // self.heads, h * w) for part in parts)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * self.temperature, dim=-1)
        mixed = torch.matmul(weights, v)
        return self.project_out(mixed.reshape(n, sizes(mixed)[1] * sizes(mixed)[2], h, w))


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward part, each behind a norm and beside a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm: Norm) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, norm)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = LayerNorm(channels, norm)
        self.ffn = FeedForward(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    """The first convolution, under the published name ``proj``."""

    def __init__(self, in_channels: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        y: Tensor = self.proj(x)
        return y


class Resample(nn.Module):
    """A 3x3 convolution, then pixel shuffle (``up``) or unshuffle by 2, under the published name ``body``."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        made = 2 * channels if up else channels // 2
        self.body = nn.Sequential(
            nn.Conv2d(channels, made, 3, 1, 1, bias=False), nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C / 2, 2H, 2W), or (N, 2C, H / 2, W / 2)."""
        y: Tensor = self.body(x)
        return y


class Restormer(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first level; each level doubles them.
        blocks: Transformer blocks of the four levels.
        refinement: Blocks behind the decoder.
        heads: Attention heads of the four levels.
        expansion: Channels of the feed-forward part over those of its level.
        bias: Biases of the convolutions.
        norm: ``BiasFree`` (denoising checkpoints) or ``WithBias`` (the others).
        form: ``image``: the input is added to the output, as published; ``map``: see ``models.outputs``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        bias: bool = False,
        norm: Norm = "WithBias",
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form, skip=(in_channels, out_channels))
        self.form = form

        def stage(level: int, count: int, at: int) -> nn.Sequential:
            channels = width * 2**level
            return nn.Sequential(*[TransformerBlock(channels, heads[at], expansion, bias, norm) for _ in range(count)])

        self.patch_embed = PatchEmbed(in_channels, width, bias)
        self.encoder_level1 = stage(0, blocks[0], 0)
        self.down1_2 = Resample(width, up=False)
        self.encoder_level2 = stage(1, blocks[1], 1)
        self.down2_3 = Resample(2 * width, up=False)
        self.encoder_level3 = stage(2, blocks[2], 2)
        self.down3_4 = Resample(4 * width, up=False)
        self.latent = stage(3, blocks[3], 3)
        self.up4_3 = Resample(8 * width, up=True)
        self.reduce_chan_level3 = nn.Conv2d(8 * width, 4 * width, 1, bias=bias)
        self.decoder_level3 = stage(2, blocks[2], 2)
        self.up3_2 = Resample(4 * width, up=True)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1, bias=bias)
        self.decoder_level2 = stage(1, blocks[1], 1)
        self.up2_1 = Resample(2 * width, up=True)
        self.decoder_level1 = stage(1, blocks[0], 0)
        self.refinement = stage(1, refinement, 0)
        self.output = nn.Conv2d(2 * width, out_channels, 3, 1, 1, bias=bias)
        neutral(form, self.output)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x1 = self.encoder_level1(self.patch_embed(input))
        x2 = self.encoder_level2(self.down1_2(x1))
        x3 = self.encoder_level3(self.down2_3(x2))
        x = self.latent(self.down3_4(x3))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), x3], dim=1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), x2], dim=1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), x1], dim=1))
        x = self.output(self.refinement(x))
        return bounded_map(x) if self.form == "map" else x + input


def restormer_lite(
    in_channels: int = 3,
    out_channels: int = 3,
    width: int = 24,
    blocks: Sequence[int] = (2, 2, 4, 8),
    refinement: int = 4,
    heads: Sequence[int] = (1, 2, 4, 8),
    expansion: float = 2.66,
    norm: Norm = "BiasFree",
    form: Form = "image",
) -> Restormer:
    """Build the narrow, shallow variant with random weights."""
    return Restormer(
        in_channels,
        out_channels,
        width=width,
        blocks=blocks,
        refinement=refinement,
        heads=heads,
        expansion=expansion,
        norm=norm,
        form=form,
    )
