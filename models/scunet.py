"""SCUNet: a U-Net whose blocks send half of the channels through convolutions and half through window attention.

Names and shapes of the state_dict are those of cszn/SCUNet (``models/network_scunet.py``), so its checkpoints load:
``m_head.0``, ``m_down1.0.trans_block.msa.embedding_layer``, ``m_down1.0.conv_block.0``, ``m_up3.0``, ``m_tail.0``. The
network gives the picture itself (no skip from the input). Height and width: multiples of 64 with windows of 8 (the
published code pads; three halvings and windows of 8 at the bottom).

Masked pairs get -100 where the published code gives minus infinity: behind the softmax less than 1e-40 either way, and
FP16 and INT8 engines take it.

Source: Zhang et al. 2023, "Practical Blind Image Denoising via Swin-Conv-UNet and Data Synthesis".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import sizes
from models.outputs import Form, bounded_map, check_form, neutral
from models.windows import ROLL, attend, merge, partition, relative_places, roll, shift_masks, split_heads


class WindowAttention(nn.Module):
    """Attention in windows, shifted by half a window or not: (N, H, W, C) -> (N, H, W, C)."""

    places: Tensor

    def __init__(self, channels: int, head_channels: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.rewrites = ROLL if shifted else {}
        self.heads, self.scale = channels // head_channels, head_channels**-0.5
        self.embedding_layer = nn.Linear(channels, 3 * channels)
        table = torch.empty(self.heads, 2 * window - 1, 2 * window - 1)
        self.relative_position_params = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.linear = nn.Linear(channels, channels)
        self.register_buffer("places", relative_places(window).reshape(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        _, height, width, _ = sizes(x)
        if self.shift:
            x = roll(x, -self.shift)
        q, k, v = (
            split_heads(part, self.heads) for part in self.embedding_layer(partition(x, self.window)).chunk(3, -1)
        )
        pixels = self.window * self.window
        bias = self.relative_position_params.flatten(1)[:, self.places].reshape(-1, pixels, pixels)
        masks = shift_masks(height, width, self.window, self.shift, x) if self.shift else None
        mixed = self.linear(attend(q, k, v, bias, masks, scale=self.scale))
        x = merge(mixed, self.window, height, width)
        return roll(x, self.shift) if self.shift else x


class TransformerBlock(nn.Module):
    """Window attention, then two linear layers, each behind a LayerNorm and beside a skip: (N, H, W, C)."""

    def __init__(self, channels: int, head_channels: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, head_channels, window, shifted=shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = x + self.msa(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ConvTransBlock(nn.Module):
    """Half of the channels through convolutions, half through a transformer block: (N, 2C, H, W) -> (N, 2C, H, W)."""

    def __init__(self, channels: int, head_channels: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.trans_block = TransformerBlock(channels, head_channels, window, shifted=shifted)
        self.conv1_1 = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.conv1_2 = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.conv_block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2C, H, W) -> (N, 2C, H, W)."""
        local, far = self.conv1_1(x).chunk(2, dim=1)
        local = self.conv_block(local) + local
        far = self.trans_block(far.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.conv1_2(torch.cat([local, far], dim=1))


class SCUNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first level; each level doubles them.
        blocks: Blocks of the seven stages: three down, the bottom, three up.
        head_channels: Channels of an attention head.
        window: Side of an attention window, pixels.
        form: ``image``: the picture, as published; ``map``: see ``models.outputs``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (4, 4, 4, 4, 4, 4, 4),
        head_channels: int = 32,
        window: int = 8,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form)
        self.form = form

        def stage(half: int, count: int) -> list[nn.Module]:
            return [ConvTransBlock(half, head_channels, window, shifted=i % 2 == 1) for i in range(count)]

        def down(channels: int) -> nn.Module:
            return nn.Conv2d(channels, 2 * channels, 2, 2, bias=False)

        def up(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(2 * channels, channels, 2, 2, bias=False)

        w = width
        self.m_head = nn.Sequential(nn.Conv2d(in_channels, w, 3, 1, 1, bias=False))
        self.m_down1 = nn.Sequential(*stage(w // 2, blocks[0]), down(w))
        self.m_down2 = nn.Sequential(*stage(w, blocks[1]), down(2 * w))
        self.m_down3 = nn.Sequential(*stage(2 * w, blocks[2]), down(4 * w))
        self.m_body = nn.Sequential(*stage(4 * w, blocks[3]))
        self.m_up3 = nn.Sequential(up(4 * w), *stage(2 * w, blocks[4]))
        self.m_up2 = nn.Sequential(up(2 * w), *stage(w, blocks[5]))
        self.m_up1 = nn.Sequential(up(w), *stage(w // 2, blocks[6]))
        head = nn.Conv2d(w, out_channels, 3, 1, 1, bias=False)
        neutral(form, head)
        self.m_tail = nn.Sequential(head)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x1 = self.m_head(input)
        x2 = self.m_down1(x1)
        x3 = self.m_down2(x2)
        x4 = self.m_down3(x3)
        x = self.m_up3(self.m_body(x4) + x4)
        x = self.m_up1(self.m_up2(x + x3) + x2)
        x = self.m_tail(x + x1)
        return bounded_map(x) if self.form == "map" else x


def scunet(
    in_channels: int = 3,
    out_channels: int = 3,
    width: int = 64,
    blocks: Sequence[int] = (4, 4, 4, 4, 4, 4, 4),
    head_channels: int = 32,
    window: int = 8,
    form: Form = "image",
) -> SCUNet:
    """Build SCUNet as published (four blocks a stage) with random weights."""
    return SCUNet(
        in_channels,
        out_channels,
        width=width,
        blocks=blocks,
        head_channels=head_channels,
        window=window,
        form=form,
    )
