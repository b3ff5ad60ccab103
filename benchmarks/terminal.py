"""Rows and comparisons as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.merge import Change
from benchmarks.row import BenchmarkRow
from benchmarks.view import View, number, short, times
from benchmarks.zoo_table import ZooRow

_MINIMUM_WIDTH = 130


def print_rows(rows: Sequence[Mapping[str, Any]], written: Path) -> None:
    """Print the columns that matter most, the reasons of what is missing, and where everything was written."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    for name in ("LPIPS", "p50 ms", "speedup", "photo to photo ms", "peak MB", "MB", "status"):
        table.add_column(name, justify="right")
    known = [BenchmarkRow.from_json(row) for row in rows]
    for row in known:
        net = f" {row.lpips_net}" if row.lpips_net else ""
        noisy = " ~" if row.latency_is_noisy else ""
        table.add_row(
            row.label,
            number(row.distance, 4) + net,
            short(row.latency_p50_ms) + noisy,
            times(row.speedup),
            short(row.end_to_end_p50_ms),
            short(row.peak_rss_mb),
            short(row.size_mb),
            row.status,
        )
    console.print(table)
    for row in known:
        if row.status != "measured":
            console.print(f"{row.label}: {row.reason}", markup=False, highlight=False)
    for note in View({}, known).notes():
        console.print(note, markup=False, highlight=False)
    console.print(f"written: {written}", markup=False, highlight=False)


def print_zoo(rows: Sequence[Mapping[str, Any]], written: Path) -> None:
    """Print what matters most of each model, the reasons of failures, and where everything was written."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for name in ("task", "teacher ms", "shipped", "speedup", "to teacher", "metric", "teacher's gain", "shipped gain"):
        table.add_column(name, justify="right")
    known = [ZooRow.from_json(row) for row in rows]
    for row in known:
        table.add_row(
            row.model,
            row.task,
            short(row.teacher_p50_ms.get("torch")),
            row.status if row.shipped is None else row.shipped.rpartition(" · ")[2],
            times(row.speedup),
            number(row.lpips_to_teacher, 4),
            row.metric or "–",
            number(row.teacher_margin, 4, sign=True),
            number(row.shipped_margin, 4, sign=True),
        )
    console.print(table)
    for row in known:
        if row.reason:
            console.print(f"{row.model}: {row.reason}", markup=False, highlight=False)
    console.print(f"written: {written}", markup=False, highlight=False)


def print_changes(changes: Sequence[Change]) -> None:
    """Print what changed between two reports, regressions last on each line."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    for name in ("artifact", "LPIPS", "latency", "worse", "notes"):
        table.add_column(name)
    for change in changes:
        latency = "–" if change.latency is None else f"{change.latency:+.1%}"
        worse = "; ".join(change.regressions)
        table.add_row(change.label, number(change.lpips, 4, sign=True), latency, worse, "; ".join(change.notes))
    console.print(table)


def _console() -> Console:
    """Return a console on stdout that does not squeeze tables where nobody looks at a terminal."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, _MINIMUM_WIDTH)
    return console
