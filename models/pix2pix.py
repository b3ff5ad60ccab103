"""The U-Net generator of pix2pix for pictures of 256x256: eight halvings to one pixel, transposed convolutions back.

Names and shapes of the state_dict are those of junyanz/pytorch-CycleGAN-and-pix2pix (``UnetGenerator``, ``unet_256``,
BatchNorm): ``model.model.0`` (outermost convolution), ``model.model.1.model.1`` (the next one), ... The published
generator takes and gives [-1, 1]; so does this one with ``form="image"``. Dropout is off, as in eval
mode (the authors' test script leaves it on). Height and width: multiples of 2 ** ``levels``.


Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.errors import ConfigError, explain
from models.outputs import Form, bounded_map, check_form, neutral


class SkipBlock(nn.Module):
    """Halve, run the inner block, double, and join the input: (N, outer, H, W) -> (N, 2 * outer, H, W).

    Args:
        outer: Channels in.
        inner: Channels at half the size.
        submodule: What runs there; None at the bottom.
    """

    def __init__(self, outer: int, inner: int, submodule: nn.Module | None) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=False)]
        if submodule is not None:
            down += [nn.BatchNorm2d(inner), submodule]
        made = inner if submodule is None else 2 * inner
        up = [nn.ReLU(), nn.ConvTranspose2d(made, outer, 4, 2, 1, bias=False), nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*down, *up)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outer, H, W) -> (N, 2 * outer, H, W)."""
        return torch.cat([x, self.model(x)], dim=1)


class OuterBlock(nn.Module):
    """The outermost block: a convolution down, the rest, a transposed convolution to the output, tanh."""

    def __init__(self, in_channels: int, out_channels: int, width: int, submodule: nn.Module, last: nn.Module) -> None:
        super().__init__()
        down = nn.Conv2d(in_channels, width, 4, 2, 1, bias=False)
        self.model = nn.Sequential(
            down, submodule, nn.ReLU(), nn.ConvTranspose2d(2 * width, out_channels, 4, 2, 1), last
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        y: Tensor = self.model(x)
        return y


class UnetGenerator(nn.Module):
    """The generator; see the module's docstring.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first level; they double three times.
        levels: Halvings; 8 is ``unet_256``, 7 is ``unet_128``.
        form: ``image``: tanh in [-1, 1], as published; ``map``: see ``models.outputs``, and the input is [0, 1].

    Raises:
        ConfigError: Fewer than five levels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 64,
        levels: int = 8,
        form: Form = "image",
    ) -> None:
        super().__init__()
        check_form(form)
        if levels < 5:
            raise ConfigError(explain("levels of pix2pix", expected="5 or more", got=levels, fix="use for example 7"))
        self.form = form
        block = SkipBlock(8 * width, 8 * width, None)
        for _ in range(levels - 5):
            block = SkipBlock(8 * width, 8 * width, block)
        for factor in (4, 2, 1):
            block = SkipBlock(factor * width, 2 * factor * width, block)
        last = nn.Tanh() if form == "image" else nn.Identity()
        self.model = OuterBlock(in_channels, out_channels, width, block, last)
        head = self.model.model[3]
        assert isinstance(head, nn.ConvTranspose2d)
        neutral(form, head)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        if self.form == "map":
            return bounded_map(self.model(2 * input - 1))
        y: Tensor = self.model(input)
        return y


def pix2pix(
    in_channels: int = 3, out_channels: int = 3, width: int = 64, levels: int = 8, form: Form = "image"
) -> UnetGenerator:
    """Build the generator ``unet_256`` with random weights."""
    return UnetGenerator(in_channels, out_channels, width=width, levels=levels, form=form)
