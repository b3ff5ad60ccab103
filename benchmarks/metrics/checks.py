"""What every metric asks of its images, checked once at the boundary."""

from __future__ import annotations

from torch import Tensor

from models.color import check_rgb
from models.errors import ConfigError, InputSizeError, explain


def check_pair(preds: Tensor, target: Tensor, *, smallest: int = 1, metric: str) -> None:
    """Check that both are sRGB (N, 3, H, W) in [0, 1], N >= 1, of one shape, and no side below ``smallest``.

    Raises:
        ConfigError: Shape, type or range is another one.
        InputSizeError: A side is too small for the metric.
    """
    check_rgb(preds, "preds")
    check_rgb(target, "target")
    if preds.shape != target.shape:
        got = f"preds {tuple(preds.shape)} and target {tuple(target.shape)}"
        fix = "crop or resize one of them"
        raise ConfigError(explain(metric, expected="images of one shape", got=got, fix=fix))
    if not len(preds):
        fix = "pass (N, 3, H, W) with N >= 1"
        raise ConfigError(explain(metric, expected="one image or more", got="none", fix=fix))
    if preds.device != target.device:
        got = f"preds on {preds.device} and target on {target.device}"
        raise ConfigError(explain(metric, expected="images on one device", got=got, fix="move one with .to(device)"))
    if min(preds.shape[2:]) < smallest:
        got = f"{preds.shape[2]}x{preds.shape[3]}"
        fix = "use larger images, or leave this metric out"
        raise InputSizeError(explain(metric, expected=f"{smallest}x{smallest} or larger", got=got, fix=fix))


def precise(*images: Tensor) -> tuple[Tensor, ...]:
    """Return the images in float64, or in float32 on a device without it (Apple's GPU)."""
    return tuple(image.float() if image.device.type == "mps" else image.double() for image in images)
