"""Curves over the levels of a run-time control: as a table, and as a chart (SVG)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.front import COLORS, linear_ticks

IDLE = "doing nothing"
_WIDTH, _HEIGHT = 470, 330
_LEFT, _TOP, _BOTTOM, _RIGHT = 58, 48, 48, 14
_DASHES = {"int8": "7 4", "fp16": "8 3 2 3", "bf16": "8 3 2 3"}
_FONT = "Inter, 'Segoe UI', system-ui, sans-serif"


@dataclass(frozen=True)
class LevelCurve:
    """What one artifact does over the levels.

    Attributes:
        name: File name, or ``doing nothing``.
        target: Format, ``""`` for doing nothing.
        precision: Arithmetic, likewise.
        emulated: Another runtime than the target's own computed it.
        levels: Values of the control.
        psnr_db: Mean over photos at each level; None where the pictures are the same.
        lpips: Likewise.
        detour: Path over distance; None for doing nothing.
        evenness: Smallest over largest step; None for doing nothing.
    """

    name: str
    target: str
    precision: str
    emulated: bool
    levels: tuple[float, ...]
    psnr_db: tuple[float | None, ...]
    lpips: tuple[float, ...]
    detour: float | None = None
    evenness: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LevelCurve:
        """Read what ``dataclasses.asdict`` and JSON made of a curve."""
        values = {name: tuple(content[name]) for name in ("levels", "psnr_db", "lpips")}
        return cls(**{**content, **values})

    @property
    def label(self) -> str:
        """Name for people."""
        return self.name + (" (emulated)" if self.emulated else "")


#: (a curve) -> its values, one a level.
Pick = Callable[[LevelCurve], Sequence[float | None]]


def head(curves: Sequence[LevelCurve], control: str) -> list[str]:
    """Return the head of the table."""
    return ["artifact", *(f"{control} {level:g}" for level in curves[0].levels), "detour", "evenness"]


def lines(curves: Sequence[LevelCurve]) -> list[list[str]]:
    """Return one line a curve: name, ``PSNR / LPIPS`` at each level, detour, evenness."""
    return [
        [
            curve.label,
            *(f"{_text(p, 2)} / {d:.4f}" for p, d in zip(curve.psnr_db, curve.lpips, strict=True)),
            _text(curve.detour, 2),
            _text(curve.evenness, 2),
        ]
        for curve in curves
    ]


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def caption(control: str, lpips_net: str) -> str:
    """Say what the table holds."""
    return f"PSNR (dB) / LPIPS-{lpips_net} by {control}; detour 1 is straight, evenness 1 is even."


def table(curves: Sequence[LevelCurve], *, control: str, lpips_net: str) -> str:
    """Return the curves as a Markdown table: PSNR in dB and LPIPS at each level."""
    names = head(curves, control)
    rows = ["| " + " | ".join(cells) + " |" for cells in (names, *lines(curves))]
    return "\n".join([caption(control, lpips_net), "", rows[0], "|---" * len(names) + "|", *rows[1:]]) + "\n"


def chart(curves: Sequence[LevelCurve], *, control: str, lpips_net: str) -> str:
    """Return panels as SVG: PSNR and LPIPS against the level, and below what the exports change of both.

    The change is against the network that they were exported from, the last one in PyTorch FP32. INT8 is dashed, FP16
    dash-dotted, the networks before that one pale, doing nothing grey and dotted.
    """
    origin = _origin(curves)
    exported = [curve for curve in curves if curve.target not in ("", "torch")] if origin else []
    parts = [_panel(_Panel(0, 0, "PSNR, dB (higher is better)", control), curves, lambda c: c.psnr_db, origin)]
    title = f"LPIPS-{lpips_net} (lower is better)"
    parts.append(_panel(_Panel(_WIDTH, 0, title, control), curves, lambda c: c.lpips, origin))
    if origin is not None and exported:
        for left, title, pick in (
            (0, "PSNR after the export minus before, dB", lambda c: c.psnr_db),
            (_WIDTH, f"LPIPS-{lpips_net} after the export minus before", lambda c: c.lpips),
        ):
            panel = _Panel(left, _HEIGHT, title, control)
            parts.append(_panel(panel, exported, _change(pick, origin), origin))
    top = _HEIGHT * (2 if exported else 1)
    for index, curve in enumerate(curves):
        y = top + 20 * index + 4
        note = "" if curve.detour is None else f", detour {curve.detour:.2f}, evenness {curve.evenness:.2f}"
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 30}" y2="{y}" {_stroke(curve, origin)}/>')
        parts.append(
            f'<text x="{_LEFT + 38}" y="{y + 4}" font-size="12" class="ink">{escape(curve.label + note)}</text>'
        )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {2 * _WIDTH} {top + 20 * len(curves)}" '
        f'role="img" aria-label="PSNR and LPIPS against {escape(control)}" font-family="{_FONT}" fill="#1b1d22">\n'
        f'<rect class="paper" width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _origin(curves: Sequence[LevelCurve]) -> LevelCurve | None:
    """Return the curve of the network that was exported: the last one in PyTorch."""
    return next((curve for curve in reversed(curves) if curve.target == "torch"), None)


def _change(pick: Pick, origin: LevelCurve) -> Pick:
    """Return a choice of values minus those of ``origin``."""

    def change(curve: LevelCurve) -> list[float | None]:
        pairs = zip(pick(curve), pick(origin), strict=True)
        return [None if one is None or before is None else one - before for one, before in pairs]

    return change


def _stroke(curve: LevelCurve, origin: LevelCurve | None) -> str:
    color = COLORS.get(curve.target, "#9aa0aa")
    dash = "2 4" if not curve.target else _DASHES.get(curve.precision, "")
    pale = ' opacity="0.45"' if curve.target == "torch" and curve is not origin else ""
    name, dashes = escape(curve.target) or "idle", f' stroke-dasharray="{dash}"' if dash else ""
    return f'class="{name}" fill="none" stroke="{color}" stroke-width="2"{dashes}{pale}'


@dataclass(frozen=True)
class _Panel:
    """Where a panel lies in the drawing, and what it says."""

    left: int
    top: int
    title: str
    control: str


def _panel(panel: _Panel, curves: Sequence[LevelCurve], pick: Pick, origin: LevelCurve | None) -> str:
    values = [value for curve in curves for value in pick(curve) if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(0.05 * (high - low), 1e-3)
    low, high = low - room, high + room
    levels = curves[0].levels

    def x(level: float) -> float:
        share = (level - levels[0]) / (levels[-1] - levels[0])
        return panel.left + _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return panel.top + _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    style = f'y="{panel.top + 28}" font-size="14" font-weight="600" class="ink"'
    parts: list[Any] = [f'<text x="{panel.left + _LEFT}" {style}>{escape(panel.title)}</text>']
    for value in linear_ticks(low, high):
        parts.append(
            f'<line x1="{x(levels[0]):.1f}" y1="{y(value):.1f}" x2="{x(levels[-1]):.1f}" y2="{y(value):.1f}" '
            f'class="grid" stroke="#e6e8ec"/><text class="soft" x="{panel.left + _LEFT - 8}" y="{y(value) + 4:.1f}" '
            f'font-size="11" text-anchor="end" fill="#5d6470">{value + 0.0:g}</text>'
        )
    bottom = panel.top + _HEIGHT
    for level in levels:
        parts.append(
            f'<text class="soft" x="{x(level):.1f}" y="{bottom - _BOTTOM + 18}" font-size="11" text-anchor="middle" '
            f'fill="#5d6470">{level:g}</text>'
        )
    middle = panel.left + (_LEFT + _WIDTH) / 2
    parts.append(
        f'<text class="ink" x="{middle:.1f}" y="{bottom - 12}" font-size="12" text-anchor="middle">'
        f"{escape(panel.control)}</text>"
    )
    for curve in curves:
        known = [(a, b) for a, b in zip(levels, pick(curve), strict=True) if b is not None]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in known)
        parts.append(f'<polyline points="{points}" {_stroke(curve, origin)}/>')
    return "\n".join(parts)
