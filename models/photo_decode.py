"""Decoding one photo to sRGB, or saying why not. What is converted and what is rejected: see ``models.photos``."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

MINIMUM_SIDE = 32
MAXIMUM_PIXELS = 120_000_000
#: Mean of max(RGB) - min(RGB), 8-bit steps, under which a photo counts as grey.
GREY_CHROMA = 2.0

_ORIENTATION = 0x0112
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif", ".mpo"}
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}


class Rejected(Exception):
    """A file that is not used; ``kind`` is one word, ``reason`` a sentence."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def inspect(path: Path, *, keep_grey: bool) -> None:
    """Judge a file by its header.

    Raises:
        Rejected: It cannot be used.
    """
    with _open(path) as image:
        _judge(image, keep_grey=keep_grey)


def decode(path: Path, *, short_side: int | None = None, keep_grey: bool = False) -> Any:
    """Decode a file to an array (H, W, 3) uint8, sRGB, upright.

    Args:
        path: The file.
        short_side: Shrink to this many pixels on the short side; never enlarged.
        keep_grey: Accept photos without chroma.

    Raises:
        Rejected: It cannot be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(path) as image:
            _judge(image, keep_grey=keep_grey)
            try:
                if short_side is not None and image.format == "JPEG":
                    _draft(image, short_side)
                image.load()
                rgb = _shrink(_to_srgb(ImageOps.exif_transpose(image)), short_side)
            except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
                raise Rejected("corrupt", f"cannot be decoded: {error}") from error
    array = np.asarray(rgb)
    if not keep_grey and chroma(array) < GREY_CHROMA:
        raise Rejected("grey", "has no chroma")
    return array


def upright_size(path: Path) -> tuple[int, int]:
    """Return height and width of a file as ``decode`` will give them, by its header.

    Raises:
        Rejected: It cannot be opened.
    """
    with _open(path) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, EOFError):
            turned = False
    return (width, height) if turned else (height, width)


def chroma(rgb: Any) -> float:
    """Return the mean of max(RGB) - min(RGB) of (H, W, 3) uint8, in 8-bit steps, over a grid of about 128 x 128."""
    part = rgb[:: max(rgb.shape[0] // 128, 1), :: max(rgb.shape[1] // 128, 1)].astype(np.int16)
    red, green, blue = part[..., 0], part[..., 1], part[..., 2]
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return float(spread.mean())


def cover(rgb: Any, height: int, width: int) -> Any:
    """Resize (H, W, 3) uint8 so that it just covers ``height`` x ``width``, Lanczos, and cut out the centre.

    Of pictures behind each other (H, W, 6 or 9), all alike.
    """
    if rgb.shape[2] > 3:
        parts = [cover(rgb[..., at : at + 3], height, width) for at in range(0, rgb.shape[2], 3)]
        return np.concatenate(parts, axis=2)
    rows, columns = rgb.shape[:2]
    scale = max(height / rows, width / columns)
    size = (max(round(columns * scale), width), max(round(rows * scale), height))
    if size != (columns, rows):
        rgb = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return rgb[top : top + height, left : left + width]


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats of this build of Pillow that need no external program."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe, a socket or a device"  # opening one may wait for ever
        raise Rejected("non-image", f"is {what}")
    try:
        return Image.open(path, formats=_formats())
    except Image.DecompressionBombError as error:
        raise Rejected("huge", f"has more than {MAXIMUM_PIXELS // 10**6} million pixels") from error
    except UnidentifiedImageError as error:
        if path.suffix.lower() in _SUFFIXES:
            raise Rejected("corrupt", "has an image suffix but no readable header") from error
        raise Rejected("non-image", "is not an image of a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Rejected("corrupt", f"cannot be opened: {error}") from error


def _judge(image: Image.Image, *, keep_grey: bool) -> None:
    width, height = image.size
    if min(width, height) < MINIMUM_SIDE:
        raise Rejected("tiny", f"is {width}x{height}, under {MINIMUM_SIDE} pixels on a side")
    if width * height > MAXIMUM_PIXELS:
        raise Rejected("huge", f"is {width}x{height}, more than {MAXIMUM_PIXELS // 10**6} million pixels")
    try:
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Rejected("corrupt", f"cannot be opened: {error}") from error
    if animated:
        raise Rejected("animated", "has several frames or pages")
    if image.mode == "F":
        raise Rejected("float", "has floating point pixels of an unknown range")
    if image.mode in _GREY_MODES and not keep_grey:
        raise Rejected("grey", f"has no colour channels (mode {image.mode})")


def _draft(image: Image.Image, short_side: int) -> None:
    """Ask the JPEG decoder for the smallest scale (1/1 to 1/8) whose short side is still ``short_side``."""
    width, height = image.size
    scale = short_side / min(width, height)
    if scale < 1:
        image.draft("RGB" if image.mode == "RGB" else image.mode, (int(width * scale) + 1, int(height * scale) + 1))


def _shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    short = min(image.size)
    if short_side is None or short <= short_side:
        return image
    size = (round(image.width * short_side / short), round(image.height * short_side / short))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: profile applied, alpha on white, 16 bits to 8."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if image.mode == "LA":
        image = image.convert("L")
    elif image.mode == "RGBA":
        image = image.convert("RGB")
    profile = image.info.get("icc_profile")
    transform = _profile_transform(profile, image.mode) if profile else None
    rgb = _apply(image, transform).convert("RGB")
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return rgb


def _apply(image: Image.Image, transform: Any) -> Image.Image:
    if transform is None:
        return image
    try:
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        return image
    return image if converted is None else converted


@functools.lru_cache(maxsize=64)
def _profile_transform(profile: bytes, mode: str) -> Any:
    """Return the transform from an embedded profile to sRGB; None where there is nothing to do, or it is damaged."""
    if mode not in ("RGB", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
