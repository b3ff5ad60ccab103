"""Pairs of raw and finished photos: folders of uint16 TIFF, or of RAW files of a camera.

A folder of pairs has files of equal names in two folders:

==============  ===================================================================================================
``input/``      the short exposure of an RGGB sensor, uint16: packed planes R, G, B, G (H, W, 4) or the mosaic
                (2H, 2W); or a RAW file, whose levels are its own
``target/``     the finished photo, sRGB (2H, 2W, 3), uint16; or the RAW file of a long exposure, to be developed
``pairs.json``  optional facts: ``black_level`` (0) and ``white_level`` (65535) of TIFF, and ``ratio``: how much
                longer the wanted exposure is, from 1 to 300, one number or one for each name; left out, the mean
                green of both decides
==============  ===================================================================================================

TIFF is read with tifffile: Pillow takes four channels for RGBA and keeps eight bits of them. What a pair becomes, and
how it is cut: ``models.raw_crops``.

Requires the extra ``raw`` (tifffile; rawpy for RAW files of a camera).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.camera_raw import develop, is_raw, raw_size, read_raw
from models.color import srgb_to_linear, unpack_bayer
from models.errors import DataError, explain, require
from models.paired_photos import INPUT, TARGET, PairedPhotos, find_pairs
from models.photo_decode import MINIMUM_SIDE, Rejected
from models.photos import PhotoSet, Skipped, nothing_usable
from models.tasks.low_light import RATIO

_T = TypeVar("_T")

FACTS = "pairs.json"
WHITE = 65535
_RATIOS = (RATIO.minimum, RATIO.maximum)


@dataclass(frozen=True)
class RawFacts:
    """What the pixels of a folder of pairs do not say.

    Attributes:
        black_level: Sensor value without light, 0 or more.
        white_level: Sensor value of white, above the black level, up to 65535.
        ratio: Wanted exposure over the taken one, in [1, 300]: of all pairs, or by name; None: by their mean greens.
    """

    black_level: float = 0.0
    white_level: float = WHITE
    ratio: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.black_level < self.white_level <= WHITE:
            got, expected = f"{self.black_level:g} and {self.white_level:g}", f"0 <= black < white <= {WHITE}"
            raise ValueError(explain("black_level and white_level", expected=expected, got=got, fix=f"edit {FACTS}"))
        ratios = self.ratio.values() if isinstance(self.ratio, Mapping) else [self.ratio]
        wrong = [value for value in ratios if value is not None and not _RATIOS[0] <= value <= _RATIOS[1]]
        if wrong:
            expected = f"from {_RATIOS[0]:g} to {_RATIOS[1]:g}"
            raise ValueError(explain("ratio", expected=expected, got=wrong[0], fix=f"edit {FACTS}"))


def read_facts(root: Path) -> RawFacts:
    """Read ``pairs.json`` of a folder of pairs; without one, the defaults.

    Raises:
        DataError: It is no JSON, or says what is unknown or impossible.
    """
    path = root / FACTS
    try:
        return RawFacts(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else RawFacts()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        fix = 'write for example {"black_level": 512, "white_level": 16383, "ratio": {"a": 100, "b": 250}}'
        raise DataError(explain(f"{path}", expected="facts of raw pairs", got=error, fix=fix)) from error


class RawPairs(PairedPhotos):
    """Raw pairs by the path of the short exposure; ``load`` gives (2H, 2W, 5) uint16, whatever size is asked for.

    Args:
        paths: Short exposures, in a fixed order.
        partners: Short exposure -> finished photo.
        facts: Levels and ratios.
        root: Folder that holds ``input`` and ``target``.
        skipped: Files that are not used, with reasons.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        partners: Mapping[Path, Path],
        facts: RawFacts,
        *,
        root: Path,
        skipped: list[Skipped] | None = None,
    ) -> None:
        super().__init__(paths, partners, root=root, skipped=skipped)
        self.facts = facts

    def _decode(self, path: Path, short_side: int | None) -> Any:
        partner, facts = self.partners[path], self.facts
        rgb = _from_camera(develop, partner) if is_raw(partner) else _read(partner)
        if is_raw(path):
            packed = _from_camera(read_raw, path)
            raw = (packed[0].permute(1, 2, 0).clamp(0, 1) * WHITE + 0.5).numpy().astype(np.uint16)
        else:
            raw = _read(path)
        _check_shapes(raw.shape, rgb.shape, partner)
        mosaic = _mosaic(raw)
        if not is_raw(path) and (facts.black_level, facts.white_level) != (0, WHITE):
            light = (mosaic.astype(np.float32) - facts.black_level) / (facts.white_level - facts.black_level)
            mosaic = (light.clip(0, 1) * WHITE + 0.5).astype(np.uint16)
        ratio = facts.ratio[_name(path, self.root)] if isinstance(facts.ratio, Mapping) else facts.ratio
        share = np.full_like(mosaic, round(WHITE / (_guess(mosaic, rgb) if ratio is None else ratio)))
        return np.dstack([rgb, mosaic, share])

    def _key(self, path: Path) -> bytes:
        return hashlib.sha256(super()._key(path) + json.dumps(asdict(self.facts), sort_keys=True).encode()).digest()

    def _part(self, paths: Sequence[Path]) -> PhotoSet:
        return RawPairs(paths, self.partners, self.facts, root=self.root, skipped=self.skipped)


def open_raw_pairs(folder: str | Path) -> RawPairs:
    """Find the raw pairs of ``folder/input`` and ``folder/target``, subfolders included; only headers are read.

    Raises:
        DataError: A folder is missing, or there is not one usable pair; the text counts what was skipped.
        MissingExtraError: tifffile, or rawpy for RAW files, is not installed.
    """
    root = Path(folder).expanduser()
    require("tifffile", "raw")
    facts = read_facts(root)

    def check(raw: Path, rgb: Path) -> None:
        finished = (*_from_camera(raw_size, rgb), 3) if is_raw(rgb) else _header(rgb)
        _check_shapes(_from_camera(raw_size, raw) if is_raw(raw) else _header(raw), finished, rgb)
        if isinstance(facts.ratio, Mapping) and _name(raw, root) not in facts.ratio:
            raise Rejected("ratio", f"has no ratio in {FACTS}")

    partners, skipped = find_pairs(root, check)
    if not partners:
        fix = f"write uint16 TIFF: {INPUT}/ packed (H, W, 4) or a mosaic (2H, 2W), {TARGET}/ RGB (2H, 2W, 3); or RAW"
        raise nothing_usable(root, len(skipped), skipped, fix=fix)
    return RawPairs(tuple(partners), partners, facts, root=root, skipped=skipped)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root / INPUT).with_suffix("").as_posix()


def _header(path: Path) -> tuple[int, ...]:
    """Return the shape of a file by its header; Rejected unless it is a uint16 TIFF."""
    tools = require("tifffile", "raw")
    try:
        with tools.TiffFile(path, is_shaped=False) as file:
            series = file.series[0]
            kind, shape = str(series.dtype), tuple(series.shape)
    except (OSError, ValueError, IndexError, tools.TiffFileError) as error:
        raise Rejected("non-image", f"is not a TIFF file: {error}") from error
    if kind != "uint16":
        raise Rejected("depth", f"has {kind} values, not uint16")
    return shape


def _from_camera(read: Callable[[Path], _T], path: Path) -> _T:
    """Call ``read`` on a RAW file; Rejected where it cannot."""
    try:
        return read(path)
    except DataError as error:
        raise Rejected("camera", f"cannot be used: {error}") from error


def _check_shapes(raw: tuple[int, ...], rgb: tuple[int, ...], path: Path) -> None:
    fits = len(rgb) == 3 and rgb[2] == 3
    packed = (rgb[0] // 2, rgb[1] // 2, 4)
    if not fits or rgb[0] % 2 or rgb[1] % 2 or raw not in (packed, rgb[:2], (*rgb[:2], 1)):
        expected = "packed (H, W, 4) or a mosaic (2H, 2W), and RGB (2H, 2W, 3)"
        raise Rejected("size", f"is {raw} and its target {path.name} is {rgb}, not {expected}")
    if min(rgb[:2]) < MINIMUM_SIDE:
        raise Rejected("tiny", f"is {rgb[0]}x{rgb[1]}, under {MINIMUM_SIDE} pixels on a side")


def _read(path: Path) -> Any:
    tools = require("tifffile", "raw")
    try:
        return tools.imread(path, is_shaped=False)
    except (OSError, ValueError, KeyError, tools.TiffFileError) as error:  # KeyError: an unknown compression
        raise Rejected("corrupt", f"cannot be decoded: {error}") from error


def _mosaic(raw: Any) -> Any:
    """Packed (H, W, 4), or a mosaic (2H, 2W) or (2H, 2W, 1) -> mosaic (2H, 2W)."""
    if raw.ndim == 2 or raw.shape[2] == 1:
        return raw.reshape(raw.shape[:2])
    return unpack_bayer(torch.from_numpy(raw).permute(2, 0, 1)[None])[0, 0].numpy()


def _guess(mosaic: Any, rgb: Any) -> float:
    """Return how much lighter the finished photo is: mean linear green over mean green of the sensor, in [1, 300]."""
    taken = (mosaic[0::2, 1::2].mean() + mosaic[1::2, 0::2].mean()) / 2 / WHITE
    wanted = srgb_to_linear(torch.from_numpy(rgb[..., 1] / WHITE)).mean()
    return float(np.clip(float(wanted) / max(taken, 1e-9), *_RATIOS))


def write_pair(folder: Path, name: str, raw: Tensor, rgb: Tensor) -> tuple[Path, Path]:
    """Write raw (1, 4, H, W) and sRGB (1, 3, 2H, 2W), both in [0, 1], as a pair of ``folder``; return both files."""
    tools, written = require("tifffile", "raw"), []
    for kind, values in ((INPUT, raw), (TARGET, rgb)):
        path = folder / kind / f"{name}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (values[0].clamp(0, 1) * WHITE).round().int().permute(1, 2, 0).numpy().astype("uint16")
        tools.imwrite(path, pixels, photometric="minisblack" if kind == INPUT else "rgb", planarconfig="contig")
        written.append(path)
    return written[0], written[1]
