"""Joining rows of other machines into a report, and comparing two reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report import rows_of
from benchmarks.row import COUNTED, NO_ORIGIN, BenchmarkRow, join_reasons
from benchmarks.view import BUSY_LIMIT
from models.errors import ConfigError, explain


def merge(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the rows of other machines into a report.

    A row replaces an earlier one of the same artifact, device, machine and size, unless it would no longer compare with
    the teacher of the report: measured without one, or on other photos, it is left out, and a note says so. A measured
    row also takes the place of one that could not be timed (``built``) of the same artifact, size and LPIPS net.
    Speedups stay those of the machine that they were measured on; rows that do not compare (LPIPS net, photos, machine)
    get their own plot.

    Args:
        report: Content of ``report.json``.
        others: Contents of ``report.json`` or rows files of other machines.

    Returns:
        The new content.

    Raises:
        ConfigError: A file describes artifacts of another task.
    """
    rows = rows_of(report)
    machines = dict(report.get("machines") or {str(report["machine"].get("id")): report["machine"]})
    tasks, notes = {row.task for row in rows}, list(report.get("notes") or [])
    for other in others:
        added = rows_of(other)
        strange = sorted({row.task for row in added} - tasks)
        if rows and strange:
            fix = "merge rows of artifacts from the same run"
            raise ConfigError(explain("rows to merge", expected=f"task {sorted(tasks)}", got=strange, fix=fix))
        rows, left_out = _joined(rows, added)
        notes += _say_left_out(left_out)
        machines.update(other.get("machines") or {str(other["machine"].get("id")): other["machine"]})
    screens = {key: value for content in (report, *others) for key, value in (content.get("screens") or {}).items()}
    content = {"rows": [row.to_json() for row in rows], "notes": notes, "machines": machines, "screens": screens}
    return {**report, **content}


def _joined(
    rows: Sequence[BenchmarkRow], added: Sequence[BenchmarkRow]
) -> tuple[list[BenchmarkRow], list[BenchmarkRow]]:
    """Return the rows together, and those of ``added`` that were left out."""
    joined, left_out = list(rows), []
    for row in added:
        place = next((index for index, old in enumerate(joined) if _replaces(row, old)), None)
        if place is None:
            joined.append(row)
        elif row.key == joined[place].key and _loses(row, joined[place]):
            left_out.append(row)
        else:
            joined[place] = _completed(row, joined[place])
    return joined, left_out


def _loses(new: BenchmarkRow, old: BenchmarkRow) -> bool:
    """Say whether a row of the same machine would no longer compare with the teacher of the report."""
    others = (new.lpips_net, new.photos_fingerprint) != (old.lpips_net, old.photos_fingerprint)
    return old.speedup is not None and (new.speedup is None or others)


def _completed(new: BenchmarkRow, old: BenchmarkRow) -> BenchmarkRow:
    """Return ``new`` with what is counted, not measured, where only ``old`` knows it."""
    if new.gmacs is not None or old.gmacs is None:
        return new
    reason = (new.reason or "").replace(join_reasons({COUNTED: NO_ORIGIN}) or "", "").strip("; ") or None
    return replace(new, params_m=old.params_m, gmacs=old.gmacs, reason=reason)


def _say_left_out(rows: Sequence[BenchmarkRow]) -> list[str]:
    if not rows:
        return []
    names = ", ".join(row.label for row in rows)
    return [
        f"Measured again on {rows[0].machine} without the teacher or on other photos, and left out: {names}. Pass the "
        "same --teacher and --data to `python -m benchmarks run`."
    ]


def _replaces(new: BenchmarkRow, old: BenchmarkRow) -> bool:
    if not new.sha256 or new.sha256 != old.sha256:
        return False
    if new.key == old.key:
        return True
    same = (new.target, new.height, new.width, new.lpips_net) == (old.target, old.height, old.width, old.lpips_net)
    return same and new.status == "measured" and old.status == "built"


@dataclass(frozen=True)
class Limits:
    """How much worse a row may get.

    Attributes:
        lpips: Absolute rise of LPIPS.
        latency: Relative rise of the median latency, 0.10 for 10%; across machines, of 1 / speedup.

    Raises:
        ConfigError: A limit below 0.
    """

    lpips: float = 0.005
    latency: float = 0.10

    def __post_init__(self) -> None:
        if not (self.lpips >= 0 and self.latency >= 0):
            got = f"{self.lpips}, {self.latency}"
            raise ConfigError(explain("limits", expected="0 or more", got=got, fix="for example 0.005 and 0.10"))


@dataclass(frozen=True)
class Change:
    """One artifact before and after.

    Attributes:
        label: Its name.
        lpips: LPIPS after minus before; None where one is unknown.
        latency: Latency after over before, minus 1; None where one is unknown.
        regressions: What got worse beyond the limits.
        notes: What a reader must know: noise, another machine, a row that is gone or new.
    """

    label: str
    lpips: float | None = None
    latency: float | None = None
    regressions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        content = {"label": self.label, "lpips_change": self.lpips, "latency_change": self.latency}
        return {**content, "regressions": list(self.regressions), "notes": list(self.notes)}


def compare(before: Mapping[str, Any], after: Mapping[str, Any], limits: Limits | None = None) -> list[Change]:
    """Compare two reports row by row; rows are matched by stage, target, precision, device and size.

    Raises:
        ConfigError: The reports used different LPIPS nets.
    """
    limits = limits or Limits()
    old, new = ({_identity(row): row for row in rows_of(content)} for content in (before, after))
    nets = [sorted({row.lpips_net for row in rows.values() if row.lpips_net}) for rows in (old, new)]
    if nets[0] != nets[1] and all(nets):
        fix = "measure both with the same --lpips-net"
        raise ConfigError(explain("reports", expected=f"LPIPS of {nets[0]} in both", got=f"{nets[1]}", fix=fix))
    changes = []
    for key, row in old.items():
        if key not in new:
            lost = (f"{row.label} is missing",) if row.status == "measured" else ()
            changes.append(Change(row.label, regressions=lost, notes=("gone",)))
        else:
            changes.append(_change(row, new[key], limits))
    changes += [Change(row.label, notes=("new",)) for key, row in new.items() if key not in old]
    return changes


def _identity(row: BenchmarkRow) -> tuple[object, ...]:
    return (row.stages, row.stage, row.target, row.precision, row.device, row.height, row.width)


def _change(old: BenchmarkRow, new: BenchmarkRow, limits: Limits) -> Change:
    regressions, notes = [], []
    if old.photos_fingerprint != new.photos_fingerprint:
        notes.append("other photos: LPIPS is not compared")
    lpips = None
    if old.distance is not None and new.distance is not None and old.photos_fingerprint == new.photos_fingerprint:
        lpips = new.distance - old.distance
        if lpips > limits.lpips:
            regressions.append(f"LPIPS-{new.lpips_net} {old.distance:.4f} -> {new.distance:.4f}")
    latency = None
    times = (old.latency_p50_ms, new.latency_p50_ms)
    if old.machine != new.machine:
        notes.append("another machine: compared by speedup over its own teacher")
        times = (1 / old.speedup if old.speedup else None, 1 / new.speedup if new.speedup else None)
    if times[0] is not None and times[1] is not None:
        latency = times[1] / times[0] - 1
        if latency > limits.latency:
            regressions.append(f"latency {latency:+.0%}")
    if old.status == "measured" and new.status != "measured":
        regressions.append(f"no longer measured: {new.reason}")
    if old.latency_is_noisy or new.latency_is_noisy:
        notes.append("noisy latency")
    if max(old.interference or 0.0, new.interference or 0.0) > BUSY_LIMIT:
        notes.append("busy machine")
    return Change(new.label, lpips, latency, tuple(regressions), tuple(notes))
