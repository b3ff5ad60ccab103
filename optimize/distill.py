"""Distil a teacher into a small student: its answers, its features, and LPIPS on the rendered RGB.

Source: Hinton et al. 2015 (distillation); Romero et al. 2015 (feature hints); the colorization report's ``kl_mse``.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.metrics import LPIPS_NETS
from models.artifact import Artifact, save_network
from models.errors import ConfigError, UnknownNameError, UnsupportedError, explain
from models.registry import WEIGHTS, create_model, get_spec, get_task, list_models, load_object
from models.two_ends import load_at_levels
from optimize.config import to_plain
from optimize.crop_sizes import check_student, fitting
from optimize.data import to_float
from optimize.evaluate import evaluate, load_photos, lpips_all, render_all
from optimize.loop import Fit, FitConfig, Phase, run_fit
from optimize.losses import PixelLoss, feature_loss, kl_mse, pixel_loss, total_variation
from optimize.narrow import TEACHER, narrowed
from optimize.steps import written_once
from optimize.taught import task_of
from optimize.teacher_answers import AnswerConfig, Answers, compute_answers

if TYPE_CHECKING:
    from models.photos import PhotoSet
    from models.spec import ModelSpec
    from models.tasks.base import Task
    from optimize.stage import StageContext

_JUDGES = 24
#: How many times as long as the training the teacher may answer.
_ANSWERING = 3
_STARTS = {"shipped": "the shipped weights", "narrowed": "the teacher's own channels", "scratch": "scratch"}


@dataclass(frozen=True)
class DistillConfig:
    """How to distil.

    Attributes:
        student: Registry name or ``"package.module:factory"``; None takes the teacher's default student; ``teacher`` is
            the teacher itself, narrowed.
        narrow: Share of the channels of each layer that a narrowed teacher loses.
        student_kwargs: Arguments of its factory: width, depth, internal resolution.
        from_scratch: Do not start from the shipped student.
        fit: Sizes, epochs, rates. Crops are cached with the teacher's answers, so ``repeat`` and ``min_area`` are of
            the cache.
        loss: ``regression`` (the weights below) or ``kl_mse`` (the source's formula).
        output_weight: Weight of the distance to the teacher's output.
        output_pixel: Which distance (``losses.pixel_loss``).
        truth_weight: Weight of the distance to the ground truth, weighted by the task.
        truth_pixel: Which distance.
        tv_weight: Weight of the total variation of the output; 0: none.
        feature_weight: Weight of feature matching; needs ``feature`` in the specs of both networks.
        perceptual_weight: Weight of LPIPS on rendered RGB.
        perceptual_target: LPIPS to the ``truth`` or to what the ``teacher`` renders.
        lpips_net: Which LPIPS the loss uses.
        alpha: Share of the teacher in ``kl_mse``.
        temperature: Of ``kl_mse``.
        axis: Axis of the softmax of ``kl_mse``; 1: channels.
        keep_best: Keep a shipped start unless the result is nearer to the teacher on photos held out of the training,
            by more than the standard error over them; one photo alone tells nothing.
    """

    student: str | None = None
    narrow: float = 0.5
    student_kwargs: Mapping[str, Any] = field(default_factory=dict)
    from_scratch: bool = False
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(phases=(Phase(192, 40, 8),), learning_rate=1e-4, max_minutes=1.0, repeat=16)
    )
    loss: Literal["regression", "kl_mse"] = "regression"
    output_weight: float = 1.0
    output_pixel: PixelLoss = "l1"
    truth_weight: float = 0.05
    truth_pixel: PixelLoss = "cauchy"
    tv_weight: float = 0.0
    feature_weight: float = 0.1
    perceptual_weight: float = 3.0
    perceptual_target: Literal["truth", "teacher"] = "teacher"
    lpips_net: str = "lite"
    alpha: float = 0.5
    temperature: float = 4.0
    axis: int = 1
    keep_best: bool = True

    def __post_init__(self) -> None:
        known = [*list_models(), TEACHER]
        if self.student is not None and ":" not in self.student and self.student not in known:
            raise UnknownNameError("student", self.student, known)
        if self.lpips_net not in LPIPS_NETS:
            raise UnknownNameError("LPIPS net", self.lpips_net, LPIPS_NETS)
        weights = (self.output_weight, self.truth_weight, self.feature_weight, self.perceptual_weight)
        if min(*weights, self.tv_weight) < 0 or max(weights) == 0:
            expected = "weights of 0 or more, one above 0"
            raise ConfigError(explain("distillation losses", expected=expected, got=weights, fix="change the recipe"))
        if not 0 < self.narrow < 1:
            fix = "use for example distill.narrow=0.5"
            raise ConfigError(explain("narrow", expected="between 0 and 1", got=self.narrow, fix=fix))
        if not 0 <= self.alpha <= 1 or self.temperature <= 0 or self.axis not in (1, 2, 3):
            got = f"alpha {self.alpha}, temperature {self.temperature}, axis {self.axis}"
            expected = "alpha in [0, 1], temperature above 0, axis 1, 2 or 3"
            raise ConfigError(explain("kl_mse", expected=expected, got=got, fix="change the recipe"))


class DistillStep:
    """The losses of one batch of crops and teacher answers."""

    def __init__(self, fit: Fit, task: Task, config: DistillConfig, tap: FeatureTap, weights: Path | None) -> None:
        self.fit, self.task, self.config, self.tap = fit, task, config, tap
        self.perceptual: nn.Module | None = None
        if config.perceptual_weight and config.loss == "regression":
            from benchmarks.metrics.lpips import load_lpips

            self.perceptual = load_lpips(config.lpips_net, weights).to(fit.accelerator.device)

    def __call__(self, batch: tuple[Tensor, Tensor, Tensor], fraction: float) -> Mapping[str, Tensor]:
        """(crops uint8 (N, 3, S, S), teacher output fp16, teacher feature fp16) -> ``loss`` and its parts."""
        rgb, answer, feature = to_float(batch[0]), batch[1].float(), batch[2]
        inputs, target = self.task.prepare(rgb)
        output = self.fit.net(inputs).float()
        config, task = self.config, self.task
        if not task.has_truth(rgb):
            target = answer
        if config.loss == "kl_mse":
            t, alpha, axis = config.temperature, config.alpha, config.axis
            return {"loss": kl_mse(output, answer, target, alpha=alpha, temperature=t, axis=axis)}
        values = {"output": pixel_loss(output, answer, kind=config.output_pixel, scale=task.output_scale)}
        loss = config.output_weight * values["output"]
        if config.truth_weight:
            weight = task.loss_weight(target)
            kind = config.truth_pixel
            values["truth"] = pixel_loss(output, target, kind=kind, scale=task.output_scale, weight=weight)
            loss = loss + config.truth_weight * values["truth"]
        if config.tv_weight:
            values["tv"] = total_variation(output, scale=task.output_scale)
            loss = loss + config.tv_weight * values["tv"]
        if self.fit.extras is not None:
            values["feature"] = feature_loss(self.fit.extras(self.tap.value()).float(), feature.float())
            loss = loss + config.feature_weight * values["feature"]
        if self.perceptual is not None:
            to_truth = config.perceptual_target == "truth"
            wanted = task.truth(inputs, target) if to_truth else task.render(inputs, answer)
            with self.fit.accelerator.autocast():
                values["lpips"] = self.perceptual(task.render(inputs, output), wanted).float().mean()
            loss = loss + config.perceptual_weight * values["lpips"]
        return {"loss": loss, **values}


class FeatureTap:
    """Keeps what the submodule ``name`` of a network computed last."""

    def __init__(self, net: nn.Module, name: str | None) -> None:
        self._value: Tensor | None = None
        if name is not None:
            net.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._value = output

    def value(self) -> Tensor:
        """Return the feature (N, F, h, w) of the last forward pass."""
        if self._value is None:
            fix = "set ModelSpec.feature to a submodule that the forward pass uses, or feature_weight to 0"
            raise UnsupportedError(explain("student feature", expected="a tensor", got="none", fix=fix))
        return self._value

    @torch.no_grad()
    def channels(self, net: nn.Module, inputs: Tensor) -> int:
        """Run ``net`` once on ``inputs`` and return the channels of the feature."""
        net.eval()(inputs)
        return int(self.value().shape[1])


def distill_network(
    student: nn.Module,
    teacher: Artifact,
    config: DistillConfig,
    data: StageContext,
    out: Path,
    *,
    feature: str | None = None,
    description: str = "Distilling",
) -> tuple[nn.Module, dict[str, Any]]:
    """Train ``student`` on the teacher's answers.

    Args:
        student: Network of the teacher's task; trained in place.
        teacher: Artifact of format ``torch``.
        config: Losses and schedule.
        data: Photos, progress, LPIPS.
        out: Folder of the checkpoint and, unless ``data.cache`` is set, of the cached answers.
        feature: Submodule of the student whose output is matched with the teacher's.
        description: What the progress bar says.

    Returns:
        The averaged network in eval mode, and a JSON-ready account (runtime of the teacher, seconds, steps).
    """
    task = get_task(teacher.task)
    config = replace(config, fit=fitting(config.fit, teacher, student, data))
    answers = {size: _answers(teacher, config, data, size, out) for size in _sizes(config)}
    some = next(iter(answers.values()))
    matched = feature if config.feature_weight and config.loss == "regression" and some.feature_channels else None
    tap, projection = FeatureTap(student, matched), None
    if matched is not None:
        sample = task.inputs_of(to_float(some[0][0][None]))
        projection = nn.Conv2d(tap.channels(student, sample), some.feature_channels, 1)
    fit = Fit(student, config.fit, checkpoint=out / "distill.checkpoint.safetensors", extras=projection)
    if fit.resume():
        data.progress.note(f"Resuming at step {fit.step}")
    step = DistillStep(fit, task, config, tap, data.lpips_weights)
    run_fit(fit, lambda phase: answers[phase.size], step, description=description, progress=data.progress)
    account = {"teacher_runtime": some.runtime, "crops": len(some), **fit.account}
    return fit.ema.net, {**account, "feature_matched": matched}


def _sizes(config: DistillConfig) -> set[int]:
    return {phase.size for phase in config.fit.phases}


def _answers(teacher: Artifact, config: DistillConfig, data: StageContext, size: int, out: Path) -> Answers:
    fc = config.fit
    wanted = AnswerConfig(
        size=size,
        views=fc.repeat,
        seed=fc.seed,
        min_area=fc.min_area,
        tone_jitter=fc.tone_jitter,
        features=bool(config.feature_weight) and config.loss == "regression",
    )
    cache = data.cache or out / "cache"
    limit = None if fc.max_minutes is None else _ANSWERING * 60 * fc.max_minutes / len(_sizes(config))
    return compute_answers(teacher, data.train, wanted, cache=cache, progress=data.progress, max_seconds=limit)


def start_student(
    config: DistillConfig, teacher: Artifact, *, input_size: tuple[int, int] = (256, 256)
) -> tuple[nn.Module, str, str]:
    """Return the student to start from, its registry name, and ``shipped``, ``narrowed`` or ``scratch``.

    Only the unchanged shipped teacher has a shipped student.
    """
    if config.student == TEACHER:
        return narrowed(teacher, config.narrow, input_size=input_size), teacher.model, "narrowed"
    spec = get_spec(teacher.model, task=teacher.task)
    name = config.student or spec.student
    if name is None:
        fix = "pass --student"
        raise ConfigError(explain("student", expected="a model name", got=f"none for {teacher.model}", fix=fix))
    row = get_spec(name, task=teacher.task)
    shipped = spec.weights is not None and (WEIGHTS / spec.weights).exists()
    ours = shipped and Artifact.load(WEIGHTS / str(spec.weights)).sha256 == teacher.sha256
    has_weights = row.weights is not None and (WEIGHTS / row.weights).exists()
    if ours and has_weights and name == spec.student and not config.from_scratch and not config.student_kwargs:
        return create_model(name, pretrained=True), name, "shipped"
    torch.manual_seed(config.fit.seed)
    return create_model(name, task=teacher.task, **_student_kwargs(config, row)), name, "scratch"


def _student_kwargs(config: DistillConfig, row: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the student's factory, the tensors of the task among them where it takes them."""
    known = inspect.signature(load_object(row.factory)).parameters
    made = row.outputs[0]
    tensors = {"in_channels": row.packed_channels, "out_channels": made.shape[1]}
    if made.upscale > 1:
        tensors["upscale"] = made.upscale
    return {**{key: value for key, value in tensors.items() if key in known}, **config.student_kwargs}


def run(artifact: Artifact | None, config: DistillConfig, data: StageContext, out: Path) -> Artifact:
    """Distil ``artifact`` into a student: ``out/student.safetensors``.

    The metadata say where the student started (``shipped``, ``narrowed`` or ``scratch``), what the teacher and the
    student reach on the evaluation photos, and whether the start was kept.

    Raises:
        TrainingError: The loss became NaN.
    """
    if artifact is None:
        raise ConfigError(explain("distill", expected="a teacher artifact", got="none", fix="pass --teacher"))
    started = time.time()
    task = task_of(artifact, data)
    size = task.photo_size(data.input_size)
    student, name, start = start_student(config, artifact, input_size=data.input_size)
    check_student(student, name, artifact, data)
    data.progress.note(f"Student {name} starts from {_STARTS[start]}")
    before = copy.deepcopy(student)
    row = get_spec(name, task=artifact.task)
    learned, judging = hold_out(data)
    student, account = distill_network(
        student, artifact, config, replace(data, train=learned), out, feature=row.feature
    )
    judges = load_photos(judging, size)
    kept = "result"
    if config.keep_best and start == "shipped":
        wanted = render_all(load_at_levels(artifact), task, judges)
        gaps = {
            label: lpips_all(render_all(net, task, judges), wanted, net=data.lpips_net, weights=data.lpips_weights)
            for label, net in (("before", before), ("after", student))
        }
        means = {label: float(gap.mean()) for label, gap in gaps.items()}
        account["lpips_to_teacher_held_out"] = means
        if not is_nearer(gaps["after"], gaps["before"]):
            student, kept = before, "start"
            told = f"LPIPS to the teacher {means['before']:.4f} against {means['after']:.4f}"
            data.progress.note(f"Kept the start: {told} on {len(judging)} photos held out")
    rgb = load_photos(data.eval, size, limit=48)
    options: dict[str, Any] = {"lpips_net": data.lpips_net, "lpips_weights": data.lpips_weights}
    scores = {
        "lpips_net": data.lpips_net,
        "teacher": evaluate(load_at_levels(artifact), task, rgb, **options),
        "student": evaluate(student, task, rgb, **options),
    }
    kwargs: Mapping[str, Any] = artifact.model_kwargs
    if start != "narrowed":
        shipped = start == "shipped"
        kwargs = Artifact.load(WEIGHTS / str(row.weights)).model_kwargs if shipped else _student_kwargs(config, row)
    path = out / "student.safetensors"
    save = partial(
        save_network,
        student,
        path,
        model=name,
        task=artifact.task,
        stages=(*artifact.stages, "distill"),
        parent=artifact,
        model_kwargs=kwargs,
        metadata={
            "start": start,
            "kept": kept,
            "recipe": to_plain(config),
            "scores": scores,
            "account": account,
            "photos": len(learned),
            "wall_seconds": round(time.time() - started, 1),
        },
    )
    return written_once(save, path)


def hold_out(data: StageContext) -> tuple[PhotoSet, PhotoSet]:
    """Return the photos to learn from, and a tenth of them, 1 to 24 drawn at random, that judge the result instead.

    Fewer than four photos are all learned from, and one of them judges too.
    """
    photos = data.train
    judging = photos.sample(min(max(len(photos) // 10, 1), _JUDGES), seed=data.seed)
    return (photos if len(photos) < 4 else photos.without(judging)), judging


def is_nearer(after: Tensor, before: Tensor) -> bool:
    """Return whether distances ``after`` (N,) are below ``before`` by more than their difference's standard error."""
    won = before - after
    return len(won) > 1 and float(won.mean()) > float(won.std()) / len(won) ** 0.5


name = "distill"
config_type = DistillConfig
