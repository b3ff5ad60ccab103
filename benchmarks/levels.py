"""Quality against the level: what a run-time control does in each artifact, before and after compression.

For each level, PSNR and LPIPS of the rendered answer against the ground truth at that level, and of doing nothing. For
the transition, one input at the middle level is run through all levels: ``detour`` is the length of the path of its
answers over the distance of its ends (1: straight), ``evenness`` the smallest step over the largest (1: even).

Engines of one network whose weights were blended at different levels are a set: one curve, each level by the engine
that is nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import metrics
from benchmarks.level_chart import IDLE, LevelCurve, chart, table
from export import open_runner
from export.parity import open_any
from models.artifact import Artifact, write_json
from models.controls import graph_feeds
from models.errors import UnsupportedError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.spec import Precision
from models.two_ends import load_at_levels

if TYPE_CHECKING:
    from export.target import Runner
    from models.tasks.base import Task

Answer = Callable[[Tensor], Tensor]


class Levels:
    """Photos prepared at each level of a control, and what a perfect network would give.

    Args:
        task: With a control.
        rgb: Photos (N, 3, H, W) in [0, 1] of the size that the artifacts take.
        count: Levels, the ends among them.
        lpips_net: Which LPIPS.
        lpips_weights: Where the official weights are.
        reference: What answers are compared with where the task has no ground truth; None: the task's own target.

    Raises:
        UsageError: Fewer than two levels.
        UnsupportedError: The task has no control, or cannot fix it.
    """

    def __init__(
        self,
        task: Task,
        rgb: Tensor,
        *,
        count: int = 5,
        lpips_net: str = "lite",
        lpips_weights: Path | None = None,
        reference: Answer | None = None,
    ) -> None:
        if not task.controls:
            fix = "use `python -m benchmarks run`"
            raise UnsupportedError(explain(f"task {task.name}", expected="a run-time control", got="none", fix=fix))
        if count < 2:
            raise UsageError(explain("levels", expected="two or more", got=count, fix="raise --count"))
        self.task, self.control = task, task.controls[0]
        low, high = self.control.minimum, self.control.maximum
        self.levels = tuple(low + (high - low) * index / (count - 1) for index in range(count))
        self._net, self._weights = lpips_net, lpips_weights
        prepared = [task.prepare_at(rgb, [level]) for level in self.levels]
        self._inputs = [inputs for inputs, _ in prepared]
        if reference is None or task.has_truth(rgb):
            self._truths = [task.truth(inputs, target) for inputs, target in prepared]
        else:
            self._truths = [task.render(inputs, reference(inputs)) for inputs in self._inputs]

    @property
    def calls(self) -> int:
        """How many photos ``curve`` runs through an answer."""
        return sum(len(inputs) for inputs in self._inputs) + len(self.levels)

    def idle(self) -> LevelCurve:
        """Return the curve of doing nothing."""
        return LevelCurve(IDLE, "", "", False, self.levels, *self._score(self.task.baseline))

    def curve(self, name: str, artifact: Artifact, answer: Answer, *, emulated: bool) -> LevelCurve:
        """Return the curve of an artifact, with its transition."""
        values = (name, artifact.format, artifact.precision.value, emulated, self.levels)
        return LevelCurve(*values, *self._score(answer), *self._transition(answer))

    def _score(self, answer: Answer) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
        psnr, lpips = [], []
        for inputs, truth in zip(self._inputs, self._truths, strict=True):
            preds = self.task.render(inputs, answer(inputs))
            value = float(metrics.psnr(preds, truth).mean())
            psnr.append(value if math.isfinite(value) else None)
            lpips.append(float(metrics.lpips(preds, truth, net=self._net, weights=self._weights).mean()))
        return tuple(psnr), tuple(lpips)

    def _transition(self, answer: Answer) -> tuple[float | None, float | None]:
        """Return detour and evenness of the answers to one input at all levels; None where nothing changes."""
        inputs = self._inputs[len(self.levels) // 2][:1]
        channels = inputs.shape[1] - len(self.task.controls)
        pictures = []
        for level in self.levels:
            moved = inputs.clone()
            moved[:, channels] = level
            pictures.append(answer(moved))
        steps = [float((b - a).square().mean().sqrt()) for a, b in pairwise(pictures)]
        distance = float((pictures[-1] - pictures[0]).square().mean().sqrt())
        if not distance:
            return None, None
        return sum(steps) / distance, min(steps) / max(steps)


@torch.no_grad()
def measure_levels(
    artifacts: Sequence[Artifact],
    rgb: Tensor,
    *,
    count: int = 5,
    lpips_net: str = "lite",
    lpips_weights: Path | None = None,
    threads: int | None = None,
    teacher: Artifact | None = None,
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
        teacher: What answers are compared with where the task has no ground truth; None: the task's own target.
        progress: Where to report.

    Raises:
        UsageError: No artifact, several tasks, or fewer than two levels.
        UnsupportedError: The task has no control, or cannot fix it.
    """
    tasks = sorted({artifact.task for artifact in artifacts})
    if len(tasks) != 1:
        fix = "pass artifacts of one task"
        raise UsageError(explain("levels", expected="one task", got=tasks, fix=fix))
    with ExitStack() as stack:
        reference = None
        if teacher is not None:
            reference = answers_of(stack.enter_context(open_runner(teacher.path, threads=threads)))
        levels = Levels(
            get_task(tasks[0]),
            rgb,
            count=count,
            lpips_net=lpips_net,
            lpips_weights=lpips_weights,
            reference=reference,
        )
    curves = [levels.idle()]
    # INT8 in PyTorch is a record: its numbers are those of what was exported from it
    able = [one for one in artifacts if one.format != "torch" or one.precision is not Precision.INT8]
    with progress.track("Levels", total=len(able)) as bar:
        for members in sets_of(able):
            with ExitStack() as stack:
                runners = []
                for member in members:
                    runner, reason = open_any(member.path, threads=threads)
                    if runner is None:
                        progress.note(f"{member.path.name}: {reason}")
                    else:
                        runners.append(stack.enter_context(runner))
                if len(runners) == len(members):
                    answer, emulated = answers_of_set(members, runners), any(runner.emulated for runner in runners)
                    curves.append(levels.curve(name_of_set(members), members[0], answer, emulated=emulated))
            bar.advance(len(members))
    return curves


def has_ends(artifact: Artifact) -> bool:
    """Say whether ``artifact`` is a network in PyTorch that is blended at any level."""
    return artifact.format == "torch" and isinstance(artifact.metadata.get("blend"), dict)


def fixed_level(artifact: Artifact) -> float:
    """Return the level of the task's control at which the weights of ``artifact`` were blended for good; else NaN."""
    knobs = get_task(artifact.task).controls
    for control in get_spec(artifact.model, task=artifact.task).controls:
        value = artifact.model_kwargs.get(control.name)
        if control.kind == "weight_blend" and value is not None and knobs and not has_ends(artifact):
            share = (value - control.minimum) / (control.maximum - control.minimum)
            return float(knobs[0].minimum + share * (knobs[0].maximum - knobs[0].minimum))
    return math.nan


def sets_of(artifacts: Sequence[Artifact]) -> list[list[Artifact]]:
    """Group engines that differ in the level of their blend, each level once; other artifacts stay alone."""
    groups: dict[Any, list[Artifact]] = {}
    for index, artifact in enumerate(artifacts):
        own = (artifact.model, artifact.format, artifact.precision, artifact.stages)
        level = fixed_level(artifact)
        same = any(fixed_level(member) == level for member in groups.get(own, []))
        groups.setdefault((index,) if math.isnan(level) or same else own, []).append(artifact)
    return [sorted(members, key=fixed_level) for members in groups.values()]


def name_of_set(members: Sequence[Artifact]) -> str:
    """Return the file name of one artifact, or the first of a set and their number."""
    return members[0].path.name + (f" to {members[-1].path.name}: {len(members)} engines" if len(members) > 1 else "")


def answers_of(runner: Runner) -> Answer:
    """Return a call that computes packed inputs (N, C + k, H, W), one photo at a time."""

    def answer(inputs: Tensor) -> Tensor:
        outputs = [
            runner.infer(graph_feeds(np.ascontiguousarray(item[None].numpy()), runner.inputs))[runner.outputs[0].name]
            for item in inputs
        ]
        return torch.from_numpy(np.concatenate(outputs))

    return answer


def answers_of_set(members: Sequence[Artifact], runners: Sequence[Runner]) -> Answer:
    """Return ``answers_of`` of one artifact, or of the engine of a set that is nearest to the level of each photo."""
    if has_ends(members[0]):
        return load_at_levels(members[0])
    answers = [answers_of(runner) for runner in runners]
    if len(members) == 1:
        return answers[0]
    places = torch.tensor([fixed_level(member) for member in members])

    def answer(inputs: Tensor) -> Tensor:
        nearest = (inputs[:, -1, 0, 0, None] - places).abs().argmin(dim=1)
        return torch.cat([answers[int(one)](item[None]) for one, item in zip(nearest, inputs, strict=True)])

    return answer


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
