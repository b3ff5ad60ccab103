"""Low light from raw: a short exposure as packed Bayer planes in, the sRGB photo of a long exposure out.

Raw values have black level 0 and white level 1, channels R, G, B, G of an RGGB sensor; they are not amplified: the
ratio of the two exposures is a control. A pair comes from a camera (``models.raw_pairs``, 16 bits), or is made from any
photo: the sRGB curve undone, white balance undone, sampled as a sensor does, divided by a ratio, shot and read noise,
rounded to the sensor's steps.

Source: Chen et al. 2018 (input, ratio); Brooks et al. 2019, "Unprocessing images for learned raw denoising" (order of
the steps, range of the noise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from models import color, draws
from models.controls import pack, spread, unpack
from models.errors import UnsupportedError, explain
from models.spec import Control, TensorSpec
from models.tasks.base import Augmentation, Task

if TYPE_CHECKING:
    from pathlib import Path

    from models.photos import PhotoSet

#: Steps of a 14-bit sensor with black level 512, as the Sony of the SID dataset.
STEPS = 16383 - 512
RATIO = Control("ratio", "graph_input", 1.0, 300.0, 100.0)
_RATIOS = (20.0, 300.0)
#: Variance of the shot noise over the value, and deviation of the read noise; white level 1. Log-uniform.
_SHOT = (3e-5, 3e-4)
_READ = (5e-5, 4e-4)
_PAIR = 5


class LowLight(Task):
    """Packed raw and ratio in, sRGB of twice the height and width out; doing nothing is amplifying and demosaicing."""

    name: ClassVar[str] = "low_light"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (
        TensorSpec("input", ("N", 4, "H", "W"), value_range=(0.0, 1.0), color_space="bayer-rgbg"),
    )
    outputs: ClassVar[tuple[TensorSpec, ...]] = (
        TensorSpec("output", ("N", 3, "2H", "2W"), value_range=(0.0, 1.0), color_space="srgb"),
    )
    metrics: ClassVar[tuple[str, ...]] = ("psnr", "ssim", "lpips", "delta_e")
    output_scale: ClassVar[float] = 1 / 255
    skips_grey: ClassVar[bool] = True
    do_nothing: ClassVar[str] = "the raw values amplified, white-balanced, demosaiced bilinearly, with the sRGB curve"
    controls: ClassVar[tuple[Control, ...]] = (RATIO,)
    draws: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    photo_scale: ClassVar[int] = 2
    augmentation: ClassVar[Augmentation] = Augmentation()

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, 2H, 2W), or raw pairs (N, 5, 2H, 2W), in [0, 1] -> raw and ratio (N, 5, H, W), photo.

        A raw pair is the photo, the mosaic, and one over the ratio (``models.raw_crops``).
        """
        if rgb.shape[1] == _PAIR:
            ratio = 1 / rgb[:, 4, 0, 0]
            return pack(color.pack_bayer(rgb[:, 3:4]), ratio[:, None]), rgb[:, :3]
        photo = color.check_rgb(rgb).float()
        raw, ratio = make_raw(photo)
        return pack(raw, ratio[:, None]), photo

    def open_pairs(self, folder: str | Path) -> PhotoSet:
        """Open a folder of raw pairs, 16 bits; see ``models.raw_pairs``.

        Raises:
            DataError: There is not one usable pair.
            MissingExtraError: tifffile is not installed.
        """
        from models.raw_pairs import open_raw_pairs

        return open_raw_pairs(folder)

    def prepare_at(self, rgb: Tensor, values: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The same at one ratio.

        Raises:
            UnsupportedError: Raw pairs, each of which was taken at a ratio of its own.
        """
        if rgb.shape[1] == _PAIR:
            expected, fix = "photos to make raw ones from", "pass a folder of finished photos"
            raise UnsupportedError(explain("quality by ratio", expected=expected, got="pairs of a camera", fix=fix))
        photo = color.check_rgb(rgb).float()
        raw, ratio = make_raw(photo, ratio=float(values[0]))
        return pack(raw, ratio[:, None]), photo

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The output, clipped: (N, 3, 2H, 2W) in [0, 1]."""
        return outputs.float().clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        """Amplify, white-balance, demosaic, apply the sRGB curve: (N, 3, 2H, 2W)."""
        raw, ratio = unpack(inputs, 1)
        return _develop(raw * spread(ratio))

    def shown_input(self, inputs: Tensor) -> Tensor:
        """The same without the amplification, as dark as it was taken: (N, 3, 2H, 2W)."""
        return _develop(unpack(inputs, 1)[0])


def _develop(raw: Tensor) -> Tensor:
    gains = torch.tensor(color.DAYLIGHT_GAINS, device=raw.device).view(1, 3, 1, 1)
    return color.linear_to_srgb((color.bayer_to_rgb(raw) * gains).clamp(0, 1))


def make_raw(photo: Tensor, *, ratio: float | None = None) -> tuple[Tensor, Tensor]:
    """Make a short exposure of photos (N, 3, 2H, 2W) in [0, 1]: raw (N, 4, H, W) in [0, 1] and ratio (N,).

    Noise, and the ratio unless it is given, are drawn from each photo's content.
    """
    sources = draws.generators(photo)
    drawn = _log_uniform(sources, *_RATIOS)
    ratios = drawn if ratio is None else torch.full_like(drawn, ratio)
    shot, read = _log_uniform(sources, *_SHOT), _log_uniform(sources, *_READ)
    gains = torch.tensor(color.DAYLIGHT_GAINS).view(1, 3, 1, 1)
    clean = color.rgb_to_bayer(color.srgb_to_linear(photo.cpu()) / gains) / spread(ratios)
    deviation = (spread(shot) * clean + spread(read) ** 2).sqrt()
    noisy = clean + deviation * draws.normal(sources, clean.shape[1:])
    raw = (noisy * STEPS).round().clamp(0, STEPS) / STEPS
    return raw.to(photo.device), ratios.to(photo.device)


def _log_uniform(sources: list[torch.Generator], low: float, high: float) -> Tensor:
    return draws.uniform(sources, math.log(low), math.log(high)).exp()
