"""Colour balance in the latent space of a KL autoencoder.

The photo is encoded to a Gaussian (mean and log-variance of each latent element), a small transformer without
positions moves it to the Gaussian of the balanced photo, both latents are decoded, and a colour mapper, ridge
regression on ten quadratic terms of (r, g, b), is fitted from the decoded bad colours to the decoded balanced ones and
applied to the pixels of the input. So the output has the detail of the input: the decoder's blur only costs colour
statistics. The fit is in closed form and inside of the graph (ten steps of Gauss-Jordan elimination), hence repeatable
and exportable; ``models.balance_chain`` has the whole chain for photos of any size.

Trained by the divergence KL(predicted Gaussian || target's Gaussian), which weighs an error of the mean by the target's
precision; the other direction lets the predicted variance grow until errors of the mean hardly count, and was measured
to stay near the identity. The autoencoder is not trained on.

Source: own design after Rombach et al. 2022 (latent space); Vaswani et al. 2017 (attention); Hong et al. 2001
(polynomial colour regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.autoencoder_kl import AutoencoderKL, gaussian_kl

AUTOENCODER = Path(__file__).parent / "weights" / "autoencoder_kl_small.safetensors"
TERMS = 10
_RIDGE = 1e-2


class BalancerBlock(nn.Module):
    """Self-attention over positions, then two layers at each position, both with a skip: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1 = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C)."""
        tokens = self.norm1(x)
        q, k, v = (self._split(layer(tokens)) for layer in (self.to_q, self.to_k, self.to_v))
        scores = torch.matmul(q * self.scale, k.transpose(2, 3))
        mixed = torch.matmul(scores.softmax(dim=-1), v).transpose(1, 2).flatten(2)
        x = x + self.to_out(mixed)
        return x + self.narrow(functional.silu(self.widen(self.norm2(x))))


class Balancer(nn.Module):
    """Moments of a bad photo -> moments of the balanced one, both (N, 2 * latent, h, w); starts as the identity."""

    def __init__(self, channels: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList([BalancerBlock(width, heads) for _ in range(depth)])
        self.conv_out = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, moments: Tensor) -> Tensor:
        """(N, 2 * latent, h, w) -> (N, 2 * latent, h, w)."""
        x = self.conv_in(moments)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return moments + self.conv_out(tokens.transpose(1, 2).reshape(x.shape))


class ColourMapper(nn.Module):
    """The quadratic colour map: fitted from pairs of colours, applied to any photo. No weights.

    Args:
        ridge: Weight of the penalty that draws the map to the identity, relative to a mean square of 1.
    """

    def __init__(self, ridge: float = _RIDGE) -> None:
        super().__init__()
        self.ridge = ridge

    @staticmethod
    def terms(rgb: Tensor) -> Tensor:
        """Colours (N, 3, H, W) in [0, 1] -> 1, r, g, b and their products, moved to [-1, 1]: (N, 10, H, W)."""
        x = rgb * 2 - 1
        r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
        products = torch.cat([x, x * x, r * g, g * b, b * r], dim=1)
        return functional.pad(products, (0, 0, 0, 0, 1, 0), value=1.0)  # ones_like would be a picture of constants

    def fit(self, bad: Tensor, good: Tensor) -> Tensor:
        """Colours (N, 3, H, W) before and after -> coefficients (N, 3, 10) of the change.

        Rows are summed first, then their sums: one sum of 224 x 224 pixels in single precision is 1.6e-4 off.
        """
        terms, change = self.terms(bad).transpose(1, 2), (good - bad).transpose(1, 2)
        scale = float(terms.shape[3]) ** -0.5 if isinstance(terms.shape[3], int) else terms.shape[3] ** -0.5
        terms, change = terms * scale, change * scale
        gram = torch.matmul(terms, terms.transpose(2, 3)).mean(dim=1)
        gram = gram + self.ridge * torch.eye(TERMS, dtype=bad.dtype, device=bad.device)
        right = torch.matmul(terms, change.transpose(2, 3)).mean(dim=1)
        return solve_spd(gram, right).transpose(1, 2)

    def forward(self, coefficients: Tensor, rgb: Tensor) -> Tensor:
        """Coefficients (N, 3, 10) and a photo (N, 3, H, W) in [0, 1] -> mapped photo (N, 3, H, W) in [0, 1]."""
        change = torch.matmul(coefficients, self.terms(rgb).flatten(2))
        return (rgb + change.reshape(rgb.shape)).clamp(0, 1)


def solve_spd(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve matrix @ x = right by elimination and back substitution, written out, as no target has a solver.

    Only the rows that are left are kept: TensorRT builds that in 1 s, and whole matrices in each step in 70.

    Args:
        matrix: (N, K, K), symmetric positive definite, so that no row exchange is needed.
        right: (N, K, M).

    Returns:
        x, (N, K, M).
    """
    rows, tops = torch.cat([matrix, right], dim=2), []
    width = right.shape[2]
    for left in range(int(matrix.shape[1]) - 1, 0, -1):
        top, below = rows.split([1, left], dim=1)
        pivot, top = top.split([1, left + width], dim=2)
        column, below = below.split([1, left + width], dim=2)
        tops.append(top / pivot)
        rows = below - column * tops[-1]
    pivot, x = rows.split([1, width], dim=2)
    x = x / pivot
    for known, top in enumerate(reversed(tops), start=1):
        factors, value = top.split([known, width], dim=2)
        x = torch.cat([value - torch.matmul(factors, x), x], dim=1)
    return x


class LatentBalancer(nn.Module):
    """The network; see the module's docstring.

    Args:
        autoencoder: Encoder and decoder.
        width: Channels of the balancer.
        depth: Blocks of the balancer.
        heads: Attention heads; divides ``width``.
    """

    def __init__(self, autoencoder: AutoencoderKL, *, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        channels = autoencoder.quant_conv.out_channels
        self.balancer = Balancer(channels, width=width, depth=depth, heads=heads)
        self.mapper = ColourMapper()

    def latents(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> the means of the bad and the balanced latent, each (N, latent, h, w)."""
        mean, log_variance = self.autoencoder.encode(rgb)
        return mean, self.balancer(torch.cat([mean, log_variance], dim=1))[:, : mean.shape[1]]

    def colours(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> decoded bad and decoded balanced photo, both (N, 3, H, W) in [0, 1]."""
        bad, good = self.latents(rgb)
        decoded = self.autoencoder.decode(torch.cat([bad, good])).clamp(0, 1)
        return decoded[: rgb.shape[0]], decoded[rgb.shape[0] :]

    def coefficients(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] -> the colour map (N, 3, 10) that balances it."""
        return self.mapper.fit(*self.colours(rgb))

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> balanced (N, 3, H, W) in [0, 1]; the training losses if ``target`` is given.

        H and W are multiples of 8; the published chain works at 224x224.
        """
        if target is not None:
            return self.training_losses(input, target)
        balanced: Tensor = self.mapper(self.coefficients(input), input)
        return balanced

    def training_losses(self, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return ``loss``: the mean divergence in nats a latent element, of photos (N, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            mean, log_variance = self.autoencoder.encode(inputs)
            wanted = self.autoencoder.encode(target)
        new_mean, new_log_variance = self.balancer(torch.cat([mean, log_variance], dim=1)).float().chunk(2, dim=1)
        divergence = gaussian_kl(new_mean, new_log_variance, *wanted).mean()
        return {"loss": divergence, "kl": divergence}


def latent_balancer(
    latent_channels: int = 4,
    block_out_channels: Sequence[int] = (16, 24, 32, 48),
    layers_per_block: int = 1,
    norm_num_groups: int = 8,
    width: int = 64,
    depth: int = 3,
    heads: int = 4,
    autoencoder: str | None = "small",
) -> LatentBalancer:
    """Build the balancer with random weights around an autoencoder.

    Args:
        latent_channels: Of the autoencoder, as are the next three.
        block_out_channels: Channels of its levels.
        layers_per_block: Its residual blocks a level.
        norm_num_groups: Groups of its norms.
        width: Channels of the balancer.
        depth: Blocks of the balancer.
        heads: Attention heads.
        autoencoder: ``small`` loads the weights that ship where the shape is theirs; a file in diffusers' names loads
            it; None leaves it random.

    Raises:
        CheckpointError: The file is missing, damaged, or of another shape.
    """
    from models.artifact import load_weights

    net = AutoencoderKL(
        latent_channels,
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        norm_num_groups=norm_num_groups,
    )
    shape = (latent_channels, tuple(block_out_channels), layers_per_block, norm_num_groups)
    if autoencoder == "small":
        if shape == (4, (16, 24, 32, 48), 1, 8):
            load_weights(net, AUTOENCODER)
    elif autoencoder is not None:
        load_weights(net, Path(autoencoder))
    return LatentBalancer(net, width=width, depth=depth, heads=heads)
