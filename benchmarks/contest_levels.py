"""The levels of a run-time control in the report of a contest: few photos, few levels, what takes long left out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.contest import Contestant, say
from benchmarks.levels import Levels, answers_of, answers_of_set, has_ends, sets_of
from benchmarks.quality import Photos, Scores
from benchmarks.settings import Settings
from models.artifact import Artifact
from models.errors import PareError
from models.photos import to_batch
from models.progress import Progress
from models.registry import get_spec
from models.spec import Precision

if TYPE_CHECKING:
    from benchmarks.row import BenchmarkRow
    from models.tasks.base import Task

_MS_PER_S = 1000.0
_EARLIER = "the export of an earlier stage: it computes what that stage does in PyTorch"


@torch.no_grad()
def contest_levels(
    contestants: Sequence[Contestant],
    rows: Mapping[str, BenchmarkRow],
    scores: Mapping[str, Scores],
    *,
    task: Task,
    photos: Photos,
    teacher: Artifact | None,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Measure quality against the level for what can run here, or is emulated quickly enough.

    An artifact that would take longer than ``settings.max_seconds``, by its time of one photo in the contest, is left
    out; so are exports of the teacher and of stages in between.

    Args:
        contestants: With open runners.
        rows: Their rows, by name.
        scores: What was measured of them before, by name.
        task: Of all of them.
        photos: Of the contest; the first ``settings.level_photos`` are taken.
        teacher: What answers are compared with where the task has no ground truth.
        settings: How.
        progress: Where to report.

    Returns:
        JSON values: ``control``, ``lpips_net``, ``photos``, ``curves`` (doing nothing first) and ``left_out``
        (artifacts with reasons). Empty where no artifact has a control that is an input of its graph.
    """
    able = _with_control(contestants)
    if not able or not settings.levels:
        return {}
    alone = [contestant for members in able for contestant in members]
    count = min(settings.level_photos, len(photos))
    content: dict[str, Any] = {"control": task.controls[0].name if task.controls else "", "curves": [], "left_out": []}
    content |= {"lpips_net": settings.lpips_net, "photos": list(photos.names[:count])}
    first = next((c for c in alone if c.artifact is teacher and c.runner is not None), None)
    reference = None if first is None or first.runner is None else answers_of(first.runner)
    try:
        rgb = torch.cat([to_batch([photos.load(index)]) for index in range(count)])
        levels = Levels(
            task,
            rgb,
            count=settings.levels,
            lpips_net=settings.lpips_net,
            lpips_weights=settings.lpips_weights,
            reference=reference,
        )
    except PareError as error:
        return {**content, "left_out": [{"artifact": "all artifacts", "reason": say(error)}]}
    curves = [levels.idle()]
    with progress.track("Levels", total=len(able)) as bar:
        for members in able:
            label = rows[members[0].name].label + (f", {len(members)} engines" if len(members) > 1 else "")
            calls, seconds = levels.calls // len(members), settings.max_seconds
            reasons = [_why_not(one, alone, scores.get(one.name), calls, seconds) for one in members]
            reason = next((one for one in reasons if one is not None), None)
            runners = [one.runner for one in members if one.runner is not None]
            if reason is None:
                emulated = any(runner.emulated for runner in runners)
                try:
                    answer = answers_of_set([one.artifact for one in members], runners)
                    curves.append(levels.curve(label, members[0].artifact, answer, emulated=emulated))
                except Exception as error:  # a third-party runtime may raise anything; the others go on
                    reason = say(error)
            if reason is not None:
                content["left_out"].append({"artifact": label, "reason": reason})
            bar.advance()
    return {**content, "curves": [asdict(curve) for curve in curves]}


def _with_control(contestants: Sequence[Contestant]) -> list[list[Contestant]]:
    """Return what has a level, each artifact once and on its first device.

    That is a graph that takes a control, a network in PyTorch with both ends of a blend, and a set of engines that were
    blended at several levels. INT8 in PyTorch is a record only.
    """
    found: dict[str, Contestant] = {}
    for contestant in contestants:
        artifact = contestant.artifact
        if artifact.format != "torch" or artifact.precision is not Precision.INT8:
            found.setdefault(artifact.sha256, contestant)
    groups = sets_of([contestant.artifact for contestant in found.values()])
    return [
        [found[artifact.sha256] for artifact in group]
        for group in groups
        if len(group) > 1 or has_ends(group[0]) or get_spec(group[0].model, task=group[0].task).graph_controls
    ]


def _why_not(
    contestant: Contestant, others: Sequence[Contestant], scores: Scores | None, calls: int, max_seconds: float
) -> str | None:
    """Return why a contestant has no curve, or None."""
    if contestant.runner is None:
        return "; ".join(contestant.reasons.values()) or "it did not run"
    floats = [c.artifact for c in others if c.artifact.format != "torch" and c.artifact.precision is not Precision.INT8]
    last = max((len(artifact.stages) for artifact in floats), default=0)
    if contestant.artifact.format != "torch" and len(contestant.artifact.stages) < last:
        return _EARLIER
    one = statistics.median(scores.infer_ms) / _MS_PER_S if scores is not None and scores.infer_ms else 0.0
    if one * calls > max_seconds:
        return f"a photo takes {one:.2g} s, and {calls} of them more than {max_seconds:g} s"
    return None
