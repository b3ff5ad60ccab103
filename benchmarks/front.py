"""The front: LPIPS against latency as a plain SVG, no plotting library, the same bytes for the same rows.

One plot holds one LPIPS net, one set of photos and one machine; ``front_groups`` splits rows accordingly. Colours are
attributes, so that any viewer shows them; classes let the report's page restyle them for a dark screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from benchmarks.labels import Box, place_labels, spread, text_width
from benchmarks.row import TARGET_NAMES, BenchmarkRow

WIDTH, HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 26, 74, 62
_SIDE = 176
_FONT = "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', Arial, sans-serif"
_INK, _SOFT, _GRID, _ACCENT = "#1b1d22", "#5d6470", "#e6e8ec", "#c2410c"
# Okabe and Ito's palette, distinguishable with the common colour vision deficiencies.
COLORS = {"torch": "#4b5563", "onnx": "#0072b2", "openvino": "#8b3fa8", "tensorrt": "#008a63", "coreml": "#d55e00"}
_SHAPES = {"fp32": "circle", "fp16": "square", "bf16": "triangle", "int8": "diamond"}
_OTHER = "#7a5c00"
_SEEN = 5e-5


def pareto_front(rows: Iterable[BenchmarkRow]) -> list[BenchmarkRow]:
    """Return the measured rows that no other one beats in both latency and LPIPS, fastest first.

    A slower row is on the front when its LPIPS is lower by what shows in four decimals.
    """
    timed = [row for row in rows if row.latency_p50_ms is not None and row.distance is not None]
    front: list[BenchmarkRow] = []
    for row in sorted(timed, key=lambda row: (row.latency_p50_ms or 0.0, row.distance or 0.0)):
        if not front or (row.distance or 0.0) < (front[-1].distance or 0.0) - _SEEN:
            front.append(row)
    return front


def front_groups(rows: Sequence[BenchmarkRow]) -> list[list[BenchmarkRow]]:
    """Split rows with LPIPS so that each part has one net, one set of photos, one size and one machine."""
    groups: dict[tuple[object, ...], list[BenchmarkRow]] = {}
    for row in rows:
        if row.distance is not None:
            key = (row.lpips_net, row.lpips is None, row.photos_fingerprint, row.machine, row.height, row.width)
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def short_labels(rows: Sequence[BenchmarkRow]) -> dict[int, str]:
    """Name each row as briefly as is still unique: index -> text."""
    plain = [row.stage_name if row.target == "torch" else row.engine_name for row in rows]
    names = {}
    for index, row in enumerate(rows):
        names[index] = plain[index] if plain.count(plain[index]) == 1 or row.target == "torch" else row.label
    labels = list(names.values())
    return {index: name if labels.count(name) == 1 else f"{name} {rows[index].device}" for index, name in names.items()}


@dataclass
class _Axes:
    """Maps latency and LPIPS to pixels."""

    left: float
    right: float
    low_ms: float
    high_ms: float
    low: float
    high: float

    def x(self, latency_ms: float) -> float:
        part = math.log(latency_ms / self.low_ms) / math.log(self.high_ms / self.low_ms)
        return self.left + part * (self.right - self.left)

    def y(self, lpips: float) -> float:
        return HEIGHT - _BOTTOM - (lpips - self.low) / (self.high - self.low) * (HEIGHT - _BOTTOM - _TOP)


@dataclass
class _Canvas:
    parts: list[str] = field(default_factory=list)
    obstacles: list[Box] = field(default_factory=list)

    def note(self, x: float, y: float, words: str) -> None:
        """Write small text that labels keep away from."""
        self.text(x, y, words, size=11, kind="soft")
        self.obstacles.append(Box(x - 2, y - 11, x + text_width(words, 11), y + 4))

    def text(self, x: float, y: float, words: str, size: float = 12, kind: str = "ink", **more: str) -> None:
        color = {"soft": _SOFT, "accent": _ACCENT}.get(kind, _INK)
        attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{color}"{attributes}>'
            f"{escape(words)}</text>"
        )

    def label(self, x: float, y: float, words: str, *, weight: str) -> None:
        """Write a label with a rim of paper around it."""
        rim = {"paint_order": "stroke", "stroke": "#ffffff", "stroke_width": "3", "stroke_linejoin": "round"}
        self.text(x, y, words, 12, "halo", font_weight=weight, **rim)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str, width: float = 1, dash: str = "") -> None:
        color = {"grid": _GRID, "rule": _SOFT, **COLORS}.get(kind, _OTHER)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line class="{escape(kind)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{color}" stroke-width="{width:g}"{dashes}/>'
        )


def draw_front(rows: Sequence[BenchmarkRow], *, baseline: float | None = None, baseline_name: str = "") -> str:
    """Draw one group of ``front_groups`` as an SVG document.

    Args:
        rows: Rows of one net, set of photos, size and machine.
        baseline: LPIPS of doing nothing, drawn as a line.
        baseline_name: What that is, in words.
    """
    canvas = _Canvas()
    timed = [row for row in rows if row.latency_p50_ms is not None and row.distance is not None]
    untimed = [row for row in rows if row.latency_p50_ms is None and row.distance is not None]
    if not timed and not untimed:
        canvas.text(WIDTH / 2, HEIGHT / 2, "Nothing was measured", size=16, text_anchor="middle")
        return _document(canvas, "Nothing was measured")
    axes = _axes(timed, untimed, baseline)
    teachers = [row for row in timed if row.is_teacher]
    teacher = teachers[0] if len(teachers) == 1 else None  # on several devices there are several 1x: no common axis
    _title(canvas, rows)
    _grid(canvas, axes, teacher, bool(untimed), "ground truth" if rows[0].lpips is not None else "teacher")
    _baseline(canvas, axes, baseline, baseline_name)
    _front_line(canvas, axes, pareto_front(timed))
    _points(canvas, axes, timed, untimed)
    _legend(canvas, rows)
    return _document(canvas, f"LPIPS against latency of {len(rows)} artifacts")


def _axes(timed: list[BenchmarkRow], untimed: list[BenchmarkRow], baseline: float | None) -> _Axes:
    times = [row.latency_p50_ms or 1.0 for row in timed] or [1.0, 10.0]
    values = [row.distance or 0.0 for row in timed + untimed]
    low, high = min(values), max(values)
    if baseline is not None and baseline <= high + 2.0 * max(high - low, 0.01):
        high = max(high, baseline)
    span = max(high - low, 0.015)
    middle = (low + high) / 2
    right = WIDTH - _RIGHT - (_SIDE if untimed else 0)
    bottom = max(0.0, middle - 0.64 * span)
    return _Axes(_LEFT, right, min(times) / 1.45, max(times) * 1.45, bottom, middle + 0.62 * span)


def _title(canvas: _Canvas, rows: Sequence[BenchmarkRow]) -> None:
    first = rows[0]
    canvas.text(_LEFT - 48, 28, "LPIPS against latency", size=17, font_weight="650")
    about = f"{first.task}, {first.height} x {first.width}, {first.photos} photos, LPIPS net: {first.lpips_net}"
    about += f", {first.threads} thread{'s' if first.threads != 1 else ''}" if first.threads else ""
    canvas.text(_LEFT - 48, 47, about, size=12, kind="soft")


def _grid(canvas: _Canvas, axes: _Axes, teacher: BenchmarkRow | None, side: bool, reference: str) -> None:
    bottom = HEIGHT - _BOTTOM
    for tick in log_ticks(axes.low_ms, axes.high_ms):
        canvas.line(axes.x(tick), _TOP, axes.x(tick), bottom, kind="grid")
        canvas.text(axes.x(tick), bottom + 18, f"{tick:g}", kind="soft", text_anchor="middle")
    for tick in linear_ticks(axes.low, axes.high):
        canvas.line(axes.left, axes.y(tick), axes.right, axes.y(tick), kind="grid")
        canvas.text(axes.left - 8, axes.y(tick) + 4, f"{tick:.3f}", kind="soft", text_anchor="end")
    middle = (axes.left + axes.right) / 2
    canvas.text(middle, HEIGHT - 18, "Latency of the engine, ms a photo (median; log scale)", text_anchor="middle")
    turned = f"rotate(-90 20 {(bottom + _TOP) / 2:.1f})"
    canvas.text(20, (bottom + _TOP) / 2, f"LPIPS to the {reference}", text_anchor="middle", transform=turned)
    canvas.note(axes.left + 6, bottom - 8, f"best: fast and close to the {reference.split(' ')[-1]}")
    if teacher is not None and teacher.latency_p50_ms:
        for factor in log_ticks(teacher.latency_p50_ms / axes.high_ms, teacher.latency_p50_ms / axes.low_ms):
            if factor >= 1:
                words = f"{factor:g}x"
                canvas.text(
                    axes.x(teacher.latency_p50_ms / factor), _TOP - 7, words, kind="soft", size=11, text_anchor="middle"
                )
    if side:
        canvas.line(axes.right, _TOP, axes.right, bottom, kind="rule", dash="2 4")
        words = "not timed here" if axes.right < WIDTH - _SIDE else ""
        canvas.text(axes.right + 10, _TOP - 7, words, kind="soft", size=11)


def _baseline(canvas: _Canvas, axes: _Axes, baseline: float | None, name: str) -> None:
    if baseline is None:
        return
    words = f"doing nothing{f' ({name})' if name else ''}: {baseline:.4f}"
    if baseline <= axes.high:
        canvas.line(axes.left, axes.y(baseline), axes.right, axes.y(baseline), kind="rule", dash="6 4")
        canvas.obstacles.append(Box(axes.left, axes.y(baseline) - 1, axes.right, axes.y(baseline) + 1))
        canvas.note(axes.right - 6 - text_width(words, 11), axes.y(baseline) - 6, words)
    else:
        words += ", above this plot"
        canvas.note(axes.right - 6 - text_width(words, 11), _TOP + 14, words)


def _front_line(canvas: _Canvas, axes: _Axes, front: list[BenchmarkRow]) -> None:
    """Draw the staircase: what is reached at each latency."""
    if not front:
        return
    points = [(axes.x(row.latency_p50_ms or 1.0), axes.y(row.distance or 0.0)) for row in front]
    path = f"M{points[0][0]:.1f} {_TOP}V{points[0][1]:.1f}"
    for x, y in points[1:]:
        path += f"H{x:.1f}V{y:.1f}"
    path += f"H{axes.right:.1f}"
    xs = [x for x, _ in points] + [axes.right]
    for index, (x, y) in enumerate(points):
        canvas.obstacles.append(Box(x, y - 1, xs[index + 1], y + 1))
        above = points[index - 1][1] if index else _TOP
        canvas.obstacles.append(Box(x - 1, min(above, y), x + 1, max(above, y)))
    canvas.parts.append(
        f'<path class="front-area" d="{path}V{_TOP}Z" fill="{_ACCENT}" fill-opacity="0.05"/>'
        f'<path class="front" d="{path}" fill="none" stroke="{_ACCENT}" stroke-width="1.6" stroke-linejoin="round"/>'
    )


def _points(canvas: _Canvas, axes: _Axes, timed: list[BenchmarkRow], untimed: list[BenchmarkRow]) -> None:
    names = short_labels(timed + untimed)
    front = {id(row) for row in pareto_front(timed)}
    spots = [(axes.x(row.latency_p50_ms or 1.0), axes.y(row.distance or 0.0)) for row in timed]
    texts = []
    for index, row in enumerate(timed):
        gained = f" {row.speedup:.3g}x" if row.speedup and not row.is_teacher else ""
        texts.append(names[index] + gained)
    order = sorted(range(len(timed)), key=lambda i: (not timed[i].is_teacher, id(timed[i]) not in front, -spots[i][1]))
    frames = [Box(axes.left + 2, _TOP, axes.right - 2, HEIGHT - _BOTTOM)] * len(timed)
    bold = [id(row) in front or row.is_teacher for row in timed]
    widths = [text_width(text, 12, bold=heavy) for text, heavy in zip(texts, bold, strict=True)]
    ends = [min(axes.x(row.latency_p95_ms or row.latency_p50_ms or 1.0), axes.right) for row in timed]
    tails = [Box(x, y - 1, end, y + 1) for (x, y), end in zip(spots, ends, strict=True) if end > x]
    places = place_labels(spots, widths, order=order, frames=frames, obstacles=[*canvas.obstacles, *tails])
    for index, row in enumerate(timed):
        x, y = spots[index]
        if ends[index] > x:
            canvas.line(x, y, ends[index], y, kind=row.target, width=1.2)
        label = places[index]
        if label is not None:
            if label.leader:
                canvas.line(x, y, *label.anchor, kind="rule", width=0.7)
            canvas.label(label.x, label.y, texts[index], weight="650" if bold[index] else "400")
        canvas.parts.append(f"<g>{_tooltip(row)}{_marker(x, y, row, noisy=bool(row.latency_is_noisy))}</g>")
    _untimed(canvas, axes, untimed, [names[len(timed) + index] for index in range(len(untimed))])


def _untimed(canvas: _Canvas, axes: _Axes, rows: list[BenchmarkRow], names: list[str]) -> None:
    """List what was not timed beside the plot: a line leads from its LPIPS to its sign."""
    order = sorted(range(len(rows)), key=lambda index: axes.y(rows[index].distance or 0.0))
    heights = spread([axes.y(rows[index].distance or 0.0) for index in order], 19.0, _TOP + 8, HEIGHT - _BOTTOM - 8)
    for index, height in zip(order, heights, strict=True):
        row, x = rows[index], axes.right + 34
        canvas.line(axes.right, axes.y(row.distance or 0.0), x, height, kind="rule", width=0.7)
        canvas.parts.append(f"<g>{_tooltip(row)}{_marker(x, height, row, noisy=False)}</g>")
        canvas.label(x + 12, height + 4, names[index], weight="400")


def _tooltip(row: BenchmarkRow) -> str:
    words = [row.label, f"LPIPS-{row.lpips_net} {row.distance:.4f}" if row.distance is not None else ""]
    if row.latency_p50_ms is not None:
        words.append(f"{row.latency_p50_ms:.2f} ms (p95 {row.latency_p95_ms or 0:.2f})")
    if row.speedup is not None:
        words.append(f"{row.speedup:.3g}x the teacher")
    return f"<title>{escape(', '.join(word for word in words if word))}</title>"


def _color(row: BenchmarkRow) -> str:
    return COLORS.get(row.target, _OTHER)


def marker(target: str, precision: str, *, size: float = 14) -> str:
    """Return the sign of a target and precision as a small inline SVG."""
    shape = _shape(
        size / 2, size / 2, _SHAPES.get(precision, "circle"), size * 0.36, COLORS.get(target, _OTHER), target
    )
    return f'<svg class="sign" width="{size:g}" height="{size:g}" aria-hidden="true">{shape}</svg>'


def _marker(x: float, y: float, row: BenchmarkRow, *, noisy: bool) -> str:
    """Draw the sign of a row; hollow where its latency is noisy."""
    color, kind = (_INK, "first") if row.is_teacher else (_color(row), row.target)
    return _shape(x, y, _SHAPES.get(row.precision, "circle"), 6.0, color, f"{kind} hollow" if noisy else kind)


def _shape(x: float, y: float, shape: str, r: float, color: str, kind: str) -> str:
    fill = "#ffffff" if kind.endswith("hollow") else color
    style = f'class="{escape(kind)}" fill="{fill}" stroke="{color}" stroke-width="2"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {style}/>'
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.2), (1.1, 0.85), (-1.1, 0.85)],
    }[shape]
    points = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" {style}/>'


def _legend(canvas: _Canvas, rows: Sequence[BenchmarkRow]) -> None:
    """Colours for targets, shapes for precisions, right-aligned in the title's lines."""
    targets = [name for name in COLORS if any(row.target == name for row in rows)]
    precisions = [name for name in _SHAPES if any(row.precision == name for row in rows)]
    for y, names in ((24.0, targets), (44.0, precisions)):
        words = [TARGET_NAMES.get(name, name.upper()) for name in names]
        x = WIDTH - _RIGHT - sum(text_width(word, 12) + 32 for word in words) + 14
        for name, word in zip(names, words, strict=True):
            color = COLORS.get(name, _SOFT)
            canvas.parts.append(_shape(x, y - 4, _SHAPES.get(name, "circle"), 4.5, color, name))
            canvas.text(x + 11, y, word, size=12, kind="soft")
            x += text_width(word, 12) + 32


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, ... between ``low`` and ``high``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [round(step * 10.0**decade, 12) for decade in decades for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def linear_ticks(low: float, high: float) -> list[float]:
    """Return about six round numbers between ``low`` and ``high``."""
    rough = (high - low) / 7
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def _document(canvas: _Canvas, title: str) -> str:
    body = "\n".join(canvas.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="{escape(title)}" font-family="{_FONT}">\n'
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
