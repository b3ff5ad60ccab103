"""What a colorizer, a quantizer, a codec or a low-light network does to a photo, on purpose and by degrees.

Each function takes one photo (3, H, W), sRGB in [0, 1], a strength in [0, 1], a numpy generator and a second photo of
the same size (used by the kinds that borrow its colours), and returns the altered photo, clipped to [0, 1]. They make
the pairs from which ``lite`` learns LPIPS and those on which it is judged; ``HELD_OUT`` kinds are for judging only.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.color import lab_to_rgb, linear_to_srgb, rgb_to_lab, srgb_to_linear

Random = np.random.Generator
Distortion = Callable[[Tensor, float, Random, Tensor], Tensor]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (C, H, W) with a Gaussian of ``sigma`` pixels; borders are replicated."""
    if sigma < 0.05:
        return image
    radius = max(1, min(int(3 * sigma + 0.5), *(size - 1 for size in image.shape[1:])))
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    planes = functional.pad(image[:, None], (radius,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel.view(1, 1, -1, 1))
    return functional.conv2d(planes, kernel.view(1, 1, 1, -1))[:, 0]


def _rescale(image: Tensor, factor: float, mode: str = "bilinear") -> Tensor:
    """Shrink (C, H, W) by ``factor`` with area averaging, and enlarge it again."""
    height, width = image.shape[1:]
    small = (max(2, round(height / factor)), max(2, round(width / factor)))
    shrunk = functional.interpolate(image[None], small, mode="area")
    align = {} if mode == "nearest" else {"align_corners": False}
    return functional.interpolate(shrunk, (height, width), mode=mode, **align)[0]


def _smooth_field(rng: Random, channels: int, like: Tensor) -> Tensor:
    """Make a random field with blobs of a random size, standard deviation about 1."""
    cells = int(rng.integers(2, 13))
    grid = torch.from_numpy(rng.standard_normal((1, channels, cells, cells)).astype(np.float32))
    return functional.interpolate(grid, like.shape[1:], mode="bicubic", align_corners=False)[0]


def _normal(rng: Random, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _with_chroma(photo: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Replace the chroma planes (2, H, W) of CIELab by ``change(chroma)``; lightness stays."""
    lab = rgb_to_lab(photo[None])[0]
    return lab_to_rgb(torch.cat((lab[:1], change(lab[1:])))[None])[0]


def _chroma_of(photo: Tensor) -> Tensor:
    return rgb_to_lab(photo[None])[0, 1:]


def _angle_vector(rng: Random) -> Tensor:
    angle = rng.uniform(0, 2 * np.pi)
    return torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32).view(2, 1, 1)


# Colour: lightness kept, as a colorizer keeps it.


def desaturate(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Take away a part of the chroma; all of it at strength 1."""
    return _with_chroma(photo, lambda ab: ab * (1 - strength))


def saturate(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Multiply the chroma by up to 2.5."""
    return _with_chroma(photo, lambda ab: ab * (1 + 1.5 * strength))


def colour_cast(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Add one chroma vector of up to 45 to the whole photo."""
    return _with_chroma(photo, lambda ab: ab + 45 * strength * _angle_vector(rng))


def hue_rotate(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Turn the hue by up to 180 degrees."""
    angle = float(np.pi * strength * rng.choice((-1, 1)))
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    return _with_chroma(photo, lambda ab: torch.einsum("ij,jhw->ihw", turn, ab))


def chroma_blur(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Blur the chroma with a sigma of up to 12 pixels."""
    return _with_chroma(photo, lambda ab: gaussian_blur(ab, 12 * strength))


def chroma_resample(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Keep the chroma at 1/2 to 1/16 of the resolution, bilinear up."""
    return _with_chroma(photo, lambda ab: _rescale(ab, 2 ** (1 + 3 * strength)))


def chroma_noise(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Add smooth coloured blobs of up to 30 (standard deviation) to the chroma."""
    return _with_chroma(photo, lambda ab: ab + 30 * strength * _smooth_field(rng, 2, ab))


def chroma_swap(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Move the chroma towards that of another photo; all the way at strength 1."""
    return _with_chroma(photo, lambda ab: torch.lerp(ab, _chroma_of(other), strength))


def chroma_banding(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Quantize the chroma with steps of 2 to 32, as a coarse INT8 output layer does."""
    step = 2 * 16**strength
    shift = float(rng.uniform(0, step))
    return _with_chroma(photo, lambda ab: torch.round((ab + shift) / step) * step - shift)


def colorizer(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Imitate a colorizer: chroma smoothed, dulled, tinted, wrong in places, borrowed in others."""
    levels = strength * rng.uniform(0, 1, 6)

    def change(ab: Tensor) -> Tensor:
        ab = gaussian_blur(ab, 6 * levels[0]) * (1 - 0.9 * levels[1])
        ab = ab + 15 * levels[2] * _angle_vector(rng) + 12 * levels[3] * _smooth_field(rng, 2, ab)
        mask = torch.sigmoid(3 * _smooth_field(rng, 1, ab)) * float(levels[4])
        ab = torch.lerp(ab, gaussian_blur(_chroma_of(other), 4.0), mask)
        return ab + gaussian_blur(_normal(rng, *ab.shape), 1.5) * 25 * float(levels[5])

    return _with_chroma(photo, change)


def white_balance(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Multiply linear red and blue by gains of up to 2.2 either way."""
    gains = np.exp(np.log(2.2) * strength * rng.uniform(-1, 1, 2))
    gain = torch.tensor([gains[0], 1.0, gains[1]], dtype=torch.float32).view(3, 1, 1)
    return linear_to_srgb((srgb_to_linear(photo) * gain).clamp(0, 1))


# Sharpness, noise and codecs.


def blur(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Blur with a sigma of 0.3 to 3 pixels."""
    return gaussian_blur(photo, 0.3 + 2.7 * strength).clamp(0, 1)


def resample(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Shrink by 1.2 to 6 and enlarge again."""
    mode = str(rng.choice(("bilinear", "bicubic")))
    return _rescale(photo, 1.2 * 5**strength, mode).clamp(0, 1)


def sharpen(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Unsharp mask with an amount of up to 2."""
    return (photo + 2 * strength * (photo - gaussian_blur(photo, 1.0))).clamp(0, 1)


def noise(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Add white noise, coloured or grey, with a sigma of up to 0.2."""
    channels = 3 if rng.random() < 0.7 else 1
    return (photo + 0.2 * strength * _normal(rng, channels, *photo.shape[1:])).clamp(0, 1)


def grain(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Add noise that is smoothed over one or two pixels, with a sigma of up to 0.15."""
    field = gaussian_blur(_normal(rng, *photo.shape), float(rng.uniform(0.6, 2)))
    return (photo + 0.15 * strength * field / field.std()).clamp(0, 1)


def jpeg(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Store as JPEG with a quality of 95 down to 5."""
    return _codec(photo, "JPEG", round(95 - 90 * strength))


def _codec(photo: Tensor, name: str, quality: int) -> Tensor:
    from PIL import Image

    pixels = (photo.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, quality=quality)
    with Image.open(buffer) as stored:
        array = np.array(stored.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def banding(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Keep 64 down to 4 levels a channel."""
    levels = round(64 * 16 ** (-strength))
    return torch.round(photo * (levels - 1)) / (levels - 1)


# Light.


def gamma(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Raise to a power of up to 2.5, or down to 1 / 2.5."""
    return photo ** float(2.5 ** (strength * rng.choice((-1, 1))))


def brightness(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Add up to 0.3 either way."""
    return (photo + 0.3 * strength * float(rng.choice((-1, 1)))).clamp(0, 1)


def contrast(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Stretch or squeeze around the mean, by up to 2.5 times."""
    mean = photo.mean()
    return (mean + (photo - mean) * float(2.5 ** (strength * rng.choice((-1, 1))))).clamp(0, 1)


def illumination(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Multiply linear light by a smooth field of up to 3 times either way."""
    field = torch.exp(np.log(3.0) * strength * _smooth_field(rng, 1, photo).clamp(-1, 1))
    return linear_to_srgb((srgb_to_linear(photo) * field).clamp(0, 1))


def low_light(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Take 1/1.5 to 1/30 of the light, with sensor noise, and brighten it again not quite to the same."""
    exposure = 1.5 * 20**strength
    light = srgb_to_linear(photo) / exposure
    light = light + _normal(rng, *photo.shape) * torch.sqrt(light * 2e-4 + 1e-7)
    light = torch.round(light.clamp(0, 1) * 4095) / 4095
    restored = (light * exposure * float(rng.uniform(0.6, 1.3))).clamp(0, 1)
    return gaussian_blur(linear_to_srgb(restored), float(rng.uniform(0, 1.5))).clamp(0, 1)


# Held out: kinds that are never in training.


def motion_blur(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Average along a horizontal or vertical line of 2 to 16 pixels."""
    length = 2 + round(14 * strength)
    padded = functional.pad(photo[None], (length // 2, (length - 1) // 2, 0, 0), mode="replicate")
    if rng.random() < 0.5:
        return functional.avg_pool2d(padded, (1, length), stride=1)[0].clamp(0, 1)
    padded = functional.pad(photo[None], (0, 0, length // 2, (length - 1) // 2), mode="replicate")
    return functional.avg_pool2d(padded, (length, 1), stride=1)[0].clamp(0, 1)


def impulse_noise(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Turn up to 5% of the pixels black or white."""
    draw = torch.from_numpy(rng.random(photo.shape[1:], dtype=np.float32))
    share = 0.05 * strength
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, photo))


def split_tone(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Tint shadows and highlights in opposite directions by up to 40."""
    lab = rgb_to_lab(photo[None])[0]
    tint = 40 * strength * _angle_vector(rng) * (lab[:1] / 50 - 1)
    return lab_to_rgb(torch.cat((lab[:1], lab[1:] + tint))[None])[0]


def chroma_blocks(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Hold the chroma constant over blocks of 2 to 16 pixels."""
    return _with_chroma(photo, lambda ab: _rescale(ab, 2 ** (1 + 3 * strength), "nearest"))


def median(photo: Tensor, strength: float, rng: Random, other: Tensor) -> Tensor:
    """Blend with the 5x5 median, as an eager denoiser."""
    padded = functional.pad(photo[None], (2, 2, 2, 2), mode="replicate")
    windows = functional.unfold(padded, 5).view(3, 25, -1)
    return torch.lerp(photo, windows.median(dim=1).values.view_as(photo), strength)


TRAINED: dict[str, Distortion] = {
    function.__name__: function
    for function in (
        *(desaturate, saturate, colour_cast, hue_rotate, chroma_blur, chroma_resample, chroma_noise, chroma_swap),
        *(chroma_banding, colorizer, white_balance, blur, resample, sharpen, noise, grain, jpeg, banding),
        *(gamma, brightness, contrast, illumination, low_light),
    )
}
HELD_OUT: dict[str, Distortion] = {
    function.__name__: function for function in (motion_blur, impulse_noise, split_tone, chroma_blocks, median)
}
CHROMA_KINDS = frozenset(
    (
        *("desaturate", "saturate", "colour_cast", "hue_rotate", "chroma_blur", "chroma_resample", "chroma_noise"),
        *("chroma_swap", "chroma_banding", "colorizer", "white_balance", "split_tone", "chroma_blocks"),
    )
)
