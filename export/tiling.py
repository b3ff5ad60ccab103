"""Photos of any size through a network of one size: overlapping tiles, blended by a Hann window that sums to one.

Each axis is covered by tiles whose neighbours share at least ``overlap`` pixels. Where two share, one fades out as the
other fades in, along ``sin^2`` and ``cos^2`` (the halves of a Hann window, sampled between the pixels, so that none is
zero); at the border of the photo nothing fades: a plain ``hann_window`` is zero there and would leave a dark frame.
Tiles start at multiples of the network's stride, so that a tile sees the same grid as the whole photo would.

Works on arrays with any callable: a ``Runner`` of any target (``infer_with``), or a network in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.controls import graph_feeds
from models.errors import ConfigError, ExportError, explain
from models.progress import NULL_PROGRESS, Progress
from models.spec import SizeRequirements

if TYPE_CHECKING:
    from export.target import Runner

Array = NDArray[np.float32]
Infer = Callable[[Array], Array]
MINIMUM_OVERLAP = 64
DEFAULT_TILE = 512


@dataclass(frozen=True)
class Tiling:
    """How a photo is cut.

    Attributes:
        tile: Height and width of a tile, pixels.
        overlap: Pixels that neighbours share at least.
        stride: Tiles start at multiples of this, pixels: ``SizeRequirements.multiple_of``.
    """

    tile: tuple[int, int]
    overlap: int = MINIMUM_OVERLAP
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= min(self.tile) // 2:
            fix = "use larger tiles or less overlap"
            expected = f"an overlap of 0 to {min(self.tile) // 2} (half of a tile)"
            raise ConfigError(explain("tiling", expected=expected, got=self.overlap, fix=fix))
        if self.stride < 1 or any(side % self.stride for side in self.tile):
            got = f"tile {self.tile[0]}x{self.tile[1]}, stride {self.stride}"
            fix = "use a size that the network takes"
            raise ConfigError(explain("tiling", expected="a tile that is a multiple of the stride", got=got, fix=fix))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "tile": list(self.tile)}


def choose_tiling(
    size: SizeRequirements, *, tile: tuple[int, int] | None = None, overlap: int = MINIMUM_OVERLAP
) -> Tiling:
    """Return a tiling of a network of ``size``; ``tile`` is the fixed size of an artifact, None where it is open.

    An open size gets tiles of 512 pixels, or of four overlaps where that is more. An artifact too small for the overlap
    gets half of its tile.
    """
    side = max(DEFAULT_TILE, 4 * overlap)
    height, width = size.fit(side, side) if tile is None else tile
    return Tiling((height, width), min(overlap, min(height, width) // 2), size.multiple_of)


def starts(length: int, tile: int, overlap: int, stride: int) -> list[int]:
    """Return where tiles begin along an axis of ``length`` pixels, a multiple of ``stride`` and at least ``tile``."""
    step = max((tile - overlap) // stride * stride, stride)
    found = list(range(0, length - tile, step))
    return [*found, length - tile]


def fades(length: int, tile: int, begins: list[int]) -> NDArray[np.float64]:
    """Return the weight of each tile along an axis, (tiles, length); the weights of a pixel sum to one."""
    weights = np.zeros((len(begins), length))
    for index, begin in enumerate(begins):
        weight = np.ones(tile)
        if index:
            shared = begins[index - 1] + tile - begin
            weight[:shared] *= _rise(shared)
        if index + 1 < len(begins):
            shared = begin + tile - begins[index + 1]
            weight[tile - shared :] *= _rise(shared)[::-1]
        weights[index, begin : begin + tile] = weight
    return weights / weights.sum(axis=0)


def _rise(count: int) -> NDArray[np.float64]:
    return np.sin(np.pi / 2 * (np.arange(count) + 0.5) / max(count, 1)) ** 2


def run_tiled(image: Array, infer: Infer, tiling: Tiling, *, progress: Progress = NULL_PROGRESS) -> Array:
    """Compute a network on an image of any size.

    Args:
        image: (1, C, H, W); smaller than a tile, or no multiple of the stride: continued by reflection, and cut again.
        infer: (1, C, tile height, tile width) -> (1, C', s tile height, s tile width) for one integer s >= 1.
        tiling: How it is cut.
        progress: Where to report.

    Returns:
        (1, C', s H, s W).

    Raises:
        ExportError: ``infer`` answers with another shape.
    """
    height, width = image.shape[2:]
    padded = _padded(image, tiling)
    rows, columns = (
        starts(length, side, tiling.overlap, tiling.stride)
        for length, side in zip(padded.shape[2:], tiling.tile, strict=True)
    )
    sheet: NDArray[np.float32] | None = None
    scale = 1
    down = across = np.empty((0, 0))
    with progress.track("Tiles", total=len(rows) * len(columns)) as bar:
        for i, top in enumerate(rows):
            for j, left in enumerate(columns):
                part = padded[:, :, top : top + tiling.tile[0], left : left + tiling.tile[1]]
                answer = infer(np.ascontiguousarray(part))
                if sheet is None:
                    scale = _scale_of(answer, tiling)
                    sides = [scale * length for length in padded.shape[2:]]
                    sheet = np.zeros((1, answer.shape[1], *sides), np.float32)
                    down = fades(sides[0], scale * tiling.tile[0], [scale * row for row in rows])
                    across = fades(sides[1], scale * tiling.tile[1], [scale * column for column in columns])
                _scale_of(answer, tiling)
                y = slice(scale * top, scale * (top + tiling.tile[0]))
                x = slice(scale * left, scale * (left + tiling.tile[1]))
                weight = np.outer(down[i, y], across[j, x]).astype(np.float32)
                sheet[:, :, y, x] += answer * weight
                bar.advance()
    assert sheet is not None
    return np.ascontiguousarray(sheet[:, :, : scale * height, : scale * width])


def _padded(image: Array, tiling: Tiling) -> Array:
    missing = [
        max(side, -(-length // tiling.stride) * tiling.stride) - length
        for length, side in zip(image.shape[2:], tiling.tile, strict=True)
    ]
    return np.pad(image, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")


def _scale_of(answer: Array, tiling: Tiling) -> int:
    scale = answer.shape[2] // tiling.tile[0] if answer.ndim == 4 else 0
    if scale < 1 or answer.shape[2:] != (scale * tiling.tile[0], scale * tiling.tile[1]):
        expected = f"(1, C, {tiling.tile[0]}, {tiling.tile[1]}) or a multiple of that height and width"
        fix = "tile networks whose output is as large as their input, or an integer times that"
        raise ExportError(explain("output of a tile", expected=expected, got=tuple(answer.shape), fix=fix))
    return scale


def infer_with(runner: Runner, defaults: Mapping[str, float] | None = None) -> Infer:
    """Return a call (1, C, h, w) -> (1, C', h', w) of an open runner; run-time controls may be packed behind the image.

    Args:
        runner: Of any target.
        defaults: Values of controls that are not packed.
    """

    def infer(tile: Array) -> Array:
        return runner.infer(graph_feeds(tile, runner.inputs, defaults))[runner.outputs[0].name]

    return infer


@dataclass(frozen=True)
class Seams:
    """How much tiles show.

    Attributes:
        border_step: Mean absolute difference of neighbours across the lines where a tile begins or ends.
        interior_step: The same across all other lines.
        seam: ``border_step / interior_step``, over the same ratio of the untiled output: 1 is no seam.
        max_abs: Largest difference between tiled and untiled.
        mean_abs: Mean difference.
    """

    border_step: float
    interior_step: float
    seam: float
    max_abs: float
    mean_abs: float


def measure_seams(tiled: Array, untiled: Array, tiling: Tiling) -> Seams:
    """Compare what tiles gave with what the whole gave, both (1, C, H, W)."""
    border, interior = _steps(tiled, tiling)
    known_border, known_interior = _steps(untiled, tiling)
    difference = np.abs(tiled - untiled)
    least = 1e-12
    seam = (border / max(interior, least)) / max(known_border / max(known_interior, least), least)
    return Seams(border, interior, float(seam), float(difference.max()), float(difference.mean()))


def _steps(image: Array, tiling: Tiling) -> tuple[float, float]:
    """Return the mean absolute step across tile borders and elsewhere, both axes together."""
    at_border: list[Array] = []
    elsewhere: list[Array] = []
    for axis, tile in ((2, tiling.tile[0]), (3, tiling.tile[1])):
        length = -(-max(image.shape[axis], tile) // tiling.stride) * tiling.stride
        begins = starts(length, tile, tiling.overlap, tiling.stride)
        lines = {line for begin in begins for line in (begin, begin + tile) if 0 < line < image.shape[axis]}
        steps = np.moveaxis(np.abs(np.diff(image, axis=axis)), axis, 0)
        chosen = np.zeros(len(steps), bool)
        chosen[[line - 1 for line in lines]] = True
        at_border.append(steps[chosen].ravel())
        elsewhere.append(steps[~chosen].ravel())
    means = [np.concatenate(part) for part in (at_border, elsewhere)]
    border, interior = (float(part.mean()) if part.size else 0.0 for part in means)
    return border, interior
