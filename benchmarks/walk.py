"""Where has the quality gone: the way from the teacher to each shipped artifact, step by step, from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.row import STAGE_NAMES, TARGET_NAMES, BenchmarkRow

_ORIGINS = ("teacher", "train")
_ORDER = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3}


@dataclass(frozen=True)
class Step:
    """One step of a way.

    Attributes:
        what: What was done.
        row: What came out.
        lpips_cost: LPIPS after minus before; negative where it got better; None where unknown.
        ms_gained: Milliseconds saved by this step; negative where it got slower; None where one was not timed.
        factor: Latency before over after.
    """

    what: str
    row: BenchmarkRow
    lpips_cost: float | None = None
    ms_gained: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class Way:
    """From the teacher in PyTorch to one artifact.

    Attributes:
        row: The artifact at the end.
        steps: The teacher first.
    """

    row: BenchmarkRow
    steps: tuple[Step, ...]


def core(row: BenchmarkRow) -> tuple[str, ...]:
    """Return what was done to the weights after the teacher was trained."""
    return tuple(stage for stage in row.stages if stage not in _ORIGINS)


def ways(rows: Sequence[BenchmarkRow]) -> list[Way]:
    """Return the way to the furthest artifact of each target: most stages, then lowest precision.

    Args:
        rows: Rows that may be compared: one LPIPS net, one set of photos, one machine.
    """
    known = [row for row in rows if row.distance is not None]
    found = []
    for target in TARGET_NAMES:
        last = max((row for row in known if row.target == target), key=_depth, default=None)
        if last is not None and (target != "torch" or all(row.target == "torch" for row in known)):
            path = _path(last, known)
            if len(path) > 1:
                found.append(Way(last, tuple(_steps(path))))
    return found


def _depth(row: BenchmarkRow) -> tuple[int, int, float]:
    return len(core(row)), _ORDER.get(row.precision, 0), -(row.latency_p50_ms or 0.0)


def _path(last: BenchmarkRow, rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Collect what led to ``last``.

    Where every stage was exported to the same target, the way changes the engine first, so that the stages are compared
    on the engine that ships; else it goes through PyTorch and changes the engine at the end.
    """
    stages = core(last)
    prefixes = [stages[:length] for length in range(len(stages) + 1)]
    here = [_find(rows, last.target, prefix, last.device) for prefix in prefixes]
    eager = [_find(rows, "torch", prefix, last.device) for prefix in prefixes]
    whole = here[0] is not None and all(b is not None for a, b in zip(eager, here, strict=True) if a is not None)
    through = [eager[0], *here] if whole else [*eager, *_last_known(eager, here)]
    path: list[BenchmarkRow] = []
    for row in (*through, last):
        if row is not None and all(row is not other for other in path):
            path.append(row)
    return path


def _last_known(eager: Sequence[BenchmarkRow | None], here: Sequence[BenchmarkRow | None]) -> list[BenchmarkRow | None]:
    """Return what the target's artifact of the last stage that PyTorch has, if there is one."""
    reached = max((index for index, row in enumerate(eager) if row is not None), default=None)
    return [] if reached is None else [here[reached]]


def _find(rows: Sequence[BenchmarkRow], target: str, stages: tuple[str, ...], device: str) -> BenchmarkRow | None:
    """Return the FP32 row of a target and stages, on ``device`` if there is one."""
    matching = [row for row in rows if row.target == target and core(row) == stages and row.precision == "fp32"]
    return next((row for row in matching if row.device == device), matching[0] if matching else None)


def _steps(path: Sequence[BenchmarkRow]) -> list[Step]:
    steps = [Step("start", path[0])]
    for before, after in pairwise(path):
        cost = None if before.distance is None or after.distance is None else after.distance - before.distance
        gained = factor = None
        if before.latency_p50_ms is not None and after.latency_p50_ms is not None:
            gained = before.latency_p50_ms - after.latency_p50_ms
            factor = before.latency_p50_ms / after.latency_p50_ms
        steps.append(Step(_what(before, after), after, cost, gained, factor))
    return steps


def _what(before: BenchmarkRow, after: BenchmarkRow) -> str:
    """Say what turned ``before`` into ``after``."""
    done = [STAGE_NAMES.get(stage, stage.capitalize()) for stage in core(after)[len(core(before)) :]]
    if before.target != after.target:
        done.append(f"to {TARGET_NAMES.get(after.target, after.target)}")
    if before.precision != after.precision and "Quantized" not in done:
        done.append(f"to {after.precision.upper()}")
    return ", ".join(done) or "measured again"
