"""The ways to balance the colours of a large photo, compared: time, memory, colour error, LPIPS.

Each way runs in a process of its own, one thread, after a first call at 64 x 64 that is not counted: seconds to fit
(all that happens at 224 x 224 or on the thumbnail) and to apply (every pixel), and the memory above that of the process
before. Photos are enlarged to the size asked for where they are smaller. The colour error is the mean CIEDE2000 of
every 16th pixel, LPIPS that of the pictures shrunk to 512 pixels a side at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ConfigError, explain
from models.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from models.photos import PhotoSet

WAYS = {
    "nothing": "the distorted photo",
    "chain, mlp": "latent balancer, network fitted online, every pixel",
    "chain, ridge": "latent balancer, closed form, every pixel",
    "chain, lut": "latent balancer, closed form sampled into a 17-node table, tetrahedral",
    "student": "balance_lut, its graph at full size",
    "student, lut": "balance_lut for the table only, tetrahedral",
}
_SHOWN = 512
_STEP = 4


@dataclass(frozen=True)
class BalanceRow:
    """What one way costs and gives, the mean over the photos.

    Attributes:
        way: A key of ``WAYS``.
        fit_s: Seconds from the photo to its colour map.
        apply_s: Seconds from the colour map to the result.
        memory_mb: Highest resident memory above that before, 10^6 bytes, input and output among them.
        delta_e: Mean CIEDE2000 to the undistorted photo.
        lpips: LPIPS to the undistorted photo.
        repeats: The same photo gave the same bytes twice.
    """

    way: str
    fit_s: float
    apply_s: float
    memory_mb: float
    delta_e: float
    lpips: float
    repeats: bool


def compare_ways(
    photos: PhotoSet,
    out: Path,
    *,
    size: tuple[int, int] = (3000, 4000),
    limit: int = 2,
    lpips_net: str = "lite",
    progress: Progress = NULL_PROGRESS,
) -> list[BalanceRow]:
    """Compare all ways on up to ``limit`` photos of ``size`` (height, width) and write ``out/balance.png``.

    Raises:
        ConfigError: The size or the limit is not positive.
    """
    from models.photos import centre_crop

    if min(size) < 64 or limit < 1:
        got = f"{size[0]}x{size[1]}, {limit} photos"
        raise ConfigError(explain("comparison", expected="64 pixels and one photo at least", got=got, fix="raise it"))
    arrays = [centre_crop(photos.load(index), *size) for index in range(min(limit, len(photos)))]
    rows, shown = [], {}
    with progress.track("Comparing", total=len(WAYS)) as bar:
        for way in WAYS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                row, pictures = pool.submit(_measure, way, arrays, lpips_net).result()
            rows.append(row)
            shown[way] = pictures
            bar.advance(1)
    _draw(shown, out / "balance.png")
    return rows


def _measure(way: str, arrays: list[Any], lpips_net: str) -> tuple[BalanceRow, list[Any]]:
    """Run one way over the photos in this fresh process; return its row and shrunk pictures (H, W, 3) uint8."""
    import psutil
    import torch

    from benchmarks.machine import Extremes
    from benchmarks.metrics import lpips
    from models.photos import to_batch
    from models.tasks.balance import Balance

    torch.set_num_threads(1)
    task, ready = Balance(), _ready(way)
    ready(torch.rand(1, 3, 64, 64))()
    totals: list[list[float]] = []
    pictures = []
    for array in arrays:
        bad, truth = task.prepare(to_batch([array]))
        before = psutil.Process().memory_info().rss
        resident = Extremes(lambda: psutil.Process().memory_info().rss)
        start = time.perf_counter()
        apply = ready(bad)
        middle = time.perf_counter()
        with resident:
            result = apply()
        end = time.perf_counter()
        repeats = float(torch.equal(ready(bad)(), result))
        error = _delta_e(result, truth)
        small = [_shrunk(picture) for picture in (result, truth)]
        seen = float(lpips(*small, net=lpips_net))
        pictures.append((small[0][0].permute(1, 2, 0) * 255).round().byte().numpy())
        memory = max(resident.highest - before, 0) / 1e6
        totals.append([middle - start, end - middle, memory, error, seen, repeats])
    fit_s, apply_s, memory_mb, delta_e, distance, same = (sum(c) / len(totals) for c in zip(*totals, strict=True))
    return BalanceRow(way, fit_s, apply_s, memory_mb, delta_e, distance, repeats=same == 1.0), pictures


def _ready(way: str) -> Callable[[Tensor], Callable[[], Tensor]]:
    """Load what a way needs; return the function from a photo to what applies its colour map."""
    from models.balance_chain import apply_mapper, bake, fit_mapper
    from models.cube import Cube
    from models.registry import create_model

    if way == "nothing":
        return lambda bad: lambda: bad
    net: Any = create_model("balance_lut" if way.startswith("student") else "latent_balancer", pretrained=True)

    def fit(bad: Tensor) -> Callable[[], Tensor]:
        if way == "student":
            return lambda: _inference(net, bad)
        if way == "student, lut":
            cube = Cube(_inference(net.table, bad)[0].clone())
            return lambda: cube.apply(bad).clamp(0, 1)
        mapper = fit_mapper(net, bad, kind="mlp" if way == "chain, mlp" else "ridge")
        if way == "chain, lut":
            baked = bake(mapper)
            return lambda: baked.apply(bad)
        return lambda: apply_mapper(mapper, bad)

    return fit


def _inference(function: Callable[[Tensor], Tensor], bad: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return function(bad)


def _delta_e(result: Tensor, truth: Tensor) -> float:
    from benchmarks.metrics import delta_e_2000

    return float(delta_e_2000(*(picture[:, :, ::_STEP, ::_STEP] for picture in (result, truth))).mean())


def _shrunk(picture: Tensor) -> Tensor:
    from torch.nn import functional

    scale = min(_SHOWN / max(picture.shape[2:]), 1.0)
    size = [max(round(side * scale), 32) for side in picture.shape[2:]]
    return functional.interpolate(picture, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _draw(shown: dict[str, list[Any]], path: Path) -> None:
    """Write the pictures side by side, a row a photo, a column a way."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(shown.values())))
    rows = [np.concatenate([pictures[index] for pictures in shown.values()], axis=1) for index in range(count)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def table(rows: list[BalanceRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| way | fit, s | apply, s | memory, MB | delta E 2000 | LPIPS | repeats |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = f"{row.fit_s:.2f} | {row.apply_s:.2f} | {row.memory_mb:.0f} | {row.delta_e:.2f} | {row.lpips:.4f}"
        lines.append(f"| {row.way} | {numbers} | {'yes' if row.repeats else 'no'} |")
    return "\n".join(lines)


def to_json(rows: list[BalanceRow]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [asdict(row) for row in rows]
