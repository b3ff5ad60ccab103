"""Latency: raw samples kept, everything else derived from them; contestants interleaved; noise flagged.

Contestants take turns in short blocks, in an order shuffled each round, so that a drift of the machine (heat, a
neighbour, a clock that steps down) falls on all of them alike. At the start of each block a contestant runs unrecorded
until its weights are back in the caches and the threads of the one before have gone to sleep: what is recorded is the
steady state of an app that runs one network.

Source: the noise rule (IQR over 10% of the median) is that of ``torch.utils.benchmark``.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.errors import ConfigError, explain
from models.progress import NULL_PROGRESS, Progress

NOISE_LIMIT = 0.10
_BLOCKS = 10
_SETTLE_CALLS = 2
_SETTLE_NS = 20_000_000
_NS_PER_MS = 1e6


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the ``fraction`` quantile (0 to 1) of ``values`` by linear interpolation, as ``numpy.percentile`` does."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * fraction
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Measurement:
    """Times of one contestant.

    Attributes:
        times_ms: Every recorded call, in the order of measuring, ms.
        batch: Images a call.
        warmup: Calls made before the first recorded one.
        includes_transfers: Whether copying input and output between host and device is inside the times.

    Raises:
        ConfigError: No sample, or one that is not a positive number.
    """

    times_ms: tuple[float, ...]
    batch: int = 1
    warmup: int = 0
    includes_transfers: bool = True

    def __post_init__(self) -> None:
        bad = [time_ms for time_ms in self.times_ms if not (math.isfinite(time_ms) and time_ms > 0)]
        if not self.times_ms or bad or self.batch < 1:
            got = f"{len(self.times_ms)} samples, {len(bad)} of them not positive, batch {self.batch}"
            fix = "measure at least one call"
            raise ConfigError(explain("measurement", expected="positive times and batch", got=got, fix=fix))

    @property
    def p50_ms(self) -> float:
        """Median, ms."""
        return statistics.median(self.times_ms)

    @property
    def p95_ms(self) -> float:
        """95th percentile, ms."""
        return percentile(self.times_ms, 0.95)

    @property
    def iqr_ms(self) -> float:
        """Distance between the quartiles, ms."""
        return percentile(self.times_ms, 0.75) - percentile(self.times_ms, 0.25)

    @property
    def images_per_s(self) -> float:
        """Throughput at the median."""
        return self.batch * 1000.0 / self.p50_ms

    @property
    def is_noisy(self) -> bool:
        """Whether the quartiles lie further apart than 10% of the median: do not trust small differences."""
        return self.iqr_ms > NOISE_LIMIT * self.p50_ms


def measure_interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 10,
    iterations: int = 50,
    seed: int = 0,
    batch: int = 1,
    includes_transfers: bool = True,
    description: str = "Measuring latency",
    progress: Progress = NULL_PROGRESS,
) -> dict[str, Measurement]:
    """Time every contestant ``iterations`` times, taking turns.

    Args:
        contestants: Name -> a call that returns when its answer is there (a GPU call must synchronize).
        warmup: Unrecorded calls of each before the first round.
        iterations: Recorded calls of each.
        seed: Of the order in which they take turns.
        batch: Images a call.
        includes_transfers: Recorded in each Measurement; says what the calls contain.
        description: Shown by ``progress``.
        progress: Where to report.

    Returns:
        Name -> Measurement, in the order of ``contestants``.

    Raises:
        ConfigError: ``iterations`` below 1, or ``warmup`` below 0.
    """
    if iterations < 1 or warmup < 0:
        got = f"{iterations} iterations, {warmup} warm-up calls"
        raise ConfigError(explain("timing", expected="iterations >= 1, warmup >= 0", got=got, fix="raise them"))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(seed).shuffle
    with progress.track(description, total=len(order) * (warmup + iterations)) as bar:
        for name in order:
            for _ in range(warmup):
                contestants[name]()
            bar.advance(warmup)
        for size in _block_sizes(iterations):
            shuffle(order)
            for name in order:
                times[name] += _block(contestants[name], size)
                bar.advance(size)
    return {name: Measurement(tuple(times[name]), batch, warmup, includes_transfers) for name in contestants}


def _block_sizes(iterations: int) -> list[int]:
    """Split the iterations into at most ten blocks of nearly the same size, no empty one."""
    blocks = min(_BLOCKS, iterations)
    return [iterations * (block + 1) // blocks - iterations * block // blocks for block in range(blocks)]


def _block(call: Callable[[], object], size: int) -> list[float]:
    """Settle, then record ``size`` calls; the garbage collector waits outside."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start, calls = time.perf_counter_ns(), 0
        while calls < _SETTLE_CALLS or time.perf_counter_ns() - start < _SETTLE_NS:
            call()
            calls += 1
        recorded = []
        for _ in range(size):
            begin = time.perf_counter_ns()
            call()
            recorded.append(max(time.perf_counter_ns() - begin, 1) / _NS_PER_MS)
    finally:
        if collecting:
            gc.enable()
    return recorded
