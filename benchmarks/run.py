"""Comparing artifacts with their teacher: quality on the same photos, latency in the same minutes, cost, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.assemble import Findings, build_row, count_costs, stage_of
from benchmarks.contest import Contestant, open_contestants
from benchmarks.contest_levels import contest_levels
from benchmarks.cost import Cost
from benchmarks.machine import Interference, Machine, describe_machine, pinned
from benchmarks.pictures import Picture, choose_photos, take_pictures
from benchmarks.quality import BASELINE, Judge, Photos, Scores, evaluate
from benchmarks.row import BenchmarkRow
from benchmarks.screens import records
from benchmarks.settings import AUTO, Settings
from benchmarks.subject import Subject
from benchmarks.timing import Measurement, measure_interleaved
from models.artifact import Artifact
from models.errors import ConfigError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models.photos import PhotoSet
    from models.tasks.base import Task


@dataclass(frozen=True)
class Benchmark:
    """A finished comparison: everything that ``write_report`` needs.

    Attributes:
        rows: One an artifact and device, in the order of the artifacts.
        machine: Where.
        details: Settings, photos with their values, do-nothing baseline, what was not counted; JSON values.
        pictures: Photos side by side.
    """

    rows: tuple[BenchmarkRow, ...]
    machine: Machine
    details: dict[str, Any]
    pictures: tuple[Picture, ...] = field(default=(), compare=False)


def benchmark(
    artifacts: Sequence[Artifact],
    photos: PhotoSet | NDArray[np.uint8] | Tensor,
    *,
    teacher: Artifact | None = None,
    settings: Settings | None = None,
    root: Path | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Benchmark:
    """Measure artifacts of one task on the same photos and, interleaved, on this machine.

    Args:
        artifacts: What is compared; the teacher may be among them.
        photos: Photos that nothing was trained on: a PhotoSet, uint8 (N, H, W, 3), or a tensor (N, 3, H, W) in [0, 1].
        teacher: The reference, a ``torch`` artifact; None: the first of ``artifacts`` that is nobody's student. Without
            one, ``speedup`` and ``lpips_vs_teacher`` are None and the rows say why.
        settings: How.
        root: Folder that artifact names are relative to.
        progress: Where to report.

    Returns:
        One row an artifact. What cannot run here has ``latency_p50_ms`` None and the reason; one that fails does not
        stop the others.

    Raises:
        ConfigError: No artifact, or artifacts of several tasks.
        DataError: No usable photo.
        UnknownNameError: No such LPIPS net.
    """
    settings = settings or Settings()
    settings = replace(settings, threads=settings.threads or default_threads())
    chosen, teacher = _line_up(artifacts, teacher)
    task = get_task(chosen[0].task)
    shown = Photos.of(photos, task.photo_size(settings.input_size), limit=settings.photo_limit)
    before, machine = torch.get_num_threads(), describe_machine(threads=settings.threads)
    with ExitStack() as stack:
        cpus = stack.enter_context(pinned(settings.threads))
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(settings.threads or before)
        contest = _Contest(task, shown, settings, replace(machine, pinned_to_cpus=cpus), progress)
        return contest.hold(chosen, teacher, stack, root=root)


class _Contest:
    """The steps of ``benchmark``, which share their surroundings."""

    def __init__(self, task: Task, photos: Photos, settings: Settings, machine: Machine, progress: Progress) -> None:
        self.task, self.photos, self.settings = task, photos, settings
        self.machine, self.progress = machine, progress

    def hold(
        self, artifacts: list[Artifact], teacher: Artifact | None, stack: ExitStack, *, root: Path | None
    ) -> Benchmark:
        """Open, judge, time, and write the rows."""
        contestants = self._open(artifacts, stack, device=self.settings.device)
        on_gpu = any(c.can_be_timed and c.device == "cuda" for c in contestants)
        if teacher is not None and self.settings.device == AUTO and on_gpu and torch.cuda.is_available():
            contestants += self._open([teacher], stack, device="cuda")  # the 1x of what runs on the GPU
        scores = self._judge(contestants, teacher)
        with Interference(self.machine.pinned_to_cpus) as others:
            latency, whole = self._time(contestants)
        found = Findings(
            teacher=teacher,
            photos=self.photos,
            lpips_net=self.settings.lpips_net,
            scores=scores,
            latency=latency,
            whole=whole,
            iterations=self.settings.iterations,
            interference=others.share,
            costs=count_costs(artifacts, self.settings.input_size),
            machine=self.machine.id,
            threads=self.settings.threads or 1,
            root=root,
            own_metrics=tuple(self.task.own_metrics()),
        )
        rows = {contestant.name: build_row(contestant, found) for contestant in contestants}
        pictures = self._pictures(contestants, rows, scores)
        details = {**self._details(found, rows), "screens": records(artifacts)}
        details["levels"] = contest_levels(
            contestants,
            rows,
            scores,
            task=self.task,
            photos=self.photos,
            teacher=teacher,
            settings=self.settings,
            progress=self.progress,
        )
        return Benchmark(tuple(rows.values()), self.machine, details, pictures)

    def _open(self, artifacts: Sequence[Artifact], stack: ExitStack, *, device: str) -> list[Contestant]:
        return open_contestants(
            artifacts,
            stack,
            device=device,
            threads=self.settings.threads,
            input_size=self.settings.input_size,
            probes=self.settings.probes,
            progress=self.progress,
        )

    def _judge(self, contestants: list[Contestant], teacher: Artifact | None) -> dict[str, Scores]:
        judge = Judge(self.settings.lpips_net, self.settings.lpips_weights, self.task.own_metrics())
        able = {c.name: c for c in contestants if c.runner is not None}
        reference = next((name for name, c in able.items() if c.artifact is teacher), None)
        subjects = {name: c.subject for name, c in able.items()}
        scores = evaluate(subjects, self.task, self.photos, judge, teacher=reference, progress=self.progress)
        for name, contestant in able.items():
            error = scores[name].error
            if error is not None:
                contestant.drop("failed", error)
        return scores

    def _time(self, contestants: list[Contestant]) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
        able = {c.name: c for c in contestants if c.can_be_timed}
        if not self.settings.latency or not able:
            for contestant in able.values():
                contestant.status, contestant.reasons["latency"] = "built", "not asked for"
            return {}, {}
        pixels = self.photos.load(0)
        feeds = {name: feed(c.subject, self.task, pixels) for name, c in able.items()}
        measure = partial(
            measure_interleaved,
            warmup=self.settings.warmup,
            seed=self.settings.seed,
            max_seconds=self.settings.max_seconds,
            progress=self.progress,
        )
        latency = measure(
            {name: partial(c.infer, feeds[name]) for name, c in able.items()}, iterations=self.settings.iterations
        )
        whole = measure(
            {name: partial(c.subject.end_to_end, self.task, pixels) for name, c in able.items()},
            iterations=max(self.settings.iterations // 2, 1),
            description="Measuring photo to photo",
        )
        return latency, whole

    def _pictures(
        self, contestants: list[Contestant], rows: Mapping[str, BenchmarkRow], scores: Mapping[str, Scores]
    ) -> tuple[Picture, ...]:
        able = [c for c in contestants if c.runner is not None and rows[c.name].distance is not None]
        if not able or not self.settings.pictures:
            return ()
        # the shipped one: of those measured the fastest, else the last
        best = max(able, key=lambda c: rows[c.name].speedup or 0.0)
        chosen = choose_photos(scores[best.name].distances, self.settings.pictures)
        return take_pictures(
            {c.name: (rows[c.name].label, c.subject, scores[c.name].distances) for c in able},
            self.task,
            self.photos,
            chosen,
            judged_by=rows[best.name].label,
            progress=self.progress,
        )

    def _details(self, found: Findings, rows: Mapping[str, BenchmarkRow]) -> dict[str, Any]:
        idle = found.scores[BASELINE]
        values = {
            f"{row.artifact}@{row.device}": {"lpips": found.scores[name].distances, "infer_ms": times}
            for name, row in rows.items()
            if name in found.scores and row.distance is not None and (times := found.scores[name].infer_ms)
        }
        baseline = {name: idle.mean(name) for name in ("lpips", "psnr_db", "ssim", "delta_e", *self.task.own_metrics())}
        if baseline["lpips"] is None:
            baseline["lpips"] = idle.mean("lpips_vs_teacher")
        skipped = [{"photo": s.path.name, "reason": s.reason} for s in getattr(self.photos.source, "skipped", [])]
        counted = [spent for spent in found.costs.values() if isinstance(spent, Cost)]
        return {
            "settings": self.settings.to_json(),
            "baseline": {"what": self.task.do_nothing, "lpips_net": found.lpips_net, **baseline},
            "photos": {
                "count": len(self.photos),
                "fingerprint": self.photos.fingerprint,
                "names": list(self.photos.names),
                "skipped": skipped,
                "values": values,
            },
            "not_counted": sorted({operator.split(" ")[0] for spent in counted for operator in spent.not_counted}),
            "machines": {self.machine.id: self.machine.to_json()},
        }


def feed(subject: Subject, task: Task, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn one photo (H, W, 3) uint8 into what an engine is fed in an app, float32 (1, C, H, W)."""
    from models.photos import to_batch

    photo = to_batch([pixels])
    return subject.feed(photo, task.app_input(photo))


def _line_up(artifacts: Sequence[Artifact], teacher: Artifact | None) -> tuple[list[Artifact], Artifact | None]:
    """Put the teacher first, drop copies, and check that all have one task."""
    if teacher is None:
        teacher = next(
            (a for a in artifacts if a.format == "torch" and a.precision is Precision.FP32 and _is_teacher(a)), None
        )
    elif teacher.format != "torch":
        fix = "pass the .safetensors of the teacher"
        raise ConfigError(explain("--teacher", expected="a torch artifact", got=teacher.format, fix=fix))
    chosen = [teacher] if teacher is not None else []
    for artifact in artifacts:
        if all((artifact.sha256, artifact.format) != (other.sha256, other.format) for other in chosen):
            chosen.append(artifact)
    tasks = sorted({artifact.task for artifact in chosen})
    if len(tasks) != 1:
        fix = "pass artifacts of one task"
        raise ConfigError(explain("artifacts", expected="one task", got=tasks or "no artifact", fix=fix))
    return chosen, teacher


def _is_teacher(artifact: Artifact) -> bool:
    return stage_of(artifact) == "teacher" and get_spec(artifact.model, task=artifact.task).role == "teacher"


def default_threads() -> int:
    """Return the number of physical cores, or of the processors that this process may use where those are fewer."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
