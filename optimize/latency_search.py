"""Latency of pruned candidates beside the unpruned network, and the search for the smallest ratio that is enough."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact, save_network
from models.errors import ConfigError, OutOfReachError, UnsupportedError, explain
from models.progress import NULL_PROGRESS, Progress
from models.spec import Precision

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.timing import Measurement
    from export.target import Runner

#: A candidate this much faster than asked ends the search.
_CLOSE = 1.05
#: Quantile of the times that is compared: what other programs on the machine disturb least.
_UNDISTURBED = 0.1
_ROUNDS = 4
_AIM = 1.02
_STEPS = 40


@dataclass(frozen=True)
class Goal:
    """How fast is enough, on every engine measured.

    Attributes:
        speedup: At least so many times faster than the unpruned network, or None.
        latency_ms: At most so many ms, or None.
    """

    speedup: float | None = None
    latency_ms: float | None = None

    def reached(self, point: Point) -> float:
        """Return the share of the goal that a point has reached; 1 and more is enough."""
        if self.latency_ms is not None:
            return self.latency_ms / max(point.latency_ms.values())
        return point.speedup / (self.speedup or 1.0)

    def describe(self) -> str:
        """Say the goal, for example ``1.80x faster``."""
        return f"{self.latency_ms:g} ms" if self.latency_ms is not None else f"{self.speedup:.2f}x faster"


@dataclass(frozen=True)
class Point:
    """One measured candidate.

    Attributes:
        ratio: Pruning ratio asked for, before rounding.
        latency_ms: Median by engine.
        unpruned_ms: Median of the unpruned network in the same measurement, by engine.
        speedups: How many times faster, by engine: ratio of the 10th percentiles, which a busy machine disturbs least.
        is_noisy: Whether the quartiles of any of them lie further apart than 10% of the median.
    """

    ratio: float
    latency_ms: Mapping[str, float]
    unpruned_ms: Mapping[str, float]
    speedups: Mapping[str, float]
    is_noisy: bool = False

    @property
    def speedup(self) -> float:
        """The smallest over the engines."""
        return min(self.speedups.values())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, ms and factors rounded to what is meaningful."""
        result: dict[str, Any] = {"ratio": round(self.ratio, 4), "is_noisy": self.is_noisy}
        for name in ("latency_ms", "unpruned_ms", "speedups"):
            result[name] = {engine: round(value, 3) for engine, value in getattr(self, name).items()}
        return result


Measure = Callable[["nn.Module", float], Point]


class EngineBench:
    """Measures networks against an unpruned one on engines; a context manager that keeps the unpruned sessions open.

    Args:
        unpruned: ``torch`` artifact to compare with.
        engines: Names of targets, or ``torch`` for eager PyTorch.
        precision: What they compute in.
        input_size: Height and width, pixels.
        threads: Of each engine; None leaves its default.
        device: Device of the engines; None takes each one's first.
        warmup: Unrecorded calls.
        iterations: Recorded calls.
        progress: Where to report.

    Raises:
        UnknownNameError: No such engine.
        UnsupportedError: An engine that cannot compute in ``precision`` or cannot run here.
        MissingExtraError: An engine that is not installed.
    """

    def __init__(
        self,
        unpruned: Artifact,
        engines: Sequence[str],
        *,
        precision: Precision = Precision.FP32,
        input_size: tuple[int, int] = (256, 256),
        threads: int | None = None,
        device: str | None = None,
        warmup: int = 5,
        iterations: int = 40,
        progress: Progress = NULL_PROGRESS,
    ) -> None:
        from export.registry import get_target

        self.unpruned, self.precision, self.input_size = unpruned, precision, input_size
        self.threads, self.device, self.warmup, self.iterations = threads, device, warmup, iterations
        self.progress = progress
        self.targets = {name: get_target(name) for name in engines}
        for target in self.targets.values():
            target.check_precision(precision)
            chosen = device or target.devices[0]
            target.check_device(chosen)
            if reason := target.load().can_run(chosen):
                fix = "measure on an engine that runs here: openvino, onnx or torch"
                raise UnsupportedError(explain(f"engine {target.name}", expected="to run here", got=reason, fix=fix))
        self._stack = ExitStack()
        self._runners: dict[str, Runner] = {}

    def __enter__(self) -> EngineBench:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pare-latency-")))
        try:
            for name in self.targets:
                runner = self._open(name, self.unpruned, self._folder / "unpruned")
                self._runners[name] = self._stack.enter_context(runner)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, net: nn.Module, ratio: float) -> Point:
        """Export ``net`` to every engine and measure it in turns with the unpruned network."""
        from benchmarks.timing import percentile

        own = self.unpruned
        path = self._folder / f"candidate-{ratio:.4f}" / "candidate.safetensors"
        artifact = save_network(
            net,
            path,
            model=own.model,
            task=own.task,
            model_kwargs=own.model_kwargs,
            parent=own,
            stages=(*own.stages, "prune"),
        )
        pruned, unpruned, speedups, noisy = {}, {}, {}, False
        for name, base in self._runners.items():
            with self._open(name, artifact, path.parent) as runner:
                times = self._times(base, runner, f"Measuring ratio {ratio:.2f} on {name}")
            pruned[name], unpruned[name] = times["pruned"].p50_ms, times["unpruned"].p50_ms
            least = {key: percentile(value.times_ms, _UNDISTURBED) for key, value in times.items()}
            speedups[name] = least["unpruned"] / least["pruned"]
            noisy = noisy or any(value.is_noisy for value in times.values())
        return Point(ratio, pruned, unpruned, speedups, noisy)

    def _times(self, base: Runner, runner: Runner, description: str) -> dict[str, Measurement]:
        """Measure both in turns; while the machine is noisy, go on for up to ``_ROUNDS`` times as long."""
        from benchmarks.timing import Measurement, measure_interleaved

        feeds = _feeds(base, self.input_size)
        contestants = {"unpruned": lambda: base.infer(feeds), "pruned": lambda: runner.infer(feeds)}
        pooled: dict[str, Measurement] = {}
        for number in range(_ROUNDS):
            times = measure_interleaved(
                contestants,
                warmup=self.warmup,
                iterations=self.iterations,
                seed=number,
                description=description,
                progress=self.progress,
            )
            known = {key: pooled[key].times_ms if key in pooled else () for key in times}
            pooled = {key: Measurement(known[key] + value.times_ms, warmup=self.warmup) for key, value in times.items()}
            if not any(value.is_noisy for value in pooled.values()):
                break
        return pooled

    def _open(self, name: str, artifact: Artifact, folder: Path) -> Runner:
        target = self.targets[name]
        module, device = target.load(), self.device or target.devices[0]
        if not target.exports:
            return module.open_runner(artifact.path, device=device, threads=self.threads)
        folder.mkdir(parents=True, exist_ok=True)
        built = module.export(
            artifact, folder / f"{name}{target.suffix}", precision=self.precision, input_size=self.input_size
        )
        return module.open_runner(built.path, device=device, threads=self.threads)


def _feeds(runner: Runner, size: tuple[int, int]) -> dict[str, Any]:
    """Return random inputs of a runner in their value range, batch 1."""
    import numpy as np

    rng, sides = np.random.default_rng(0), {"N": 1, "H": size[0], "W": size[1]}
    feeds = {}
    for spec in runner.inputs:
        shape = [sides.get(side, 1) if isinstance(side, str) else side for side in spec.shape]
        low, high = spec.value_range or (0.0, 1.0)
        feeds[spec.name] = rng.uniform(low, high, shape).astype(np.float32)
    return feeds


def search(
    build: Callable[[float], nn.Module],
    widths: Callable[[float], Sequence[int]],
    measure: Measure,
    goal: Goal,
    *,
    predict: Callable[[float], float],
    max_ratio: float = 1.0,
    max_trials: int = 8,
    progress: Progress = NULL_PROGRESS,
) -> tuple[Point, list[Point]]:
    """Find the smallest pruning ratio that reaches ``goal``.

    Each trial takes the ratio at which the estimate, corrected by what was measured so far, says that the goal is
    reached; where that lies outside of what is still open, the middle of it.

    Args:
        build: Ratio -> pruned network.
        widths: Ratio -> units left of each group; two ratios of the same widths are measured once.
        measure: (network, ratio) -> Point.
        goal: How fast is enough.
        predict: Ratio -> estimated speedup; it grows with the ratio.
        max_ratio: Largest ratio.
        max_trials: Most measurements.
        progress: Where to report.

    Returns:
        The measured point of the smallest ratio that is enough, and all points by ratio.

    Raises:
        UnsupportedError: Even ``max_ratio`` is not enough.
    """
    points: dict[tuple[int, ...], Point] = {}

    def trial(ratio: float) -> Point:
        key = tuple(widths(ratio))
        if key not in points:
            points[key] = measure(build(ratio), ratio)
            found = points[key]
            progress.note(f"ratio {ratio:.3f}: {_say(found)}" + (", noisy" if found.is_noisy else ""))
        return points[key]

    low, high, trust, best = 0.0, max_ratio, None, None
    for _ in range(max_trials):
        ratio = _guess(low, high, predict, goal, points, trust)
        if tuple(widths(ratio)) in {*points, tuple(widths(0.0))}:
            other = _between(low, high, widths, points)
            if other is None:
                break
            ratio = other
        point = trial(ratio)
        trust = _power(point.speedup, predict(ratio))
        if goal.reached(point) >= 1:
            high, best = ratio, point
            if goal.reached(point) <= _CLOSE:
                break
        else:
            low = ratio
    if best is None:
        best = trial(max_ratio)
        if goal.reached(best) < 1:
            fix = "lower the target, raise prune.max_ratio, or lower prune.round_to"
            got = f"{_say(best)} with everything removed that may be"
            raise OutOfReachError(explain("pruning target", expected=goal.describe(), got=got, fix=fix))
    return best, sorted(points.values(), key=lambda point: point.ratio)


def _say(point: Point) -> str:
    return ", ".join(f"{ms:.2f} ms, {point.speedups[name]:.2f}x on {name}" for name, ms in point.latency_ms.items())


def _guess(
    low: float,
    high: float,
    predict: Callable[[float], float],
    goal: Goal,
    points: Mapping[tuple[int, ...], Point],
    trust: float | None,
) -> float:
    """Return the ratio in (low, high) at which the corrected estimate reaches the goal."""
    wanted = goal.speedup
    if goal.latency_ms is not None:
        if not points:
            return (low + high) / 2
        wanted = max(max(point.unpruned_ms.values()) for point in points.values()) / goal.latency_ms
    assert wanted is not None
    a, b = low, high
    for _ in range(_STEPS):
        middle = (a + b) / 2
        if predict(middle) ** (trust or 1.0) >= wanted * _AIM:
            b = middle
        else:
            a = middle
    edge = 0.02 * (high - low)
    return b if low + edge < b < high - edge else (low + high) / 2


def _power(measured: float, estimated: float) -> float:
    """Return the p of ``measured = estimated ** p``, which says how much of an estimated gain comes true."""
    if min(measured, estimated) <= 1.0:
        return 0.2
    return min(max(math.log(measured) / math.log(estimated), 0.2), 5.0)


def _between(
    low: float, high: float, widths: Callable[[float], Sequence[int]], points: Mapping[tuple[int, ...], Point]
) -> float | None:
    """Return a ratio in (low, high) whose widths were not measured yet, or None."""
    known = {*points, tuple(widths(0.0))}
    for step in range(1, 16):
        ratio = low + (high - low) * ((step * 7) % 16) / 16
        if tuple(widths(ratio)) not in known:
            return ratio
    return None


def check_goal(ratio: float | None, latency_ms: float | None, speedup: float | None) -> None:
    """Raise ConfigError unless at most one of the three ways to say how much is given."""
    given = [name for name, value in _named(ratio, latency_ms, speedup).items() if value is not None]
    if len(given) > 1:
        got = " and ".join(given)
        raise ConfigError(explain("how much to prune", expected="one flag", got=got, fix="leave one out"))


def _named(ratio: float | None, latency_ms: float | None, speedup: float | None) -> dict[str, float | None]:
    return {"--pruning-ratio": ratio, "--target-latency-ms": latency_ms, "--target-speedup": speedup}
