"""Colour balance: a photo whose colours were distorted by a look-up table in, the photo itself out.

Both in sRGB, [0, 1]. The distortion is a 3D table drawn at random for each photo from four families (gamma, colour
cast, mixed light, film curves), or one of your own ``.cube`` files. What is drawn depends on the pixels of the photo
only, so that a resumed training and the evaluation see the same.

Pairs of your own (a photo with wrong colours, and behind it the right one, six channels) are taken as they are.

A table maps equal colours alike, so "mixed light" is what a table can express of it: the light of the shadows has
another colour than the light of the highlights, as in a room lit by a lamp and a window.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from models import color
from models.cube import Cube, identity_3d, read_cube
from models.errors import DataError, explain
from models.spec import TensorSpec
from models.tasks.base import Task

_NODES = 17
_SEED = 20_101


class Balance(Task):
    """Distorted RGB -> RGB; doing nothing is the distorted photo. See the module's docstring.

    Args:
        cubes: Folder of ``.cube`` files to distort with, in place of the random tables.

    Raises:
        DataError: The folder holds no ``.cube`` file, or a damaged one.
    """

    name: ClassVar[str] = "balance"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0)),)
    metrics: ClassVar[tuple[str, ...]] = ("lpips", "delta_e", "psnr", "ssim")
    output_scale: ClassVar[float] = 1 / 255
    skips_grey: ClassVar[bool] = True
    do_nothing: ClassVar[str] = "the distorted photo, unchanged"
    paired: ClassVar[bool] = True

    def __init__(self, cubes: str | Path | None = None) -> None:
        self.cubes: list[Cube] = []
        if cubes is not None:
            paths = sorted(Path(cubes).glob("*.cube"))
            if not paths:
                fix = "pass a folder with .cube files"
                raise DataError(explain(f"tables in {cubes}", expected="at least one .cube file", got="none", fix=fix))
            self.cubes = [read_cube(path) for path in paths]

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W), or pairs (N, 6, H, W), in [0, 1] -> bad and right photos, both (N, 3, H, W)."""
        if rgb.shape[1] == 6:
            return color.check_rgb(rgb[:, :3]).float(), color.check_rgb(rgb[:, 3:], "target").float()
        rgb = color.check_rgb(rgb).float()
        return torch.cat([self._distort(photo[None]) for photo in rgb]), rgb

    def _distort(self, photo: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(photo))
        if self.cubes:
            chosen = int(torch.randint(len(self.cubes), (), generator=generator))
            return self.cubes[chosen].apply(photo).clamp(0, 1)
        table = random_table(generator).to(photo.device)
        grid = photo.permute(0, 2, 3, 1)[:, None] * 2 - 1
        bent = functional.grid_sample(table[None], grid, padding_mode="border", align_corners=True)
        return bent[:, :, 0].clamp(0, 1)

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Balanced RGB (N, 3, H, W) -> the same, clipped to [0, 1]."""
        return outputs.float().clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """The distorted photo, unchanged (N, 3, H, W)."""
        return inputs


def seed_of(photo: Tensor) -> int:
    """Return a seed that depends on the pixels of a photo, rounded to 8 bits, and on nothing else."""
    pixels = (photo.detach() * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()
    return zlib.crc32(pixels.numpy().tobytes(), _SEED)


def random_table(generator: torch.Generator, size: int = _NODES) -> Tensor:
    """Draw a distortion (3, size, size, size), values in [0, 1]: one or more families, the same draw in any order.

    The families are drawn with probability one half each; where none is, a cast is taken.
    """

    def uniform(low: float, high: float, count: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    use = torch.rand(4, generator=generator) < 0.5
    use[1] |= ~use.any()
    rgb = identity_3d(size)[None]
    draws = (uniform(-0.9, 0.9), uniform(-1.3, 1.3, 2), uniform(-1.3, 1.3, 2), uniform(-1, 1, 9))
    for chosen, family, draw in zip(use.tolist(), (gamma, cast, mixed_light, film), draws, strict=True):
        if chosen:
            rgb = family(rgb, draw)
    return rgb[0].clamp(0, 1)


def gamma(rgb: Tensor, draw: Tensor) -> Tensor:
    """Bend all channels alike: rgb ^ (2 ^ draw[0]); ``rgb`` (N, 3, ...) in [0, 1]."""
    return rgb ** (2 ** float(draw[0]))


def _gains(temperature: float, tint: float) -> Tensor:
    """Gains (1, 3, 1, 1, 1) of light of another colour, in octaves warm - cold and green - magenta, mean 1."""
    octaves = torch.tensor([temperature / 2, tint / 2, -temperature / 2])
    gains = 2**octaves
    return (gains / gains.mean()).view(1, 3, 1, 1, 1)


def cast(rgb: Tensor, draw: Tensor) -> Tensor:
    """Light the scene with one light of another colour: gains in linear light; ``rgb`` (N, 3, L, L, L)."""
    linear = color.srgb_to_linear(rgb) * _gains(float(draw[0]), float(draw[1]) / 2).to(rgb)
    return color.linear_to_srgb(linear.clamp(0, 1))


def mixed_light(rgb: Tensor, draw: Tensor) -> Tensor:
    """Light shadows and highlights with lights of opposite colours; ``rgb`` (N, 3, L, L, L)."""
    linear = color.srgb_to_linear(rgb)
    weight = rgb.mean(dim=1, keepdim=True)
    dark, bright = _gains(float(draw[0]), float(draw[1]) / 2), _gains(-float(draw[0]), -float(draw[1]) / 2)
    gains = dark.to(rgb) * (1 - weight) + bright.to(rgb) * weight
    return color.linear_to_srgb((linear * gains).clamp(0, 1))


def film(rgb: Tensor, draw: Tensor) -> Tensor:
    """Develop with film curves: contrast, lifted blacks and lowered whites, drawn for each channel; (N, 3, L, L, L).

    Contrast blends towards 3x^2 - 2x^3 (or away from it), up to 60%; black up to 0.12, white down to 0.88.
    """
    contrast, black, white = (part.view(1, 3, 1, 1, 1).to(rgb) for part in draw.split(3))
    curved = rgb + 0.6 * contrast * (rgb * rgb * (3 - 2 * rgb) - rgb)
    low, high = 0.12 * black.clamp_min(0), 1 - 0.12 * white.clamp_min(0)
    return low + (high - low) * curved
