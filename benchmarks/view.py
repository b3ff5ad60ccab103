"""What the report says, worked out once for both of its forms (Markdown and HTML)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.front import draw_front, front_groups
from benchmarks.level_chart import LevelCurve, chart
from benchmarks.row import BenchmarkRow
from benchmarks.screens import Finding, findings
from benchmarks.walk import Way, ways

#: An artifact that loses more LPIPS than this to the teacher is not the headline while another one does not.
HEADLINE_LIMIT = 0.01
#: Above this part of the processors in other hands, latencies are not to be trusted.
BUSY_LIMIT = 0.05
#: File of the chart of a run-time control.
LEVELS = "levels.svg"


@dataclass(frozen=True)
class Headline:
    """The artifact that a reader came for.

    Attributes:
        row: The fastest shipped one within ``HEADLINE_LIMIT`` of the teacher, else the fastest; what is not shipped, or
            an export of the teacher itself, only where there is nothing else.
        teacher: What it is compared with, on the same machine.
        lpips_cost: LPIPS above the teacher's.
    """

    row: BenchmarkRow
    teacher: BenchmarkRow
    lpips_cost: float

    @property
    def is_noisy(self) -> bool:
        """Whether either of the two was measured on a machine that did not keep still."""
        busy = (self.row.interference or 0.0) > BUSY_LIMIT
        return bool(self.row.latency_is_noisy or self.teacher.latency_is_noisy or busy)

    @property
    def within_limit(self) -> bool:
        """Whether it costs no more than ``HEADLINE_LIMIT``."""
        return self.lpips_cost <= HEADLINE_LIMIT


@dataclass(frozen=True)
class Extreme:
    """The worst and the slowest photo of one artifact.

    Attributes:
        row: The artifact.
        worst: Name of the photo with the highest LPIPS, or None.
        worst_lpips: That LPIPS.
        slowest: Name of the photo that took longest, or None.
        slowest_ratio: Its time over the median of all photos; one call each.
    """

    row: BenchmarkRow
    worst: str | None
    worst_lpips: float | None
    slowest: str | None
    slowest_ratio: float | None


class View:
    """The content of ``report.json`` with what follows from it.

    Args:
        content: What ``report.read_report`` gave.
        rows: Its rows.
    """

    def __init__(self, content: Mapping[str, Any], rows: Sequence[BenchmarkRow]) -> None:
        self.content, self.rows = content, list(rows)
        self.groups = sorted(front_groups(self.rows), key=lambda group: not any(row.is_teacher for row in group))
        self.machine: Mapping[str, Any] = content.get("machine") or {}
        self.baseline: Mapping[str, Any] = content.get("baseline") or {}

    @property
    def teacher(self) -> BenchmarkRow | None:
        """The teacher's row in PyTorch, of the first group that has one."""
        return next((row for group in self.groups for row in group if row.is_teacher), None)

    def teacher_for(self, row: BenchmarkRow) -> BenchmarkRow | None:
        """The teacher's row that ``row`` may be compared with: same net, photos, size, machine; same device first."""
        group = next((group for group in self.groups if row in group), [])
        teachers = [other for other in group if other.is_teacher]
        return next((other for other in teachers if other.device == row.device), teachers[0] if teachers else None)

    def lpips_cost(self, row: BenchmarkRow) -> float | None:
        """LPIPS of ``row`` above its teacher's, or None where they do not compare."""
        teacher = self.teacher_for(row)
        if teacher is None or teacher.distance is None or row.distance is None:
            return None
        return row.distance - teacher.distance

    @property
    def own_metrics(self) -> list[str]:
        """Names of the task's own metrics, in the order of the rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.own_metrics))

    @property
    def headline(self) -> Headline | None:
        """The artifact to show first, or None where nothing compares with a teacher."""
        found = []
        for row in self.rows:
            teacher, cost = self.teacher_for(row), self.lpips_cost(row)
            if teacher is not None and cost is not None and row.speedup is not None and not row.is_teacher:
                found.append(Headline(row, teacher, cost))
        shipped = [one for one in found if not one.row.is_aside] or found
        made = [one for one in shipped if one.row.stage != "teacher"] or shipped
        allowed = [one for one in made if one.within_limit] or made
        return max(allowed, key=lambda one: one.row.speedup or 0.0, default=None)

    def ways(self) -> list[Way]:
        """Ways from the teacher to each target, of the groups that hold a teacher."""
        return [way for group in self.groups if any(row.is_teacher for row in group) for way in ways(group)]

    def plots(self) -> list[tuple[str, str]]:
        """Return the fronts as (file name, SVG), one a net, set of photos, size and machine; at least one."""
        drawn = []
        for number, group in enumerate(self.groups or [[]], start=1):
            same = bool(group) and group[0].lpips_net == self.baseline.get("lpips_net")
            same = same and group[0].photos_fingerprint == (self.content.get("photos") or {}).get("fingerprint")
            value = self.baseline.get("lpips") if same else None
            name = "front.svg" if number == 1 else f"front-{number}.svg"
            drawn.append((name, draw_front(group, baseline=value, baseline_name=str(self.baseline.get("what", "")))))
        return drawn

    def plot_titles(self) -> list[str]:
        """Say what each plot holds, in the order of ``plots``."""
        titles = []
        for group in self.groups or [[]]:
            if group:
                machine = (self.content.get("machines") or {}).get(group[0].machine, {})
                titles.append(f"LPIPS-{group[0].lpips_net}, {machine.get('cpu', group[0].machine)}")
            else:
                titles.append("nothing measured")
        return titles

    def extremes(self) -> list[Extreme]:
        """Return the worst and the slowest photo of each artifact."""
        photos = self.content.get("photos") or {}
        names, values = photos.get("names", []), photos.get("values", {})
        found = []
        for row in self.rows:
            times = (values.get(f"{row.artifact}@{row.device}") or {}).get("infer_ms", [])
            slowest = ratio = None
            if row.latency_p50_ms is not None and len(times) == len(names) > 1:
                index = max(range(len(times)), key=times.__getitem__)
                slowest, ratio = names[index], times[index] / statistics.median(times)
            if row.worst_photo is not None:
                found.append(Extreme(row, row.worst_photo, row.lpips_worst, slowest, ratio))
        return found

    def unmeasured(self) -> list[tuple[list[BenchmarkRow], str]]:
        """Rows with something missing and the reason, those of one reason together."""
        groups: dict[tuple[str, str], list[BenchmarkRow]] = {}
        for row in self.rows:
            if row.reason:
                groups.setdefault((row.status, row.reason), []).append(row)
        return [(rows, reason) for (_, reason), rows in groups.items()]

    @property
    def levels(self) -> Mapping[str, Any]:
        """What ``contest_levels`` measured; empty without a run-time control."""
        return self.content.get("levels") or {}

    @property
    def curves(self) -> list[LevelCurve]:
        """Quality against the level, doing nothing first; empty where no artifact was measured."""
        curves = [LevelCurve.from_json(curve) for curve in self.levels.get("curves", [])]
        return curves if len(curves) > 1 else []

    def level_plot(self) -> str | None:
        """Return the chart of ``curves`` (SVG), or None."""
        if not self.curves:
            return None
        return chart(self.curves, control=self.levels["control"], lpips_net=self.levels["lpips_net"])

    def level_notes(self) -> list[str]:
        """Say what the chart of levels holds and what was left out of it."""
        said = []
        if self.curves:
            photos = ", ".join(self.levels["photos"])
            said.append(f"Measured on few photos: {photos}.")
        joined: dict[str, list[str]] = {}
        for item in self.levels.get("left_out", []):
            joined.setdefault(item["reason"], []).append(item["artifact"])
        return said + [f"Left out: {', '.join(names)}: {reason}." for reason, names in joined.items()]

    def screens(self) -> list[Finding]:
        """What the screens before export found, equal findings of several artifacts together."""
        return findings(self.content.get("screens") or {}, self.rows)

    def notes(self) -> list[str]:
        """What a reader must know first: the notes of the run, and a machine that was busy with other things."""
        said = [str(note) for note in self.content.get("notes", [])]
        busy = {row.machine: row.interference for row in self.rows if (row.interference or 0.0) > BUSY_LIMIT}
        for machine, share in busy.items():
            said.append(
                f"While the latencies were measured, other processes used {share:.0%} of the processors of {machine}: "
                "take milliseconds and speedups with care, and measure again on an idle machine."
            )
        return said

    def title(self) -> str:
        """The report in a line."""
        headline = self.headline
        name = self.teacher.model if self.teacher else (self.rows[0].model if self.rows else "nothing")
        if headline is None:
            return f"{name}: measured"
        return f"{name}: {times(headline.row.speedup)} faster{' (noisy)' if headline.is_noisy else ''}"

    def subtitle(self) -> str:
        """What was measured on."""
        if not self.rows:
            return "no artifact"
        row = self.teacher or self.rows[0]
        count = (self.content.get("photos") or {}).get("count", row.photos)
        threads = f", {row.threads} thread{'s' if row.threads != 1 else ''}" if row.threads else ""
        where = self.machine.get("cpu", row.machine)
        return f"Task {row.task}, {row.height}x{row.width}, {count} photos not trained on, {where}{threads}"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Write a number with ``digits`` decimals; None as a dash."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def short(value: float | None) -> str:
    """Write a number with three significant digits; None as a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    """Write a factor, for example ``16.7x``; None as a dash."""
    return "–" if value is None else f"{short(value)}x"
