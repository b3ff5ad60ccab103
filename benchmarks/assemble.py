"""From what was measured of a contestant to its row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import Contestant, name_of, say
from benchmarks.cost import Cost, cost
from benchmarks.quality import Photos, Scores
from benchmarks.row import COUNTED, NO_ORIGIN, BenchmarkRow, join_reasons
from benchmarks.timing import Measurement
from models.artifact import Artifact, load_network, size_of
from models.errors import PareError
from models.registry import get_spec

# What says who made an artifact, not what was done to it.
_ORIGINS = ("teacher", "train")
_MEANS = ("lpips", "lpips_vs_teacher", "psnr_db", "ssim", "ms_ssim", "delta_e")
_NO_TEACHER = "no teacher among the artifacts; pass --teacher"


@dataclass(frozen=True)
class Findings:
    """Everything that was measured; names are those of the contestants.

    Attributes:
        teacher: The reference, or None.
        photos: What the quality was measured on.
        lpips_net: Net of every LPIPS number.
        scores: Quality by name.
        latency: Engine times by name.
        whole: Times from photo to photo by name.
        iterations: Calls that were to be recorded.
        interference: Part of the processors that others used while the latencies were measured.
        costs: Hash of the artifact -> its cost, or why it is unknown.
        machine: ``Machine.id``.
        threads: Threads of the engines.
        root: Folder that artifact names are relative to.
        own_metrics: Names of the task's own metrics.
    """

    teacher: Artifact | None
    photos: Photos
    lpips_net: str
    scores: Mapping[str, Scores]
    latency: Mapping[str, Measurement]
    whole: Mapping[str, Measurement]
    iterations: int
    costs: Mapping[str, Cost | str]
    machine: str
    threads: int
    root: Path | None = None
    own_metrics: Sequence[str] = ()
    interference: float | None = None


def build_row(contestant: Contestant, found: Findings) -> BenchmarkRow:
    """Join what is known of one contestant; everything that is None gets its reason."""
    artifact, runner, probe = contestant.artifact, contestant.runner, contestant.probe
    reasons = dict(contestant.reasons)
    values = _quality(found.scores.get(contestant.name), found, reasons)
    values.update(_latency(contestant, found, reasons))
    spent = found.costs[artifact.sha256]
    if isinstance(spent, Cost):
        values.update(params_m=spent.params_m, gmacs=spent.gmacs)
    else:
        reasons[COUNTED] = spent
    if probe is not None:
        values.update(load_ms=probe.load_ms, first_inference_ms=probe.first_inference_ms)
        values.update(peak_rss_mb=probe.peak_rss_mb, rss_idle_mb=probe.rss_idle_mb)
    device = contestant.device if runner is None else "emulated" if runner.emulated else runner.device
    return BenchmarkRow(
        model=artifact.model,
        task=artifact.task,
        stage=stage_of(artifact, found.teacher),
        target=artifact.format,
        precision=artifact.precision.value,
        artifact=relative_name(artifact.path, found.root),
        sha256=artifact.sha256,
        parent_sha256=artifact.parent_sha256,
        stages=artifact.stages,
        device=device,
        runtime="" if runner is None else runner.runtime,
        machine=found.machine,
        threads=found.threads if runner is None else runner.threads,
        height=found.photos.height,
        width=found.photos.width,
        size_mb=size_of(artifact.path) / 1e6,
        status=contestant.status,
        reason=join_reasons(reasons),
        **values,
    )


def _quality(scores: Scores | None, found: Findings, reasons: dict[str, str]) -> dict[str, Any]:
    """Return the quality columns; why one is missing goes to ``reasons``."""
    if scores is None or scores.error is not None:
        return {}
    values: dict[str, Any] = {name: scores.mean(name) for name in _MEANS}
    values["own_metrics"] = {name: scores.mean(name) for name in found.own_metrics}
    reasons.update({name: "not finite" for name, value in values["own_metrics"].items() if value is None})
    reasons.update(scores.missing)
    if found.teacher is None:
        reasons["lpips_vs_teacher"] = _NO_TEACHER
    elif values["lpips_vs_teacher"] is None:
        reasons["lpips_vs_teacher"] = "the teacher gave no pictures"
    own, truth = scores.mean("colourfulness"), scores.mean("colourfulness_of_truth")
    if own is not None and truth:
        values["colourfulness_ratio"] = own / truth
    if values["lpips"] is not None or values["lpips_vs_teacher"] is not None:
        lpips = scores.distances
        worst = max(range(len(lpips)), key=lpips.__getitem__)
        values.update(lpips_net=found.lpips_net, lpips_worst=lpips[worst], worst_photo=found.photos.names[worst])
    values.update(photos=len(found.photos), photos_fingerprint=found.photos.fingerprint)
    return values


def _latency(contestant: Contestant, found: Findings, reasons: dict[str, str]) -> dict[str, Any]:
    """Return the latency columns; ``speedup`` is over the teacher on the same device, else over that on the CPU."""
    engine, whole = found.latency.get(contestant.name), found.whole.get(contestant.name)
    if engine is None or whole is None:
        return {}
    values: dict[str, Any] = {
        "latency_p50_ms": engine.p50_ms,
        "latency_p95_ms": engine.p95_ms,
        "latency_is_noisy": engine.is_noisy,
        "images_per_s": engine.images_per_s,
        "end_to_end_p50_ms": whole.p50_ms,
        "end_to_end_p95_ms": whole.p95_ms,
        "warmup": engine.warmup,
        "interference": found.interference,
        "times_ms": engine.times_ms,
        "end_to_end_times_ms": whole.times_ms,
    }
    if len(engine.times_ms) < found.iterations:
        reasons["samples"] = f"{len(engine.times_ms)} of {found.iterations}: the machine or the artifact is too slow"
    if found.teacher is None:
        reasons["speedup"] = _NO_TEACHER
        return values
    for device in (contestant.device, "cpu"):
        base = found.latency.get(name_of(found.teacher, device))
        if base is not None:
            return {**values, "speedup": base.p50_ms / engine.p50_ms, "speedup_over": f"torch fp32 on {device}"}
    reasons["speedup"] = "the teacher was not timed"
    return values


def count_costs(artifacts: Sequence[Artifact], input_size: tuple[int, int]) -> dict[str, Cost | str]:
    """Count each ``torch`` network once; an exported artifact costs what its nearest ``torch`` parent costs.

    Returns:
        Hash of the artifact -> its cost, or why it is unknown.
    """
    by_hash = {artifact.sha256: artifact for artifact in artifacts}
    counted: dict[str, Cost | str] = {}
    for artifact in artifacts:
        origin: Artifact | None = artifact
        while origin is not None and origin.format != "torch":
            origin = by_hash.get(origin.parent_sha256 or "")
        if origin is None:
            counted[artifact.sha256] = NO_ORIGIN
            continue
        if origin.sha256 not in counted:
            counted[origin.sha256] = _count(origin, input_size)
        counted[artifact.sha256] = counted[origin.sha256]
    return counted


def _count(artifact: Artifact, input_size: tuple[int, int]) -> Cost | str:
    channels = get_spec(artifact.model, task=artifact.task).packed_channels
    try:
        return cost(load_network(artifact), (1, channels, *input_size))
    except (PareError, RuntimeError, TypeError, ValueError) as error:
        return say(error)


def stage_of(artifact: Artifact, teacher: Artifact | None = None) -> str:
    """Return the last thing done to the weights, ``teacher`` for the teacher itself and what it was exported to."""
    if teacher is not None and artifact.sha256 == teacher.sha256:
        return "teacher"
    done = [stage for stage in artifact.stages if stage not in _ORIGINS]
    return done[-1] if done else "teacher"


def relative_name(path: Path, root: Path | None) -> str:
    """Return ``path`` relative to ``root`` with forward slashes, or its bare name."""
    if root is not None and path.resolve().is_relative_to(root.resolve()):
        return path.resolve().relative_to(root.resolve()).as_posix()
    return path.name
