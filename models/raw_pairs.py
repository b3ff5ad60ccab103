"""Pairs of raw and finished photos: folders of uint16 TIFF, and RAW files of a camera.

A folder of pairs has ``input/`` (packed Bayer, R G B G, (H, W, 4) uint16, black level 0, white level 65535) and
``target/`` (sRGB, (2H, 2W, 3) uint16) of equal names. TIFF is read with tifffile: Pillow takes four channels for RGBA
and keeps eight bits of them.

Requires the extra ``raw`` (tifffile; rawpy for RAW files of a camera).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.color import normalize_raw, pack_bayer
from models.errors import DataError, explain, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WHITE = 65535
_SUFFIXES = (".tif", ".tiff")


def read_pair(packed: Path, target: Path) -> tuple[Tensor, Tensor]:
    """Read one pair: raw (1, 4, H, W) and sRGB (1, 3, 2H, 2W), both in [0, 1].

    Raises:
        DataError: Not uint16, or shapes that do not fit.
        MissingExtraError: tifffile is not installed.
    """
    raw, rgb = _read(packed), _read(target)
    height, width = raw.shape[:2]
    if raw.ndim != 3 or raw.shape[2] != 4 or rgb.shape != (2 * height, 2 * width, 3):
        fix = "crop both to the same place, the target twice as high and wide"
        got = f"{raw.shape} and {rgb.shape}"
        raise DataError(explain(f"pair {packed.name}", expected="(H, W, 4) and (2H, 2W, 3)", got=got, fix=fix))
    return _tensor(raw), _tensor(rgb)


def _read(path: Path) -> NDArray[np.uint16]:
    tools = require("tifffile", "raw")
    try:
        pixels: Any = tools.imread(path, is_shaped=False)
    except (OSError, ValueError) as error:
        fix = "write it again as uint16 TIFF"
        raise DataError(explain(f"{path}", expected="a TIFF file", got=error, fix=fix)) from error
    if str(pixels.dtype) != "uint16":
        fix = "write 16-bit values, 65535 for white"
        raise DataError(explain(f"{path}", expected="uint16", got=pixels.dtype, fix=fix))
    found: NDArray[np.uint16] = pixels
    return found


def _tensor(pixels: NDArray[np.uint16]) -> Tensor:
    import numpy as np

    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None] / _WHITE)


def list_pairs(folder: Path, *, inputs: str = "input", targets: str = "target") -> list[tuple[Path, Path]]:
    """Return the pairs of a folder, by name.

    Raises:
        DataError: None, or a photo without its other half.
    """
    halves = [
        {path.stem: path for path in sorted((folder / name).glob("*")) if path.suffix.lower() in _SUFFIXES}
        for name in (inputs, targets)
    ]
    if not halves[0] or halves[0].keys() != halves[1].keys():
        lone = sorted(halves[0].keys() ^ halves[1].keys())
        fix = "give each input a target of the same name"
        got = f"without its other half: {lone[:3]}" if lone else "none"
        raise DataError(explain(f"pairs in {folder}", expected=f"TIFF in {inputs}/ and {targets}/", got=got, fix=fix))
    return [(halves[0][name], halves[1][name]) for name in halves[0]]


def write_pair(folder: Path, name: str, raw: Tensor, rgb: Tensor) -> tuple[Path, Path]:
    """Write raw (1, 4, H, W) and sRGB (1, 3, 2H, 2W), both in [0, 1], as a pair of ``folder``; return both files."""
    tools, written = require("tifffile", "raw"), []
    for kind, values in (("input", raw), ("target", rgb)):
        path = folder / kind / f"{name}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (values[0].clamp(0, 1) * _WHITE).round().to(torch.int32).permute(1, 2, 0).numpy().astype("uint16")
        tools.imwrite(path, pixels, photometric="minisblack" if kind == "input" else "rgb", planarconfig="contig")
        written.append(path)
    return written[0], written[1]


def as_photo(raw: Tensor, rgb: Tensor, ratio: float) -> Tensor:
    """Join a pair into the one tensor that the task ``low_light`` takes: (N, 8, 2H, 2W).

    Four raw planes (each value four times), three of sRGB, and the ratio.
    """
    wide = raw.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return torch.cat([wide, rgb, torch.full_like(rgb[:, :1], ratio)], dim=1)


def read_raw(path: Path) -> Tensor:
    """Read a camera's RAW file with an RGGB sensor: packed (1, 4, H, W), black level 0, white level 1.

    Raises:
        DataError: It cannot be decoded, or the sensor has another pattern.
        MissingExtraError: rawpy is not installed.
    """
    tools = require("rawpy", "raw")
    try:
        with tools.imread(str(path)) as photo:
            order = photo.color_desc.decode("ascii")
            pattern = "".join(order[index] for index in photo.raw_pattern.ravel())
            mosaic = torch.from_numpy(photo.raw_image_visible.astype("float32"))
            black, white = photo.black_level_per_channel, float(photo.white_level)
    except (OSError, tools.LibRawError) as error:
        raise DataError(explain(f"{path}", expected="a RAW file", got=error, fix="convert it to DNG")) from error
    if pattern != "RGGB":
        fix = "crop one row or column so that the pattern starts with red"
        raise DataError(explain(f"{path}", expected="an RGGB sensor", got=pattern, fix=fix))
    height, width = (side // 2 * 2 for side in mosaic.shape)
    packed = pack_bayer(mosaic[None, None, :height, :width])
    return normalize_raw(packed, torch.tensor(black, dtype=torch.float32).view(1, 4, 1, 1), white)
