"""Quality against the level: what a run-time control does in each artifact, before and after compression.

For each level, PSNR and LPIPS of the rendered answer against the ground truth at that level, and of doing nothing. For
the transition, one input at the middle level is run through all levels: ``detour`` is the length of the path of its
answers over the distance of its ends (1: straight), ``evenness`` the smallest step over the largest (1: even).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import metrics
from benchmarks.front import COLORS
from export.parity import open_any
from models.artifact import Artifact, write_json
from models.controls import graph_feeds
from models.errors import UnsupportedError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_task
from models.spec import Precision

if TYPE_CHECKING:
    from export.target import Runner
    from models.tasks.base import Task

IDLE = "doing nothing"
_WIDTH, _HEIGHT = 470, 330
_LEFT, _TOP, _BOTTOM, _RIGHT = 58, 48, 48, 14
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
        psnr_db: Mean over photos at each level.
        lpips: Likewise.
        detour: Path over distance; None for doing nothing.
        evenness: Smallest over largest step; None for doing nothing.
    """

    name: str
    target: str
    precision: str
    emulated: bool
    levels: tuple[float, ...]
    psnr_db: tuple[float, ...]
    lpips: tuple[float, ...]
    detour: float | None = None
    evenness: float | None = None


Answer = Callable[[Tensor], Tensor]


@torch.inference_mode()
def measure_levels(
    artifacts: Sequence[Artifact],
    rgb: Tensor,
    *,
    count: int = 5,
    lpips_net: str = "lite",
    lpips_weights: Path | None = None,
    threads: int | None = None,
    progress: Progress = NULL_PROGRESS,
) -> list[LevelCurve]:
    """Run artifacts of one task over the range of its control.

    Args:
        artifacts: ``torch`` in FP32, or exported; what cannot run here is left out with a note.
        rgb: Photos (N, 3, H, W) in [0, 1] of the size that the artifacts take.
        count: Levels, the ends among them.
        lpips_net: Which LPIPS.
        lpips_weights: Where the official weights are.
        threads: Of each runtime.
        progress: Where to report.

    Raises:
        UsageError: No artifact, several tasks, or fewer than two levels.
        UnsupportedError: The task has no control.
    """
    tasks = sorted({artifact.task for artifact in artifacts})
    if len(tasks) != 1 or count < 2:
        fix = "pass artifacts of one task, and two levels or more"
        raise UsageError(explain("levels", expected="one task", got=f"{tasks}, {count} levels", fix=fix))
    task = get_task(tasks[0])
    if not task.controls:
        fix = "use `python -m benchmarks run`"
        raise UnsupportedError(explain(f"task {task.name}", expected="a run-time control", got="none", fix=fix))
    control = task.controls[0]
    levels = tuple(control.minimum + (control.maximum - control.minimum) * i / (count - 1) for i in range(count))

    def score(answer: Answer) -> tuple[tuple[float, ...], tuple[float, ...]]:
        psnr, lpips = [], []
        for level in levels:
            inputs, target = task.prepare_at(rgb, [level])
            preds, truth = task.render(inputs, answer(inputs)), task.truth(inputs, target)
            psnr.append(float(metrics.psnr(preds, truth).mean()))
            lpips.append(float(metrics.lpips(preds, truth, net=lpips_net, weights=lpips_weights).mean()))
        return tuple(psnr), tuple(lpips)

    curves = [LevelCurve(IDLE, "", "", False, levels, *score(task.baseline))]
    with progress.track("Levels", total=len(artifacts)) as bar:
        for artifact in artifacts:
            if artifact.format == "torch" and artifact.precision is Precision.INT8:
                continue  # its numbers are those of what was exported from it
            runner, reason = open_any(artifact.path, threads=threads)
            if runner is None:
                progress.note(f"{artifact.path.name}: {reason}")
                continue
            with runner:
                answer = _answers_of(runner)
                detour, evenness = _transition(task, answer, rgb[:1], levels)
                values = (artifact.path.name, artifact.format, artifact.precision.value, runner.emulated, levels)
                curves.append(LevelCurve(*values, *score(answer), detour, evenness))
            bar.advance()
    return curves


def _answers_of(runner: Runner) -> Answer:
    """Return a call that computes packed inputs (N, C + k, H, W), one photo at a time."""

    def answer(inputs: Tensor) -> Tensor:
        outputs = [
            runner.infer(graph_feeds(np.ascontiguousarray(item[None].numpy()), runner.inputs))[runner.outputs[0].name]
            for item in inputs
        ]
        return torch.from_numpy(np.concatenate(outputs))

    return answer


def _transition(task: Task, answer: Answer, rgb: Tensor, levels: Sequence[float]) -> tuple[float | None, float | None]:
    """Return detour and evenness of the answers to one input at all levels; None where the level changes nothing."""
    inputs = task.prepare_at(rgb, [levels[len(levels) // 2]])[0]
    channels = inputs.shape[1] - len(task.controls)
    pictures = []
    for level in levels:
        moved = inputs.clone()
        moved[:, channels] = level
        pictures.append(answer(moved))
    steps = [float((b - a).square().mean().sqrt()) for a, b in pairwise(pictures)]
    distance = float((pictures[-1] - pictures[0]).square().mean().sqrt())
    if not distance:
        return None, None
    return sum(steps) / distance, min(steps) / max(steps)


def write_levels(folder: Path, curves: Sequence[LevelCurve], *, control: str, lpips_net: str) -> Path:
    """Write ``levels.json``, ``levels.md`` and ``levels.svg``; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "levels.json",
        {"control": control, "lpips_net": lpips_net, "curves": [asdict(curve) for curve in curves]},
    )
    (folder / "levels.md").write_text(table(curves, control=control, lpips_net=lpips_net), encoding="utf-8")
    (folder / "levels.svg").write_text(chart(curves, control=control, lpips_net=lpips_net), encoding="utf-8")
    return folder


def table(curves: Sequence[LevelCurve], *, control: str, lpips_net: str) -> str:
    """Return the curves as a Markdown table: PSNR in dB and LPIPS at each level."""
    heads = [f"{control} {level:g}" for level in curves[0].levels]
    lines = [f"PSNR (dB) / LPIPS-{lpips_net} by {control}; detour 1 is straight, evenness 1 is even.", ""]
    lines += [f"| artifact | {' | '.join(heads)} | detour | evenness |", "|---" * (len(heads) + 3) + "|"]
    for curve in curves:
        cells = [f"{p:.2f} / {d:.4f}" for p, d in zip(curve.psnr_db, curve.lpips, strict=True)]
        ends = ["-" if value is None else f"{value:.2f}" for value in (curve.detour, curve.evenness)]
        name = curve.name + (" (emulated)" if curve.emulated else "")
        lines.append(f"| {name} | {' | '.join([*cells, *ends])} |")
    return "\n".join(lines) + "\n"


def chart(curves: Sequence[LevelCurve], *, control: str, lpips_net: str) -> str:
    """Return two panels as SVG, PSNR and LPIPS against the level; INT8 is dashed, doing nothing grey and dotted."""
    parts = [_panel(curves, 0, "PSNR, dB (higher is better)", control, lambda c: c.psnr_db)]
    parts.append(_panel(curves, _WIDTH, f"LPIPS-{lpips_net} (lower is better)", control, lambda c: c.lpips))
    height = _HEIGHT + 20 * len(curves)
    for index, curve in enumerate(curves):
        y = _HEIGHT + 20 * index + 4
        note = "" if curve.detour is None else f", detour {curve.detour:.2f}, evenness {curve.evenness:.2f}"
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 30}" y2="{y}" {_stroke(curve)}/>')
        parts.append(f'<text x="{_LEFT + 38}" y="{y + 4}" font-size="12">{escape(curve.name + note)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {height}" font-family="{_FONT}" '
        f'fill="#1b1d22">\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _stroke(curve: LevelCurve) -> str:
    color = COLORS.get(curve.target, "#9aa0aa")
    dash = ' stroke-dasharray="2 4"' if not curve.target else ' stroke-dasharray="7 4"' * (curve.precision == "int8")
    return f'fill="none" stroke="{color}" stroke-width="2"{dash}'


def _panel(
    curves: Sequence[LevelCurve], left: int, title: str, control: str, pick: Callable[[LevelCurve], tuple[float, ...]]
) -> str:
    values = [value for curve in curves for value in pick(curve)]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    low, high = low - room, high + room
    levels = curves[0].levels

    def x(level: float) -> float:
        share = (level - levels[0]) / (levels[-1] - levels[0])
        return left + _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts: list[Any] = [f'<text x="{left + _LEFT}" y="28" font-size="14" font-weight="600">{escape(title)}</text>']
    for step in range(5):
        value = low + (high - low) * step / 4
        parts.append(
            f'<line x1="{x(levels[0]):.1f}" y1="{y(value):.1f}" x2="{x(levels[-1]):.1f}" y2="{y(value):.1f}" '
            f'stroke="#e6e8ec"/><text x="{left + _LEFT - 8}" y="{y(value) + 4:.1f}" font-size="11" '
            f'text-anchor="end" fill="#5d6470">{value:.3g}</text>'
        )
    for level in levels:
        parts.append(
            f'<text x="{x(level):.1f}" y="{_HEIGHT - _BOTTOM + 18}" font-size="11" text-anchor="middle" '
            f'fill="#5d6470">{level:g}</text>'
        )
    middle = left + (_LEFT + _WIDTH) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{_HEIGHT - 12}" font-size="12" text-anchor="middle">{escape(control)}</text>'
    )
    for curve in curves:
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(levels, pick(curve), strict=True))
        parts.append(f'<polyline points="{points}" {_stroke(curve)}/>')
    return "\n".join(parts)
