"""What the screens before export found, for the report: layers kept in FP32, operators off the fast path.

``report.json`` holds it under ``screens`` by hash of the artifact; equal findings of several artifacts become one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.row import TARGET_NAMES, BenchmarkRow
from export.screens import ASKED, LARGEST_HALF, RANGE, ROUNDING
from models.artifact import Artifact

HEAD = ("Finding", "Layers", "What was done", "Artifacts")
_NAMED = 4
_PEAK = "PEAK"
_WORDS = {"applied": "rewritten", "advised": "not rewritten, advised", "kept": "kept as it is"}
_OPERATOR = "these sum, divide or exponentiate: FP32 in every FP16 graph"
_BY_HAND = "FP32, as asked with keep_fp32"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: Short name.
        layers: Layers or nodes, with how many more there are.
        done: Which rewrite was applied or is advised, and why.
        artifacts: Where it was found.
    """

    what: str
    layers: str
    done: str
    artifacts: str

    def cells(self) -> tuple[str, str, str, str]:
        """Return the texts in the order of ``HEAD``."""
        return (self.what, self.layers, self.done, self.artifacts)


def records(artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """Return what the screens found in exported artifacts: hash -> large layers, slow operators, what was kept in FP32.

    Artifacts in which nothing was found, and those that were not exported, are left out.
    """
    found = {}
    for artifact in artifacts:
        screens: Mapping[str, Any] = artifact.metadata.get("screens") or {}
        kept = dict(artifact.metadata.get("kept_fp32") or {})
        large, slow = screens.get("large") or [], screens.get("slow") or []
        if large or slow or kept:
            found[artifact.sha256] = {"large": large, "slow": slow, "kept_fp32": kept}
    return found


def findings(content: Mapping[str, Mapping[str, Any]], rows: Sequence[BenchmarkRow]) -> list[Finding]:
    """Join equal findings of several artifacts.

    Args:
        content: What ``records`` gave.
        rows: Rows of the report.

    Returns:
        FP16 first, then operators; in the order of the rows.
    """
    exported = list({row.sha256: row for row in rows if row.sha256 and row.target != "torch"}.values())
    joined: dict[tuple[int, str, str, str], list[tuple[BenchmarkRow, float]]] = {}
    for row in exported:
        record = content.get(row.sha256)
        if record is not None:
            for rank, what, layers, done, peak in (*_half(row, record), *_slow(record)):
                joined.setdefault((rank, what, layers, done), []).append((row, peak))
    lines = []
    for (_, what, layers, done), met in sorted(joined.items(), key=lambda item: item[0][0]):
        done = done.replace(_PEAK, f"{max(peak for _, peak in met):.3g}")
        lines.append(Finding(what, layers, done, _artifacts([row for row, _ in met], len(exported))))
    return lines


def _half(row: BenchmarkRow, record: Mapping[str, Any]) -> list[tuple[int, str, str, str, float]]:
    """Return what FP16 arithmetic could not hold as (rank, what, layers, done, largest value)."""
    kept: Mapping[str, str] = record["kept_fp32"]
    large = [str(item["layer"]) for item in record["large"]]
    peak = max((float(item["peak"]) for item in record["large"]), default=0.0)
    lines = []
    by_range = [name for name, reason in kept.items() if reason == RANGE]
    reach = f"values reach {_PEAK} and a half ends at {LARGEST_HALF:g}" if large else "values beyond a half in a probe"
    if by_range:
        lines.append((0, "FP16 range", _few(large or by_range), f"kept in FP32: {reach}", peak))
    elif large and row.precision == "fp16":
        done = f"not changed in this format: {reach}, and may overflow where the device computes in FP16"
        lines.append((0, "FP16 range", _few(large), done, peak))
    if ROUNDING in kept.values():
        done = "only layers with weights are in FP16: the rest loses its digits there"
        lines.append((1, "FP16 rounding", "all", done, 0.0))
    kinds = sorted({reason for reason in kept.values() if reason not in (RANGE, ASKED, ROUNDING)})
    if kinds:
        nodes = [name for name, reason in kept.items() if reason in kinds]
        lines.append((1, ", ".join(kinds), _few(nodes), _OPERATOR, 0.0))
    if asked := [name for name, reason in kept.items() if reason == ASKED]:
        lines.append((2, "kept by hand", _few(asked), _BY_HAND, 0.0))
    return lines


def _slow(record: Mapping[str, Any]) -> list[tuple[int, str, str, str, float]]:
    return [
        (
            3,
            f"{item['operator']} x{item['count']}",
            _few(item["layers"], at_least=int(item["count"])),
            f"{_WORDS[item['rewrite']]}: {item['advice']}",
            0.0,
        )
        for item in record["slow"]
    ]


def _few(names: Sequence[str], *, at_least: int = 0) -> str:
    """Name the first of ``names``; of a list that was cut short already, say that there are others."""
    more = len(names) - _NAMED
    if more > 0:
        return f"{', '.join(names[:_NAMED])} and {more} more"
    return ", ".join(names) + (", ..." if at_least > len(names) == _NAMED else "")


def _artifacts(rows: Sequence[BenchmarkRow], of: int) -> str:
    """Name artifacts briefly, for example ``Pruned: ONNX Runtime FP32, FP16; OpenVINO FP32``."""
    if len(rows) == of > 1:
        return f"all {of} exported"
    stages: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        target = stages.setdefault(row.stage_name, {}).setdefault(TARGET_NAMES.get(row.target, row.target), [])
        if row.precision.upper() not in target:
            target.append(row.precision.upper())
    return "; ".join(
        f"{stage}: " + ", ".join(f"{target} {' '.join(kinds)}" for target, kinds in targets.items())
        for stage, targets in stages.items()
    )
