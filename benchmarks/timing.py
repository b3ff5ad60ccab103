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
_LONG_NS = 1_000_000_000  # what a call of a second loses before it has settled is a few thousandths of it
_LEAST_SAMPLES = 3
_NS_PER_S = 1e9
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
    max_seconds: float | None = None,
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
        max_seconds: A contestant that has run for so long, warm-up included, and has three samples is left at those:
            on a busy machine a call may take a hundred times longer. None: no limit.
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
    players = {name: _Player(call, max_seconds) for name, call in contestants.items()}
    order, shuffle = list(players), random.Random(seed).shuffle
    with progress.track(description, total=len(order) * (warmup + iterations)) as bar:
        for player in players.values():
            player.warm_up(warmup)
            bar.advance(warmup)
        for size in _block_sizes(iterations):
            shuffle(order)
            for name in order:
                players[name].play(size)
                bar.advance(size)
    return {
        name: Measurement(tuple(player.times_ms), batch, player.warmed, includes_transfers)
        for name, player in players.items()
    }


def _block_sizes(iterations: int) -> list[int]:
    """Split the iterations into at most ten blocks of nearly the same size, no empty one."""
    blocks = min(_BLOCKS, iterations)
    return [iterations * (block + 1) // blocks - iterations * block // blocks for block in range(blocks)]


class _Player:
    """One contestant: its call, its samples, and the time it has left."""

    def __init__(self, call: Callable[[], object], max_seconds: float | None) -> None:
        self.call, self.times_ms, self.warmed, self.last_ns = call, list[float](), 0, 0
        self.left_ns = math.inf if max_seconds is None else max_seconds * _NS_PER_S

    def warm_up(self, calls: int) -> None:
        """Make up to ``calls`` calls, in no more than a quarter of the time that is there."""
        limit = self.left_ns / 4
        while self.warmed < calls and limit > 0:
            spent = self._once()
            self.warmed += 1
            limit -= spent

    def play(self, size: int) -> None:
        """Settle, but for long calls, then record ``size`` calls; the garbage collector waits outside."""
        if self._is_done():
            return
        collecting = gc.isenabled()
        gc.disable()
        try:
            settled, calls = 0, 0
            while self.last_ns < _LONG_NS and (settled < _SETTLE_NS or calls < _SETTLE_CALLS):
                settled += self._once()
                calls += 1
            for _ in range(size):
                self.times_ms.append(self._once() / _NS_PER_MS)
                if self._is_done():
                    break
        finally:
            if collecting:
                gc.enable()

    def _is_done(self) -> bool:
        return self.left_ns <= 0 and len(self.times_ms) >= _LEAST_SAMPLES

    def _once(self) -> int:
        begin = time.perf_counter_ns()
        self.call()
        spent = max(time.perf_counter_ns() - begin, 1)
        self.left_ns -= spent
        self.last_ns = spent
        return spent
