"""The KL autoencoder of latent diffusion with the state_dict names of diffusers' ``AutoencoderKL``.

Encoder: 3x3 convolution, down blocks (residual blocks, then a strided convolution padded on the right and below), a
middle block with self-attention, GroupNorm, SiLU, 3x3 convolution to twice the latent channels, ``quant_conv``.
Decoder: ``post_quant_conv`` and the mirror image with nearest upsampling. Each level but the last halves the size: the
default configuration turns 224x224 photos into 28x28x8 moments (4 means, 4 log-variances).

Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models"; names and shapes as in
huggingface/diffusers ``models/autoencoders/{autoencoder_kl,vae}.py``. Its older checkpoints, the published
``sd-vae-ft-mse`` among them, call the attention's layers ``query key value proj_attn``: ``convert_state`` maps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ConfigError, explain

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class ResnetBlock2D(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, and a skip: (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """One-head self-attention over positions with a skip: (N, C, H, W) -> (N, C, H, W).

    Written as two matrix products and a softmax, which every target takes.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        scores = torch.matmul(self.to_q(tokens) * self.scale, self.to_k(tokens).transpose(1, 2))
        mixed = self.to_out[0](torch.matmul(scores.softmax(dim=-1), self.to_v(tokens)))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention, residual block: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)])
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded by one on the right and below: (N, C, H, W) -> (N, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2)."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest upsampling by 2, then a 3x3 convolution: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one size, then a change of size in all levels but the last."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, groups: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        ins = [in_channels] + [out_channels] * (depth - 1)
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, out_channels, groups) for channels in ins])
        self.downsamplers = nn.ModuleList([Downsample(out_channels)]) if down else None
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H or H / 2 or 2H, likewise)."""
        for block in self.resnets:
            x = block(x)
        for resize in (self.downsamplers, self.upsamplers):
            if resize is not None:
                x = resize[0](x)
        return x


class Encoder(nn.Module):
    """Photo (N, 3, H, W) in [-1, 1] -> moments (N, 2 * latent, H / f, W / f), before ``quant_conv``."""

    def __init__(self, latent_channels: int, widths: Sequence[int], depth: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            [Level(widths[max(i - 1, 0)], width, depth, groups, down=i < last) for i, width in enumerate(widths)]
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2 * latent, H / f, W / f)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latent (N, latent, h, w), after ``post_quant_conv`` -> photo (N, 3, f * h, f * w), about [-1, 1]."""

    def __init__(self, latent_channels: int, widths: Sequence[int], depth: int, groups: int) -> None:
        super().__init__()
        turned = list(reversed(widths))
        last = len(turned) - 1
        self.conv_in = nn.Conv2d(latent_channels, turned[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            [Level(turned[max(i - 1, 0)], width, depth + 1, groups, up=i < last) for i, width in enumerate(turned)]
        )
        self.mid_block = MidBlock(turned[0], groups)
        self.conv_norm_out = nn.GroupNorm(groups, turned[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(turned[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent, h, w) -> (N, 3, f * h, f * w)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """The autoencoder; see the module's docstring.

    Args:
        latent_channels: Channels of a latent.
        block_out_channels: Channels of each level, fine to coarse.
        layers_per_block: Residual blocks a level of the encoder; the decoder has one more.
        norm_num_groups: Groups of each GroupNorm; divides every number of channels.

    Raises:
        ConfigError: The groups do not divide the channels.
    """

    def __init__(
        self,
        latent_channels: int = 4,
        *,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        if not block_out_channels or any(width % norm_num_groups for width in block_out_channels):
            got = f"{tuple(block_out_channels)} channels and {norm_num_groups} groups"
            fix = "change norm_num_groups"
            raise ConfigError(explain("autoencoder", expected="channels in multiples of groups", got=got, fix=fix))
        shape = (latent_channels, block_out_channels, layers_per_block, norm_num_groups)
        self.encoder = Encoder(*shape)
        self.decoder = Decoder(*shape)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.kl_weight = 1e-3

    @staticmethod
    def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` with the attention names of older diffusers checkpoints brought up to date."""
        renamed = {}
        for key, value in state.items():
            parts = key.split(".")
            if "attentions" in parts and parts[-2] in _OLD_NAMES:
                parts[-2] = _OLD_NAMES[parts[-2]]
                key, value = ".".join(parts), value.flatten(1) if value.ndim == 4 else value
            renamed[key] = value
        return renamed

    def encode(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> mean and log-variance, each (N, latent, H / f, W / f)."""
        mean, log_variance = self.quant_conv(self.encoder(rgb * 2 - 1)).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (N, latent, h, w) -> RGB (N, 3, f * h, f * w), about [0, 1], not clipped."""
        return self.decoder(self.post_quant_conv(z)) * 0.5 + 0.5

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> its reconstruction in [0, 1]; the training losses when ``target`` is given."""
        if target is not None:
            return self.training_losses(input, target)
        return self.decode(self.encode(input)[0]).clamp(0, 1)

    def training_losses(self, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` and its parts: L1 of pixels, of 4x4 means and of whole means, and KL to a unit Gaussian.

        Half of the batch reconstructs ``inputs``, half ``target``, both (N, 3, H, W) in [0, 1].
        """
        rgb = torch.cat([inputs[::2], target[1::2]])
        mean, log_variance = self.encode(rgb)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        difference = self.decode(z).float() - rgb
        pixel, colour = difference.abs().mean(), functional.avg_pool2d(difference, 4).abs().mean()
        cast = difference.mean(dim=(2, 3)).abs().mean()
        zero = torch.zeros_like(mean)
        divergence = gaussian_kl(mean, log_variance, zero, zero).mean()
        loss = pixel + 2 * colour + 4 * cast + self.kl_weight * divergence
        return {"loss": loss, "l1": pixel, "colour": colour, "cast": cast, "kl": divergence}


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(other_mean, e^other_log_variance)) of each element, in nats; any one shape."""
    ratio = (log_variance - other_log_variance).exp()
    gap = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (ratio + gap - 1 + other_log_variance - log_variance)


def autoencoder_kl(
    latent_channels: int = 4,
    block_out_channels: Sequence[int] = (128, 256, 512, 512),
    layers_per_block: int = 2,
    norm_num_groups: int = 32,
) -> AutoencoderKL:
    """Build an autoencoder with random weights; the defaults are those of the published Stable Diffusion one."""
    return AutoencoderKL(
        latent_channels,
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        norm_num_groups=norm_num_groups,
    )


def small_autoencoder() -> AutoencoderKL:
    """Build the small autoencoder that ships, with random weights."""
    return AutoencoderKL(4, block_out_channels=(16, 24, 32, 48), layers_per_block=1, norm_num_groups=8)
