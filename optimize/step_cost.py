"""What a training step costs: with and without the teacher, the same student and crops; in FP32 and in BF16.

The student's own step decodes and crops photos and minimises the pixel loss and LPIPS against the ground truth. The
distillation step reads crops with the teacher's cached answers and minimises the same losses plus the distances to the
teacher's output and features. Both include loading their batch, backward, optimizer and weight average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.timing import Measurement, measure_interleaved
from models.artifact import Artifact
from models.progress import NULL_PROGRESS, Progress
from models.registry import create_model, get_spec, get_task
from optimize.data import PhotoCrops, to_float
from optimize.distill import DistillConfig, DistillStep, FeatureTap, start_student
from optimize.loop import Fit
from optimize.pruner import example_inputs
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


def measure_precisions(
    model: str, *, size: int = 96, batch: int = 4, iterations: int = 3, progress: Progress = NULL_PROGRESS
) -> dict[str, Measurement]:
    """Time a step (forward, backward, AdamW) of ``model`` in ``no`` mixed precision and in ``bf16``, taking turns.

    Args:
        model: Registry name; weights are random.
        size: Height and width of its first input.
        batch: Images a step.
        iterations: Recorded steps of each.
        progress: Where to report.
    """
    spec = get_spec(model)
    net = create_model(model).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = example_inputs(spec, (size, size), batch=batch)
    optimizer = torch.optim.AdamW(net.parameters())

    def step(precision: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss: Tensor = net(*inputs).float().abs().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return run

    contestants = {precision: step(precision) for precision in ("no", "bf16")}
    return measure_interleaved(contestants, warmup=1, iterations=iterations, batch=batch, progress=progress)


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
