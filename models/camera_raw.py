"""RAW files of a camera, read by LibRaw: what the sensor saw, and the photo that LibRaw develops of it.

Both are in the orientation of the sensor and cut to whole Bayer cells, so that they fit each other. Black and white
level are the file's own.

Requires the extra ``raw`` (rawpy).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.color import normalize_raw, pack_bayer
from models.errors import DataError, explain, require

#: File suffixes that are taken for RAW files.
SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw")


def is_raw(path: Path) -> bool:
    """Say whether a file is a RAW file by its suffix."""
    return path.suffix.lower() in SUFFIXES


def raw_size(path: Path) -> tuple[int, int]:
    """Return height and width of the mosaic, both even, by the header.

    Raises:
        DataError: It cannot be read, or the sensor has another pattern than RGGB.
        MissingExtraError: rawpy is not installed.
    """
    with _open(path) as photo:
        return photo.sizes.height // 2 * 2, photo.sizes.width // 2 * 2


def read_raw(path: Path) -> Tensor:
    """Read what an RGGB sensor saw: packed (1, 4, H, W), black level 0, white level 1.

    Raises:
        DataError: It cannot be decoded, or the sensor has another pattern.
        MissingExtraError: rawpy is not installed.
    """
    with _open(path) as photo:
        mosaic = torch.from_numpy(photo.raw_image_visible.astype("float32"))
        black, white = photo.black_level_per_channel, float(photo.white_level)
    height, width = (side // 2 * 2 for side in mosaic.shape)
    packed = pack_bayer(mosaic[None, None, :height, :width])
    return normalize_raw(packed, torch.tensor(black, dtype=torch.float32).view(1, 4, 1, 1), white)


def develop(path: Path) -> Any:
    """Develop a RAW file: sRGB (2H, 2W, 3) uint16 with the camera's white balance, not brightened.

    Raises:
        DataError: It cannot be decoded, or the sensor has another pattern.
        MissingExtraError: rawpy is not installed.

    Source: the finished photos of Chen et al. 2018.
    """
    with _open(path) as photo:
        rgb = photo.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, user_flip=0)
    return rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file of an RGGB sensor; what LibRaw raises inside of the block becomes a DataError."""
    tools = require("rawpy", "raw")
    try:
        with tools.imread(str(path)) as photo:
            order = photo.color_desc.decode("ascii")
            cells = [] if photo.raw_pattern is None else photo.raw_pattern.ravel()
            pattern = "".join(order[index] for index in cells)
            if pattern != "RGGB":
                fix = "crop one row or column so that the pattern starts with red"
                got = pattern or "no mosaic"
                raise DataError(explain(f"{path}", expected="an RGGB sensor", got=got, fix=fix))
            yield photo
    except (OSError, tools.LibRawError) as error:
        raise DataError(explain(f"{path}", expected="a RAW file", got=error, fix="convert it to DNG")) from error
