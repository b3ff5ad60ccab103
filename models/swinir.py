"""SwinIR without upsampling (denoising and compression artefacts): residual groups of Swin transformer blocks.

Names and shapes of the state_dict are those of JingyunLiang/SwinIR (``models/network_swinir.py``, ``upsampler=""``), so
its checkpoints load: ``conv_first``, ``patch_embed.norm``, ``layers.0.residual_group.blocks.0.attn.qkv``,
``layers.0.conv``, ``conv_after_body``, ``conv_last``. What those store beside the weights (``attn_mask``,
``relative_position_index``) follows from the sizes and is computed; loading leaves it out. Everything runs at full
resolution: the slowest network of the list. Height and width: multiples of the window (8).

Source: Liang et al. 2021, "SwinIR: Image Restoration Using Swin Transformer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.layers import sizes
from models.outputs import Form, bounded_map, check_form, neutral
from models.windows import ROLL, attend, merge, partition, relative_places, roll, shift_masks, split_heads

_DERIVED = ("attn_mask", "relative_position_index")
_MEAN = (0.4488, 0.4371, 0.4040)


class WindowAttention(nn.Module):
    """Attention inside of windows: (windows, pixels, C) -> (windows, pixels, C)."""

    places: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("places", relative_places(window).reshape(-1), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, masks: tuple[Tensor, Tensor] | None) -> Tensor:
        """(windows, pixels, C) and ``models.windows.shift_masks`` -> (windows, pixels, C)."""
        pixels = sizes(x)[1]
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        bias = self.relative_position_bias_table[self.places].reshape(pixels, pixels, -1).permute(2, 0, 1)
        y: Tensor = self.proj(attend(q, k, v, bias, masks, scale=self.scale))
        return y


class Mlp(nn.Module):
    """Two linear layers with a GELU: (..., C) -> (..., C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm and beside a skip: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, window: int, *, shifted: bool, hidden: int) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.rewrites = ROLL if shifted else {}
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        _, height, width, _ = sizes(x)
        y = self.norm1(x)
        if self.shift:
            y = roll(y, -self.shift)
        masks = shift_masks(height, width, self.window, self.shift, x) if self.shift else None
        y = merge(self.attn(partition(y, self.window), masks), self.window, height, width)
        x = x + (roll(y, self.shift) if self.shift else y)
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    """Blocks under the published name ``blocks``."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        for block in self.blocks:
            x = block(x)
        return x


class SwinLayer(nn.Module):
    """A group of blocks and a 3x3 convolution beside a skip: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(blocks)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        y = self.conv(self.residual_group(x).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1) + x


class PatchEmbed(nn.Module):
    """The LayerNorm behind the first convolution, under the published name ``norm``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        y: Tensor = self.norm(x)
        return y


class SwinIR(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of all levels.
        depths: Blocks of each residual group.
        heads: Attention heads of each group.
        window: Side of an attention window, pixels.
        mlp_ratio: Channels of the MLP over ``width``.
        form: ``image``: the input is added to the output, as published; ``map``: see ``models.outputs``.
    """

    mean: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window: int = 8,
        mlp_ratio: float = 2.0,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form, skip=(in_channels, out_channels))
        self.form = form
        mean = torch.tensor(_MEAN) if in_channels == 3 else torch.zeros(1)
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(in_channels, width, 3, 1, 1)
        self.patch_embed = PatchEmbed(width)
        self.layers = nn.ModuleList()
        for depth, count in zip(depths, heads, strict=True):
            blocks = [
                SwinBlock(width, count, window, shifted=i % 2 == 1, hidden=int(width * mlp_ratio)) for i in range(depth)
            ]
            self.layers.append(SwinLayer(width, blocks))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, out_channels, 3, 1, 1)
        neutral(form, self.conv_last)

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out of published weights what follows from the sizes; ``models.artifact.load_weights`` calls it."""
        return {name: value for name, value in state.items() if not name.endswith(_DERIVED)}

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        first = self.conv_first(input - self.mean)
        x = self.patch_embed(first.permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        x = self.conv_after_body(self.norm(x).permute(0, 3, 1, 2)) + first
        x = self.conv_last(x)
        return bounded_map(x) if self.form == "map" else x + input


def swinir(
    in_channels: int = 3,
    out_channels: int = 3,
    width: int = 180,
    depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
    heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
    window: int = 8,
    mlp_ratio: float = 2.0,
    form: Form = "image",
) -> SwinIR:
    """Build SwinIR as published for denoising (``SwinIR-M``) with random weights."""
    return SwinIR(
        in_channels,
        out_channels,
        width=width,
        depths=depths,
        heads=heads,
        window=window,
        mlp_ratio=mlp_ratio,
        form=form,
    )
