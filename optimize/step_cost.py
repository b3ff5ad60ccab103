"""What distillation costs a training step: the same student, the same crops, with and without the teacher.

The student's own step decodes and crops photos and minimises the pixel loss and LPIPS against the ground truth. The
distillation step reads crops with the teacher's cached answers and minimises the same losses plus the distances to the
teacher's output and features. Both include loading their batch, backward, optimizer and weight average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.timing import Measurement, measure_interleaved
from models.artifact import Artifact
from models.registry import get_spec, get_task
from optimize.data import PhotoCrops, to_float
from optimize.distill import DistillConfig, DistillStep, FeatureTap, start_student
from optimize.loop import Fit
from optimize.teacher_answers import AnswerConfig, compute_answers
from optimize.train import TrainConfig, TrainStep

if TYPE_CHECKING:
    from optimize.stage import StageContext


def measure_step_cost(
    teacher: Artifact, config: DistillConfig, data: StageContext, out: Path, *, iterations: int = 30
) -> dict[str, Measurement]:
    """Time a step of the student ``alone`` and with ``distillation``, taking turns.

    Args:
        teacher: Artifact of format ``torch``.
        config: The distillation; its first phase gives crop size and batch size.
        data: Photos, progress, LPIPS.
        out: Folder of the cached answers.
        iterations: Recorded steps of each.

    Returns:
        ``alone`` and ``distillation``; the ratio of their ``p50_ms`` is what distillation costs.
    """
    phase, fc = config.fit.phases[0], config.fit
    task, scratch = get_task(teacher.task), replace(config, from_scratch=True)
    wanted = AnswerConfig(phase.size, views=fc.repeat, seed=fc.seed, features=bool(config.feature_weight))
    answers = compute_answers(teacher, data.train, wanted, cache=out / "cache", progress=data.progress)
    student, name, _ = start_student(scratch, teacher)
    feature = get_spec(name, task=teacher.task).feature if answers.feature_channels else None
    tap, projection = FeatureTap(student, feature), None
    if feature is not None:
        sample = task.prepare(to_float(answers[0][0][None]))[0]
        projection = nn.Conv2d(tap.channels(student, sample), answers.feature_channels, 1)
    with_teacher = Fit(student, fc, checkpoint=out / "a.checkpoint.safetensors", extras=projection)
    alone = Fit(start_student(scratch, teacher)[0], fc, checkpoint=out / "b.checkpoint.safetensors")
    own = TrainConfig(model=name, fit=fc, perceptual_weight=config.perceptual_weight, lpips_net=config.lpips_net)
    crops = PhotoCrops(data.train, phase.size, seed=fc.seed, repeat=fc.repeat)
    own_step = TrainStep(alone, task, own, data.lpips_weights)
    distill_step = DistillStep(with_teacher, task, config, tap, data.lpips_weights)
    contestants = {
        "alone": _stepper(alone, own_step, _batches(crops, phase.batch_size)),
        "distillation": _stepper(with_teacher, distill_step, _batches(answers, phase.batch_size)),
    }
    title = "Timing training steps"
    return measure_interleaved(
        contestants, warmup=5, iterations=iterations, batch=phase.batch_size, description=title, progress=data.progress
    )


def _batches(dataset: Any, batch_size: int) -> Iterator[Any]:
    while True:
        yield from DataLoader(dataset, batch_size, shuffle=True, drop_last=len(dataset) >= batch_size)
        dataset.epoch += 1


def _stepper(fit: Fit, step: Callable[[Any, float], Any], batches: Iterator[Any]) -> Callable[[], Tensor]:
    fit.net.train()

    def run() -> Tensor:
        loss: Tensor = step(next(batches), 0.5)["loss"]
        fit.descend(loss)
        return loss.detach()

    return run
