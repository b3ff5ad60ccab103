"""A task without a ground truth, made whole: the target is what the teacher answers.

Everything in the stages that compares with a target (losses, the importance of channels, sensitivities, scores) then
compares with the teacher, and no stage needs a case of its own.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from models.artifact import Artifact, load_network
from models.errors import ConfigError, explain
from models.registry import get_task
from models.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.stage import StageContext


class _Taught(Task):
    """Put before the class of a task: the teacher answers what has no ground truth."""

    teacher: nn.Module

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (N, C, H, W) in [0, 1] -> input, and the ground truth or the teacher's answer to it."""
        inputs, target = super().prepare(rgb)  # type: ignore[safe-super]
        if self.has_truth(rgb):
            return inputs, target
        device = next((p.device for p in self.teacher.parameters()), inputs.device)
        with torch.no_grad():
            return inputs, self.teacher(inputs.to(device)).to(inputs.device).float()

    def inputs_of(self, rgb: Tensor) -> Tensor:
        """The network input alone: the teacher is not asked."""
        return super().prepare(rgb)[0]  # type: ignore[safe-super]


def taught(task: Task, teacher: nn.Module) -> Task:
    """Return ``task`` with the answers of ``teacher``, a network of that task, where it has no ground truth."""
    made = copy.copy(task)
    made.__class__ = type(f"Taught{type(task).__name__}", (_Taught, type(task)), {})
    assert isinstance(made, _Taught)
    made.teacher = teacher.eval().requires_grad_(False)
    return made


def lacks_truth(task: Task) -> bool:
    """Say whether photos of this task may come without a ground truth."""
    return type(task).has_truth is not Task.has_truth


def task_of(artifact: Artifact, data: StageContext) -> Task:
    """Return the task of ``artifact`` as a stage uses it: taught by the run's teacher where it has no ground truth.

    Without a teacher at hand, an artifact is its own.
    """
    task = get_task(artifact.task)
    return taught(task, load_network(data.teacher or artifact)) if lacks_truth(task) else task


def check_truth(task: Task, rgb: Tensor) -> None:
    """Raise ConfigError when photos (N, C, H, W) have no ground truth to train on."""
    if not task.has_truth(rgb):
        fix = "pass --data with folders input and target, or a task file of your own whose prepare makes a target"
        got = "photos alone: the target would be the input"
        raise ConfigError(explain(f"training of task {task.name}", expected="a ground truth", got=got, fix=fix))
