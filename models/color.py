"""The only place for colour spaces and value ranges.

All functions take and return torch tensors (N, 3, H, W) in float32, sRGB in [0, 1], CIELab with the D65 white
point and the 2 degree observer (L in [0, 100]), the same numbers as ``skimage.color``. All are differentiable.

Source: IEC 61966-2-1 (sRGB transfer curve and primaries), CIE 15:2004 (Lab).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ConfigError, explain

_RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_XYZ_TO_RGB = (  # the inverse of the matrix above, so that a traced graph needs no matrix inversion
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.04155592655829284),
    (0.05564663913517715, -0.20404133836651123, 1.0573110696453443),
)
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degree observer
_EPSILON = 0.008856
_KAPPA = 7.787
_L_MAX = 100.0
AB_SCALE = 255.0
#: Row and column of packed planes R, G, B, G in a cell of an RGGB sensor.
BAYER_SITES = ((0, 0), (0, 1), (1, 1), (1, 0))
#: White balance of daylight, red and blue over green; a network of raw learns the one of the camera it is made for.
DAYLIGHT_GAINS = (2.0, 1.0, 1.6)


def check_rgb(rgb: Tensor, name: str = "rgb") -> Tensor:
    """Check shape (N, 3, H, W), floating type and range [0, 1]; return ``rgb``.

    Raises:
        ConfigError: Shape, type or range is another one.
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ConfigError(
            explain(name, expected="shape (N, 3, H, W)", got=tuple(rgb.shape), fix="stack photos as N, C, H, W")
        )
    if not rgb.is_floating_point():
        raise ConfigError(explain(name, expected="floating values in [0, 1]", got=rgb.dtype, fix="divide uint8 by 255"))
    low, high = (float(rgb.min()), float(rgb.max())) if rgb.numel() else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        got = f"values from {low:.3g} to {high:.3g}"
        raise ConfigError(explain(name, expected="values in [0, 1]", got=got, fix="divide by 255, or clamp to [0, 1]"))
    return rgb


def srgb_to_linear(rgb: Tensor) -> Tensor:
    """Undo the sRGB transfer curve. ``rgb``: any shape, [0, 1] -> [0, 1]."""
    high = ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(rgb > 0.04045, high, rgb / 12.92)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Apply the sRGB transfer curve. ``linear``: any shape, [0, 1] -> [0, 1]."""
    high = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, high, linear * 12.92)


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix, image)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (N, 3, H, W) in [0, 1] to CIELab: L in [0, 100], a and b about [-107, 98]."""
    white = torch.tensor(_WHITE, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=rgb.dtype, device=rgb.device)
    xyz = _mix(matrix, srgb_to_linear(rgb)) / white
    f = torch.where(xyz > _EPSILON, xyz.clamp_min(_EPSILON) ** (1 / 3), _KAPPA * xyz + 16 / 116)
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIELab (N, 3, H, W) to sRGB; colours outside of the gamut are clipped to [0, 1]."""
    y = (lab[:, 0] + 16) / 116
    x, z = y + lab[:, 1] / 500, y - lab[:, 2] / 200
    f = torch.stack([x, y, z.clamp_min(0.0)], dim=1)
    edge = _EPSILON ** (1 / 3)
    xyz = torch.where(f > edge, f.clamp_min(edge) ** 3, (f - 16 / 116) / _KAPPA)
    white = torch.tensor(_WHITE, dtype=lab.dtype, device=lab.device).view(1, 3, 1, 1)
    linear = _mix(torch.tensor(_XYZ_TO_RGB, dtype=lab.dtype, device=lab.device), xyz * white)
    return linear_to_srgb(linear.clamp(0.0, 1.0)).clamp(0.0, 1.0)


def normalize_lab(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Split Lab (N, 3, H, W) into network values: L / 100 (N, 1, H, W) and ab / 255 (N, 2, H, W)."""
    return lab[:, :1] / _L_MAX, lab[:, 1:] / AB_SCALE


def denormalize_lab(lightness: Tensor, chroma: Tensor) -> Tensor:
    """Join L / 100 (N, 1, H, W) and ab / 255 (N, 2, H, W) into Lab (N, 3, H, W)."""
    return torch.cat([lightness * _L_MAX, chroma * AB_SCALE], dim=1)


def normalize_raw(raw: Tensor, black: Tensor | float, white: float) -> Tensor:
    """Bring sensor values to black level 0 and white level 1; what lies below black becomes 0.

    Args:
        raw: Sensor values, any shape.
        black: Black level, one number or one a channel in a shape that broadcasts.
        white: White level, above black.
    """
    return ((raw.float() - black) / (white - black)).clamp_min(0.0)


def pack_bayer(mosaic: Tensor) -> Tensor:
    """Pack an RGGB mosaic (N, 1, H, W) into planes R, G, B, G: (N, 4, H / 2, W / 2); H and W even."""
    rows = mosaic[:, :, 0::2], mosaic[:, :, 1::2]
    planes = (rows[0][..., 0::2], rows[0][..., 1::2], rows[1][..., 1::2], rows[1][..., 0::2])
    return torch.cat(planes, dim=1)


def unpack_bayer(packed: Tensor) -> Tensor:
    """Put planes R, G, B, G (N, 4, H, W) back into an RGGB mosaic (N, 1, 2H, 2W)."""
    count, _, height, width = packed.shape
    mosaic = packed.new_empty(count, 1, 2 * height, 2 * width)
    for plane, (row, column) in enumerate(BAYER_SITES):
        mosaic[:, 0, row::2, column::2] = packed[:, plane]
    return mosaic


def rgb_to_bayer(rgb: Tensor) -> Tensor:
    """Sample linear RGB (N, 3, H, W) as an RGGB sensor does and pack it: R, G, B, G (N, 4, H / 2, W / 2)."""
    top, bottom = rgb[:, :, 0::2], rgb[:, :, 1::2]
    planes = (top[:, 0:1, :, 0::2], top[:, 1:2, :, 1::2], bottom[:, 2:3, :, 1::2], bottom[:, 1:2, :, 0::2])
    return torch.cat(planes, dim=1)


def bayer_to_rgb(packed: Tensor) -> Tensor:
    """Demosaic packed R, G, B, G (N, 4, H, W) simply: each 2x2 cell one colour, enlarged bilinearly (N, 3, 2H, 2W)."""
    red, green, blue = packed[:, 0:1], (packed[:, 1:2] + packed[:, 3:4]) / 2, packed[:, 2:3]
    small = torch.cat([red, green, blue], dim=1)
    return torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
