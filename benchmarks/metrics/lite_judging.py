"""How well ``lite`` reproduces LPIPS-squeeze, on photos and kinds of distortion that it has not learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.metrics.distortions import CHROMA_KINDS, HELD_OUT, TRAINED, Random
from benchmarks.metrics.lpips import LPIPS, in_parts, load_lpips
from models.photos import PhotoSet, centre_square, open_photos, to_batch
from models.progress import NULL_PROGRESS, Progress

KINDS = {**TRAINED, **HELD_OUT}
NO_CHROMA = "no-chroma"
_BINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.4, float("inf"))


@dataclass(frozen=True)
class Comparison:
    """One pair of images.

    Attributes:
        kind: Kind of distortion, with ``-small`` for two close versions of one colorizer's output.
        size: Side of the square, pixels.
        lite: Distance by ``lite``.
        official: Distance by ``squeeze``.
    """

    kind: str
    size: int
    lite: float
    official: float


def compare_nets(
    lite: LPIPS,
    official: LPIPS,
    photos: PhotoSet,
    *,
    sizes: Sequence[int] = (256, 128),
    seed: int = 1,
    progress: Progress = NULL_PROGRESS,
) -> list[Comparison]:
    """Distort every photo in every way, with uniform strengths, and measure by both nets.

    Beside each pair of photo and distorted photo, a pair of an imitated colorizer's output and a slightly distorted
    version of it: what a student is to its teacher. And the photo without any chroma: where a colorizer starts.
    """
    rows: list[Comparison] = []
    with progress.track("Comparing lite with squeeze", total=len(sizes) * len(photos)) as bar, torch.no_grad():
        for size in sizes:
            previous = _square(photos, len(photos) - 1, size)
            for index in range(len(photos)):
                photo = _square(photos, index, size)
                rng = np.random.default_rng((seed, size, index))
                preds, target, kinds = _pairs(photo, previous, rng)
                measured = (in_parts(net, preds, target).tolist() for net in (lite, official))
                rows += [Comparison(kind, size, *values) for kind, *values in zip(kinds, *measured, strict=True)]
                previous = photo
                bar.advance(1)
    return rows


def _square(photos: PhotoSet, index: int, size: int) -> Tensor:
    return to_batch([centre_square(photos.load(index), size)])[0]


def _pairs(photo: Tensor, other: Tensor, rng: Random) -> tuple[Tensor, Tensor, list[str]]:
    preds, target, kinds = [], [], []
    colorized = TRAINED["colorizer"](photo, float(rng.random()), rng, other)
    preds.append(TRAINED["desaturate"](photo, 1.0, rng, other))
    target.append(photo)
    kinds.append(NO_CHROMA)
    for kind, function in KINDS.items():
        preds.append(function(photo, float(rng.random()), rng, other))
        preds.append(function(colorized, 0.3 * float(rng.random()), rng, other))
        target += [photo, colorized]
        kinds += [kind, f"{kind}-small"]
    return torch.stack(preds), torch.stack(target), kinds


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the rank correlation of two arrays (n,) without ties."""
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (first, second)]).astype(np.float64)
    matrix = np.asarray(np.corrcoef(ranks))
    return float(matrix[0, 1])


def summarize(rows: Iterable[Comparison]) -> dict[str, float]:
    """Return Spearman, mean absolute error, bias, mean of the official distances, and how many pairs."""
    values = np.array([(row.lite, row.official) for row in rows])
    lite, official = values.T
    return {
        "pairs": len(values),
        "spearman": round(spearman(lite, official), 4),
        "mae": round(float(np.abs(lite - official).mean()), 5),
        "bias": round(float((lite - official).mean()), 5),
        "p95_error": round(float(np.quantile(np.abs(lite - official), 0.95)), 5),
        "mean_official": round(float(official.mean()), 5),
    }


def report(rows: Sequence[Comparison]) -> dict[str, Any]:
    """Return the summaries for the card: by size, held-out and colour kinds, every kind, and by distance."""
    content: dict[str, Any] = {"all": summarize(rows)}
    for size in sorted({row.size for row in rows}):
        content[f"size_{size}"] = summarize(row for row in rows if row.size == size)
    groups = {
        "held_out_kinds": lambda row: _plain(row.kind) in HELD_OUT,
        "colour_kinds": lambda row: _plain(row.kind) in CHROMA_KINDS,
        "close_pairs": lambda row: row.kind.endswith("-small"),
    }
    content |= {name: summarize(filter(chosen, rows)) for name, chosen in groups.items()}
    content["by_kind"] = {kind: summarize(row for row in rows if row.kind == kind) for kind in (NO_CHROMA, *KINDS)}
    content["by_distance"] = {}
    for low, high in pairwise(_BINS):
        part = [row for row in rows if low <= row.official < high]
        if len(part) > 1:
            content["by_distance"][f"{low}-{high}"] = summarize(part)
    return content


def _plain(kind: str) -> str:
    return kind.removesuffix("-small")


def judge_lite(
    lite: LPIPS, eval_data: Path, lpips_weights: Path | None = None, *, progress: Progress = NULL_PROGRESS
) -> dict[str, Any]:
    """Compare ``lite`` with the official net on a folder of photos; see ``report``.

    Raises:
        DataError: No photos.
        MissingWeightsError: No official weights of ``squeeze``.
    """
    photos = open_photos(eval_data)
    rows = compare_nets(lite, load_lpips("squeeze", lpips_weights), photos, progress=progress)
    return {"photos": len(photos), "photos_fingerprint": photos.fingerprint, **report(rows)}
