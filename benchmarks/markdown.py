"""``report.md``: the report as text that reads well in a terminal and in a repository."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from benchmarks.level_chart import table as level_table
from benchmarks.markup import plain
from benchmarks.screens import HEAD as SCREENS_HEAD
from benchmarks.view import LEVELS, View, number, short, times

_HOW_TO_READ = (
    "LPIPS is a perceptual distance: 0 is identical, lower is better. The net that computed it is named beside every "
    "number; numbers of different nets do not compare.",
    "Latency is one call of the engine on one photo, the median of interleaved calls; photo to photo adds colour "
    "conversion and rendering. The teacher in PyTorch eager FP32, in the same run, is 1x.",
    "`~` marks a noisy latency: its quartiles lie further apart than 10% of the median.",
    "A dash is unknown; the reasons are listed under *What was not measured, and why*.",
)


def markdown(view: View) -> str:
    """Render the report as Markdown."""
    parts = [f"# {view.title()}", view.subtitle() + ".", _headline(view)]
    parts += [f"![{title}]({file})" for (file, _), title in zip(view.plots(), view.plot_titles(), strict=True)]
    parts += [f"> {note}" for note in view.notes()]
    parts += ["## Artifacts", _artifacts(view), "## Resources", _resources(view)]
    parts += _ways(view)
    parts += _levels(view)
    parts += _screens(view)
    parts += _pictures(view)
    parts += ["## Worst and slowest photos", _extremes(view)]
    parts += ["## What was not measured, and why", _unmeasured(view)]
    parts += ["## How to read this", "\n".join(f"- {line}" for line in _HOW_TO_READ)]
    parts += _stages(view)
    parts += ["## Machine", _facts(view)]
    parts += ["## Recipe", "```json\n" + json.dumps(view.content.get("recipe", {}), indent=2) + "\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, prose: bool = False) -> str:
    """Render a Markdown table, the first column left, the others right aligned; all left where they are ``prose``."""
    rest = [":--" if prose else "--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([":--", *rest]) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _headline(view: View) -> str:
    one = view.headline
    if one is None:
        return ""
    row, teacher = one.row, one.teacher
    noisy = " (noisy)" if one.is_noisy else ""
    floor = view.baseline.get("lpips")
    idle = f"; doing nothing ({view.baseline.get('what')}) is at {number(floor, 4)}" if floor is not None else ""
    return (
        f"**{row.label}: {times(row.speedup)} faster{noisy}** ({short(teacher.latency_p50_ms)} -> "
        f"{short(row.latency_p50_ms)} ms), LPIPS-{row.lpips_net} {number(one.lpips_cost, 4, sign=True)} "
        f"({number(teacher.distance, 4)} -> {number(row.distance, 4)}{idle}), "
        f"{short(teacher.size_mb)} -> {short(row.size_mb)} MB."
    )


def _artifacts(view: View) -> str:
    header = ["artifact", "LPIPS", "net", "over teacher", "to teacher", "PSNR dB", "SSIM", "dE2000", "colour"]
    header += view.own_metrics
    header += ["p50 ms", "p95 ms", "speedup", "photo to photo ms", "status"]
    rows = []
    for row in view.rows:
        noisy = " ~" if row.latency_is_noisy else ""
        rows.append(
            [
                row.label,
                number(row.lpips, 4),
                row.lpips_net or "–",
                number(view.lpips_cost(row), 4, sign=True),
                number(row.lpips_vs_teacher, 4),
                number(row.psnr_db, 2),
                number(row.ssim, 4),
                number(row.delta_e, 2),
                number(row.colourfulness_ratio, 2),
                *(number(row.own_metrics.get(name), 4) for name in view.own_metrics),
                short(row.latency_p50_ms) + noisy,
                short(row.latency_p95_ms),
                times(row.speedup),
                short(row.end_to_end_p50_ms),
                row.status,
            ]
        )
    return table(header, rows)


def _resources(view: View) -> str:
    header = ["artifact", "params M", "GMACs", "size MB", "load ms", "first call ms", "peak MB", "images/s", "runtime"]
    rows = [
        [
            row.label,
            short(row.params_m),
            short(row.gmacs),
            short(row.size_mb),
            short(row.load_ms),
            short(row.first_inference_ms),
            short(row.peak_rss_mb),
            short(row.images_per_s),
            f"{row.runtime} {row.device}".strip(),
        ]
        for row in view.rows
    ]
    counted = ", ".join(view.content.get("not_counted", []))
    note = f"\n\nNot in GMACs: {counted}." if counted else ""
    return table(header, rows) + note


def _ways(view: View) -> list[str]:
    found = view.ways()
    if not found:
        return []
    parts = ["## Where the quality went, and what it bought"]
    for way in found:
        rows = [
            [
                step.what,
                step.row.engine_name,
                number(step.row.distance, 4),
                number(step.lpips_cost, 4, sign=True),
                short(step.row.latency_p50_ms),
                number(step.ms_gained, 2),
                times(step.factor),
            ]
            for step in way.steps
        ]
        header = ["step", "engine", f"LPIPS-{way.row.lpips_net}", "cost", "p50 ms", "ms saved", "faster"]
        parts += [f"To {way.row.engine_name}", table(header, rows)]
    return parts


def _levels(view: View) -> list[str]:
    if not view.levels:
        return []
    parts, control = ["## Quality by level"], view.levels["control"]
    if view.curves:
        parts.append(f"![PSNR and LPIPS against {control}]({LEVELS})")
        parts.append(level_table(view.curves, control=control, lpips_net=view.levels["lpips_net"]).strip())
    return [*parts, *view.level_notes()]


def _screens(view: View) -> list[str]:
    found = view.screens()
    return ["## Screens", table(SCREENS_HEAD, [line.cells() for line in found], prose=True)] if found else []


def _pictures(view: View) -> list[str]:
    pictures = view.content.get("pictures") or []
    if not pictures:
        return []
    parts = ["## Pictures"]
    for picture in pictures:
        tiles = picture["tiles"]
        names = [
            tile["label"] + (f" {number(tile['lpips'], 3)}" if tile["lpips"] is not None else "") for tile in tiles
        ]
        images = " | ".join(f"![{tile['label']}]({tile['file']})" for tile in tiles)
        lines = ["| " + " | ".join(names) + " |", "|" + ":-:|" * len(names), f"| {images} |"]
        parts += [f"{picture['photo']} ({picture['why']})", "\n".join(lines)]
    same = [f"{tile['label']} = {', '.join(tile['also'])}" for tile in pictures[0]["tiles"] if tile["also"]]
    if same:
        parts.append("Shown once, no pixel differs by more than 3 of 255: " + "; ".join(same) + ".")
    return parts


def _extremes(view: View) -> str:
    rows = [
        [
            one.row.label,
            one.worst or "–",
            number(one.worst_lpips, 4),
            one.slowest or "–",
            times(one.slowest_ratio),
        ]
        for one in view.extremes()
    ]
    header = ["artifact", "worst photo", "its LPIPS", "slowest photo", "over the median"]
    return table(header, rows) if rows else "No photo was measured."


def _unmeasured(view: View) -> str:
    lines = []
    for rows, reason in view.unmeasured():
        lines.append(f"- **{', '.join(row.label for row in rows)}** ({rows[0].status}): {reason}")
    return "\n".join(lines) or "Nothing."


def _stages(view: View) -> list[str]:
    stages = view.content.get("stages") or []
    if not stages:
        return []
    header = ["stage", "time", "note"]
    rows = [
        [str(stage.get("stage", "")), f"{short(stage.get('seconds'))} s", str(stage.get("note") or "")]
        for stage in stages
    ]
    return ["## How it was made", table(header, rows, prose=True)]


def _facts(view: View) -> str:
    machine = view.machine
    names = ("cpu", "cores_physical", "cores_available", "cpu_flags", "governor", "memory_gb", "gpus", "os", "python")
    lines = []
    for name in (*names, "threads", "pinned_to_cpus", "load_average", "versions"):
        lines.append(f"- {name}: {plain(machine.get(name))}")
    return "\n".join(lines)
