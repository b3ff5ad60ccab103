"""Calibration inputs for INT8: photos of a folder as network inputs, and what of the world they cover.

Ranges that INT8 is fitted to come from these inputs, so a set that is all dark, all grey or a single colour gives
ranges that the next photo leaves. What is covered is measured and reported; a set of one colour is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.color import rgb_to_lab
from models.errors import ConfigError, DataError, explain
from models.photos import centre_crop, to_batch
from models.progress import NULL_PROGRESS, Progress
from models.raw_crops import is_raw_pair, random_cut

if TYPE_CHECKING:
    from models.photos import PhotoSet
    from models.spec import Control
    from models.tasks.base import Task

LUMINANCE_BINS = 16
HUE_SECTORS = 12
FEW_PHOTOS = 16
_GREY_CHROMA = 8.0  # CIELab units below which a pixel has no hue worth counting
_PRESENT = 1e-3  # share of the pixels from which a bin counts as covered
_FLAT = 1.5 / 255  # standard deviation below which a photo is one colour (JPEG noise stays under it)
_SMALLEST_CROP = 0.4  # share of a photo's area that a repeated crop covers at least


@dataclass(frozen=True)
class CalibrationSet:
    """Photos ready to calibrate with.

    Attributes:
        rgb: Crops (n, 3, H, W) in [0, 1].
        inputs: Network inputs (n, C, H, W) of the task.
        photos: Number of different photos in them.
        coverage: What they cover; see ``describe_coverage``.
    """

    rgb: Tensor
    inputs: Tensor
    photos: int
    coverage: Mapping[str, Any]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting INT8 made from this set."""
        return tuple(self.coverage["warnings"])


def gather(
    photos: PhotoSet,
    task: Task,
    *,
    samples: int,
    input_size: tuple[int, int],
    seed: int = 0,
    progress: Progress = NULL_PROGRESS,
) -> CalibrationSet:
    """Crop ``samples`` inputs from ``photos``: each photo's centre first, then random crops of it.

    Args:
        photos: A random part of it is used when there are more photos than samples.
        task: Prepares the input.
        samples: Number of inputs.
        input_size: Height and width of the network inputs, pixels.
        seed: Of the choice of photos and crops.
        progress: Where to report.

    Raises:
        ConfigError: ``samples`` is below 1.
        DataError: No photo can be decoded, or all of them are of one colour.
    """
    if samples < 1:
        fix = "use 64 or more"
        raise ConfigError(explain("calibration samples", expected="1 or more", got=samples, fix=fix))
    size = task.photo_size(input_size)
    chosen = photos.sample(samples, seed=seed, verify=True)
    rng = np.random.default_rng(seed)
    crops: list[Any] = []
    with progress.track("Calibration photos", total=samples) as bar:
        for index in range(len(chosen)):
            photo = chosen.load(index, short_side=round(1.3 * max(size)))
            for turn in range(-(-(samples - index) // len(chosen))):
                part = photo if turn == 0 else _random_part(photo, size, rng)
                crops.append(centre_crop(part, *size))
                bar.advance()
    rgb = to_batch(crops)
    _refuse_one_colour(rgb[:, :3], photos)
    coverage = describe_coverage(rgb[:, :3], photos=len(chosen))
    inputs = torch.cat([task.inputs_of(part) for part in rgb.split(16)])
    coverage["controls"] = _ranges(inputs, task.controls)
    coverage["warnings"] += _gaps(coverage["controls"], task.controls)
    return CalibrationSet(rgb=rgb, inputs=inputs, photos=len(chosen), coverage=coverage)


def _random_part(photo: Any, input_size: tuple[int, int], rng: np.random.Generator) -> Any:
    """Cut out and perhaps mirror a random part of a photo (H, W, C), of the shape that the network sees."""
    if is_raw_pair(photo):
        return random_cut(photo, *input_size, rng)
    height, width = photo.shape[:2]
    scale = min(height / input_size[0], width / input_size[1]) * float(np.sqrt(rng.uniform(_SMALLEST_CROP, 1)))
    rows, columns = max(1, int(input_size[0] * scale)), max(1, int(input_size[1] * scale))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    part = photo[top : top + rows, left : left + columns]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)


def _refuse_one_colour(rgb: Tensor, photos: PhotoSet) -> None:
    deviations = rgb.flatten(2).std(dim=2).amax(dim=1)
    if bool((deviations >= _FLAT).any()):
        return
    mean = (255 * rgb.mean(dim=(0, 2, 3))).round().int().tolist()
    fix = "calibrate on photos like those that the network will see: --calibration-data FOLDER"
    got = f"{len(rgb)} crops of one colour each (mean RGB {tuple(mean)}) from {photos.root}"
    raise DataError(explain("calibration photos", expected="photos with light and dark places", got=got, fix=fix))


@torch.no_grad()
def describe_coverage(rgb: Tensor, *, photos: int) -> dict[str, Any]:
    """Measure what RGB crops (n, 3, H, W) in [0, 1] of ``photos`` different photos cover.

    Returns:
        JSON values: ``photos``, ``samples``; ``luminance``: share of the pixels in each of 16 equal bins of L, and
        ``luminance_covered``: share of the bins that hold at least 0.1% of the pixels; ``hues``: share of the pixels in
        each of 12 sectors of hue (from red, chroma above 8 only), ``hues_covered`` likewise; ``grey``: share of the
        pixels without hue; ``flat``: crops of one colour; ``warnings``: sentences.
    """
    luminance = torch.zeros(LUMINANCE_BINS)
    hues = torch.zeros(HUE_SECTORS)
    count = 0
    for part in rgb.split(16):
        lightness, a, b = rgb_to_lab(part).unbind(dim=1)
        luminance += torch.histc(lightness, LUMINANCE_BINS, 0, 100)
        hue = torch.atan2(b, a)[torch.hypot(a, b) > _GREY_CHROMA] / (2 * torch.pi) % 1
        hues += torch.histc(hue, HUE_SECTORS, 0, 1)
        count += lightness.numel()
    luminance, hues = luminance / count, hues / count
    coverage = {
        "photos": photos,
        "samples": len(rgb),
        "luminance": _rounded(luminance),
        "luminance_covered": float((luminance >= _PRESENT).float().mean()),
        "hues": _rounded(hues),
        "hues_covered": float((hues >= _PRESENT).float().mean()),
        "grey": round(1 - float(hues.sum()), 4),
        "flat": int((rgb.flatten(2).std(dim=2).amax(dim=1) < _FLAT).sum()),
    }
    return {**coverage, "warnings": _warnings(coverage)}


def _ranges(inputs: Tensor, controls: Sequence[Control]) -> dict[str, list[float]]:
    """Return the smallest and the largest value of each control that is packed behind inputs (n, C + k, H, W)."""
    values = inputs[:, inputs.shape[1] - len(controls) :, 0, 0]
    return {
        control.name: [round(float(part.min()), 4), round(float(part.max()), 4)]
        for control, part in zip(controls, values.unbind(dim=1), strict=True)
    }


def _gaps(found: Mapping[str, Sequence[float]], controls: Sequence[Control]) -> list[str]:
    """Return a warning for each control of which less than half of the range was seen."""
    return [
        f"calibrated on {control.name} from {low:g} to {high:g} of {control.minimum:g} to {control.maximum:g}: "
        "ranges beyond were not seen"
        for control in controls
        for low, high in [found[control.name]]
        if high - low < (control.maximum - control.minimum) / 2
    ]


def _rounded(shares: Tensor) -> list[float]:
    return [round(float(share), 4) for share in shares]


def _warnings(coverage: Mapping[str, Any]) -> list[str]:
    found = []
    if coverage["photos"] < FEW_PHOTOS:
        found.append(f"calibrated on {coverage['photos']} photos: {FEW_PHOTOS} or more different ones are safer")
    if coverage["grey"] > 0.98:
        found.append("the calibration photos are grey: colours were not seen")
    elif coverage["hues_covered"] < 0.5:
        found.append(f"the calibration photos cover {coverage['hues_covered']:.0%} of the hues")
    if coverage["luminance_covered"] < 0.75:
        found.append(f"the calibration photos cover {coverage['luminance_covered']:.0%} of the lightness range")
    if coverage["flat"] > coverage["samples"] / 4:
        found.append(f"{coverage['flat']} of {coverage['samples']} calibration crops are of one colour each")
    return found


def describe(coverage: Mapping[str, Any]) -> str:
    """Say in a line what a calibration set covers."""
    return (
        f"{coverage['samples']} inputs of {coverage['photos']} photos, {coverage['luminance_covered']:.0%} of the "
        f"lightness range, {coverage['hues_covered']:.0%} of the hues, {coverage['grey']:.0%} grey"
        + "".join(f", {name} {low:g} to {high:g}" for name, (low, high) in coverage.get("controls", {}).items())
    )


def saturation(outside: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Sum up the share of held-out values outside of the calibrated range of each layer: mean, worst, which layer."""
    if not outside:
        return {"mean": 0.0, "worst": 0.0, "worst_layer": None}
    layer, worst = max(outside, key=lambda item: item[1])
    mean = sum(share for _, share in outside) / len(outside)
    return {"mean": round(mean, 6), "worst": round(worst, 6), "worst_layer": layer}
