"""Remove channels: by ratio, or until a measured latency is reached; then fine-tune by distillation.

Which channels go together is traced through pixel shuffles, concatenations, gates and norms
(``optimize.channel_trace``); how much they matter is torch-pruning's judgement (``optimize.channel_importance``); how
many of each go is decided by what they cost in time and by which widths an engine is fast at
(``optimize.channel_selection``); how fast the result is gets measured on the engine (``optimize.latency_search``):
fewer multiply-adds are not fewer milliseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from export.files import remove
from export.registry import get_target
from models.artifact import Artifact, load_network, save_network, sidecar_of
from models.errors import CheckpointError, ConfigError, ExportError, MissingExtraError, UnsupportedError, explain
from models.registry import get_spec
from models.spec import ModelSpec, Precision
from optimize.channel_importance import Importance, Loss
from optimize.latency_search import EngineBench, Goal, Measure, Point, check_goal, search
from optimize.loop import FitConfig, Phase
from optimize.pruner import Pruner, example_inputs, prepare
from optimize.steps import is_main_process, wait_for_all, written_once
from optimize.taught import lacks_truth, task_of

if TYPE_CHECKING:
    from models.tasks.base import Task
    from optimize.stage import StageContext

#: Goals where none is set: of a network as it came, and of a student, which is small already.
DEFAULT_SPEEDUP, STUDENT_SPEEDUP = 1.8, 1.25
_JUDGED = 48
_JUDGES = 24
FineTune = Callable[[nn.Module], tuple[nn.Module, dict[str, Any]]]


@dataclass(frozen=True)
class PruneConfig:
    """How much to remove, what, and how to fine-tune.

    Attributes:
        pruning_ratio: Fraction of channels removed, in (0, 1); or
        target_latency_ms: prune until every engine needs at most this; or
        target_speedup: prune until every engine is this many times faster. None of the three: a speedup of 1.8, of a
            distilled student 1.25, for there is less to gain.
        engines: Where latency is measured: names of targets, or ``torch`` (eager).
        precision: What the engines compute in.
        engine_device: Device of the engines; None: each one's first.
        importance: ``taylor``, ``magnitude`` or ``bn_scale``.
        scope: ``global`` compares all channels with each other, ``uniform`` takes the same share of each group.
        latency_weight: How much time counts when channels are compared (importance / ms ** weight): 0 not at all, 1
            fully. None: what loses least on training photos at the target's speedup; 0.25 with a ratio.
        round_to: Channels that are left are a multiple of this, as the layers see them that read them; None: of 16, of
            less in narrow groups.
        max_ratio: Largest fraction removed of one group of channels.
        ignore: Layers, or modules with all their layers, that keep their output channels. The output layer always does.
        photos: Training photos that ``taylor`` and the choice of ``latency_weight`` look at.
        max_trials: Most candidates that are measured.
        warmup: Unrecorded calls of a candidate.
        iterations: Recorded calls of a candidate.
        fine_tune: Distil the unpruned network into the pruned one.
        fit: Sizes, epochs and rates of that.
        output_weight: Weight of the L1 distance to the teacher's output.
        truth_weight: Weight of the distance to the ground truth.
        feature_weight: Weight of feature matching.
        perceptual_weight: Weight of LPIPS on rendered RGB.
        perceptual_target: LPIPS to the ``truth`` or to what the ``teacher`` renders.
    """

    pruning_ratio: float | None = None
    target_latency_ms: float | None = None
    target_speedup: float | None = None
    engines: tuple[str, ...] = ("openvino",)
    precision: Precision = Precision.FP32
    engine_device: str | None = None
    importance: Importance = "taylor"
    scope: Literal["global", "uniform"] = "global"
    latency_weight: float | None = None
    round_to: int | None = None
    max_ratio: float = 0.8
    ignore: tuple[str, ...] = ()
    photos: int = 32
    max_trials: int = 6
    warmup: int = 5
    iterations: int = 40
    fine_tune: bool = True
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(phases=(Phase(192, 40, 8),), learning_rate=3e-4, max_minutes=2.0, repeat=4)
    )
    output_weight: float = 1.0
    truth_weight: float = 0.3
    feature_weight: float = 0.1
    perceptual_weight: float = 3.0
    perceptual_target: Literal["truth", "teacher"] = "truth"

    def __post_init__(self) -> None:
        check_goal(self.pruning_ratio, self.target_latency_ms, self.target_speedup)
        if self.pruning_ratio is not None and not 0 < self.pruning_ratio < 1:
            fix = "use for example --pruning-ratio 0.3"
            raise ConfigError(explain("pruning_ratio", expected="between 0 and 1", got=self.pruning_ratio, fix=fix))
        if self.target_latency_ms is not None and not self.target_latency_ms > 0:
            fix = "use for example --target-latency-ms 20"
            raise ConfigError(explain("target_latency_ms", expected="above 0", got=self.target_latency_ms, fix=fix))
        if self.target_speedup is not None and not self.target_speedup > 1:
            fix = "use for example --target-speedup 1.8"
            raise ConfigError(explain("target_speedup", expected="above 1", got=self.target_speedup, fix=fix))
        if not self.engines:
            raise ConfigError(explain("engines", expected="one or more", got="none", fix="use for example openvino"))
        for engine in self.engines:
            get_target(engine)
        if self.importance not in ("taylor", "magnitude", "bn_scale"):
            expected, fix = "taylor, magnitude or bn_scale", "choose one of these"
            raise ConfigError(explain("importance", expected=expected, got=repr(self.importance), fix=fix))
        if self.scope not in ("global", "uniform"):
            raise ConfigError(explain("scope", expected="global or uniform", got=repr(self.scope), fix="choose one"))
        if self.round_to is not None and self.round_to < 1:
            raise ConfigError(explain("round_to", expected="1 or more", got=self.round_to, fix="use for example 8"))
        if not 0 < self.max_ratio < 1 or not 0 <= (self.latency_weight or 0.0) <= 4:
            got = f"max_ratio {self.max_ratio}, latency_weight {self.latency_weight}"
            expected = "max_ratio in (0, 1), latency_weight in [0, 4]"
            raise ConfigError(explain("pruning", expected=expected, got=got, fix="change the recipe"))
        if min(self.photos, self.max_trials, self.iterations) < 1 or self.warmup < 0:
            got = f"photos {self.photos}, max_trials {self.max_trials}, iterations {self.iterations}"
            raise ConfigError(explain("pruning", expected="1 or more of each", got=got, fix="change the recipe"))

    @property
    def goal(self) -> Goal | None:
        """How fast is enough; None when a ratio is given."""
        if self.pruning_ratio is not None:
            return None
        if self.target_latency_ms is not None:
            return Goal(latency_ms=self.target_latency_ms)
        return Goal(speedup=self.target_speedup or DEFAULT_SPEEDUP)

    def settled(self, artifact: Artifact) -> PruneConfig:
        """Return this config with the goal for ``artifact``, where none was set."""
        if self.pruning_ratio is not None or self.target_latency_ms is not None or self.target_speedup is not None:
            return self
        return replace(self, target_speedup=STUDENT_SPEEDUP if "distill" in artifact.stages else DEFAULT_SPEEDUP)


def find_ratio(pruner: Pruner, config: PruneConfig, measure: Measure, data: StageContext) -> tuple[float, list[Point]]:
    """Return the ratio that reaches the target of ``config``, and what was measured on the way.

    Raises:
        UnsupportedError: The target cannot be reached.
    """
    assert config.goal is not None
    best, points = search(
        pruner.build,
        pruner.widths,
        measure,
        config.goal,
        predict=pruner.estimate,
        max_trials=config.max_trials,
        progress=data.progress,
    )
    return best.ratio, points


def fixed_ratio(pruner: Pruner, config: PruneConfig) -> float:
    """Return the ratio that was asked for.

    Raises:
        UnsupportedError: Rounding leaves nothing to remove.
    """
    ratio = config.pruning_ratio or 0.0
    if not any(pruner.removal(ratio).values()):
        got = f"none at ratio {ratio:g} with round_to {config.round_to or 'automatic'}"
        fix = "raise --pruning-ratio or lower prune.round_to"
        raise UnsupportedError(explain("pruning", expected="channels to remove", got=got, fix=fix))
    return ratio


def task_losses(task: Task, data: StageContext, config: PruneConfig) -> list[Loss]:
    """Return losses against the ground truth on training photos, one a batch of four, where ``config`` needs them."""
    from optimize.evaluate import load_photos
    from optimize.losses import pixel_loss

    if config.importance != "taylor" and not _weighs(config):
        return []
    rgb = load_photos(data.train.sample(config.photos, seed=data.seed), task.photo_size(data.input_size))

    generator = torch.Generator().manual_seed(data.seed)

    def on(batch: Tensor) -> Loss:
        inputs, target = task.prepare(batch)
        if lacks_truth(task):  # the teacher at its own answer has no slope: look from a step beside it
            target = target + task.output_scale * torch.randn(target.shape, generator=generator).sign()

        def loss(net: nn.Module) -> Tensor:
            weight = task.loss_weight(target)
            return pixel_loss(net(inputs).float(), target, kind="l1", scale=task.output_scale, weight=weight)

        return loss

    return [on(batch) for batch in rgb.split(4)]


def _weighs(config: PruneConfig) -> bool:
    return config.latency_weight is None and config.scope == "global" and config.goal is not None


def distilled(artifact: Artifact, config: PruneConfig, data: StageContext, out: Path) -> FineTune:
    """Return the fine-tuning of ``config``: distillation of the run's teacher, or else of the unpruned network."""
    from optimize.distill import DistillConfig, distill_network

    spec = get_spec(artifact.model, task=artifact.task)
    losses = DistillConfig(
        fit=config.fit,
        output_weight=config.output_weight,
        truth_weight=config.truth_weight,
        feature_weight=config.feature_weight,
        perceptual_weight=config.perceptual_weight,
        perceptual_target=config.perceptual_target,
    )

    def fine_tune(net: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        teacher = data.teacher or artifact
        return distill_network(
            net, teacher, losses, data, out, feature=spec.feature, description="Fine-tuning the pruned network"
        )

    return fine_tune


def run(
    artifact: Artifact | None,
    config: PruneConfig,
    data: StageContext,
    out: Path,
    *,
    fine_tune: FineTune | None = None,
    measure: Measure | None = None,
) -> Artifact:
    """Prune ``artifact`` and fine-tune it: ``out/pruned.safetensors``.

    Args:
        artifact: ``torch`` artifact.
        config: How much, what, how.
        data: Photos, teacher, input size, threads.
        out: Folder; the search of an interrupted run (``prune_start.safetensors``) and a checkpoint of its fine-tuning
            are used.
        fine_tune: Replaces the distillation.
        measure: Replaces the engines.

    Returns:
        The pruned artifact. Its metadata hold ``pruning_ratio`` (of all prunable channels, after rounding),
        ``speedup`` (None with ``speedup_reason`` where it could not be measured), ``points``, ``groups`` (channels
        before and after), ``kept`` (layer -> why it was not pruned), ``params_m`` and ``gmacs`` before and after,
        ``scores`` (LPIPS before, pruned, fine-tuned) and ``fine_tuning_used`` (False: it made things worse).

    Raises:
        UnsupportedError: Nothing can be pruned, the target is out of reach, or an engine does not run here.
        TrainingError: The loss of the fine-tuning became NaN.
    """
    if artifact is None:
        raise ConfigError(explain("prune", expected="an artifact", got="none", fix="pass --teacher or an artifact"))
    started, config = time.time(), config.settled(artifact)
    net, task = load_network(artifact), task_of(artifact, data)
    start = _start(artifact, net, config, data, out, measure)
    small = load_network(start)
    found = dict(start.metadata)
    before, pruned = _scores(net, task, data), _scores(small, task, data)
    found["scores"] = {"lpips_net": data.lpips_net, "before": before, "pruned": pruned}
    if config.fine_tune:
        tune = fine_tune or distilled(artifact, config, data, out)
        tuned, found["fine_tuning"] = tune(load_network(start))
        found["scores"]["fine_tuned"] = _scores(tuned, task, data)
        found["fine_tuning_used"] = _judged(tuned, task, data) <= _judged(small, task, data)
        if found["fine_tuning_used"]:
            small = tuned
        else:
            data.progress.note("Fine-tuning made it worse on training photos: kept the pruned network as it was")
    after = found["scores"]["fine_tuned"] if found.get("fine_tuning_used") else pruned
    lost = after["lpips"] - before["lpips"]
    gained = "latency not measured" if found["speedup"] is None else f"{found['speedup']:.2f}x faster"
    data.progress.note(f"Pruned: {gained}, LPIPS-{data.lpips_net} {lost:+.4f}")
    found.pop("key", None)
    save = partial(
        save_network,
        small.eval(),
        out / "pruned.safetensors",
        model=artifact.model,
        task=artifact.task,
        stages=(*artifact.stages, "prune"),
        parent=artifact,
        model_kwargs=artifact.model_kwargs,
        metadata={**found, "recipe": _plain(config), "wall_seconds": round(time.time() - started, 1)},
    )
    result = written_once(save, out / "pruned.safetensors")
    if is_main_process():  # it served to go on: beside the result it would be a second artifact of the same name
        remove(start.path)
        remove(sidecar_of(start.path))
    return result


def _start(
    artifact: Artifact, net: nn.Module, config: PruneConfig, data: StageContext, out: Path, measure: Measure | None
) -> Artifact:
    """Return the pruned network before fine-tuning, from now or an interrupted run; one process finds it for all."""
    start = _resume(artifact, config, data, out)
    if start is not None:
        data.progress.note("Going on with the pruned network that was found before")
    elif is_main_process():
        start = _search(artifact, net, config, data, out, measure)
    wait_for_all()
    return start or Artifact.load(out / "prune_start.safetensors")


def _search(
    artifact: Artifact, net: nn.Module, config: PruneConfig, data: StageContext, out: Path, measure: Measure | None
) -> Artifact:
    """Find the pruned network and write it as ``out/prune_start.safetensors``, ready for fine-tuning."""
    spec, task = get_spec(artifact.model, task=artifact.task), task_of(artifact, data)
    with data.progress.track("Tracing channels", total=1) as bar:
        losses = task_losses(task, data, config)
        pruner = prepare(net, spec, config, input_size=data.input_size, losses=losses)
        bar.advance()
    if _weighs(config):
        found = pruner.weigh(losses, config.goal.speedup or DEFAULT_SPEEDUP if config.goal else DEFAULT_SPEEDUP)
        told = ", ".join(f"{weight:g}: {loss:.4f}" for weight, loss in found.items())
        data.progress.note(f"Latency weight {pruner.latency_weight:g} (loss by weight: {told})")
    for layer, reason in pruner.channels.kept.items():
        data.progress.note(f"Not pruned: {layer}: {reason}")
    ratio, points, why = _measured(artifact, pruner, config, data, measure)
    widths = pruner.widths(ratio)
    chosen = next((point for point in points if pruner.widths(point.ratio) == widths), None)
    small, units = pruner.build(ratio), sum(group.units for group in pruner.scores)
    metadata = {
        "key": _key(artifact, config, data),
        "pruning_ratio": round(1 - sum(widths) / units, 4),
        "importance": config.importance,
        "latency_weight": pruner.latency_weight,
        "engines": list(config.engines),
        "speedup": None if chosen is None else round(chosen.speedup, 3),
        "speedup_reason": why,
        "points": [point.to_json() for point in points],
        "groups": pruner.groups_json(ratio),
        "kept": dict(pruner.channels.kept),
        **_sizes(net, small, spec, data.input_size),
    }
    return save_network(
        small,
        out / "prune_start.safetensors",
        model=artifact.model,
        task=artifact.task,
        stages=(*artifact.stages, "prune"),
        parent=artifact,
        model_kwargs=artifact.model_kwargs,
        metadata=metadata,
    )


def _measured(
    artifact: Artifact, pruner: Pruner, config: PruneConfig, data: StageContext, measure: Measure | None
) -> tuple[float, list[Point], str | None]:
    """Return the ratio, what was measured, and why nothing was: a fixed ratio is pruned by without an engine too."""
    if measure is not None:
        if config.goal is not None:
            return *find_ratio(pruner, config, measure, data), None
        ratio = fixed_ratio(pruner, config)
        return ratio, [measure(pruner.build(ratio), ratio)], None
    ratio = fixed_ratio(pruner, config) if config.goal is None else 0.0
    try:
        bench = EngineBench(
            artifact,
            config.engines,
            precision=config.precision,
            input_size=data.input_size,
            threads=data.threads,
            device=config.engine_device,
            warmup=config.warmup,
            iterations=config.iterations,
            progress=data.progress,
        )
        with bench as measured:
            if config.goal is not None:
                return *find_ratio(pruner, config, measured, data), None
            return ratio, [measured(pruner.build(ratio), ratio)], None
    except (MissingExtraError, UnsupportedError, ExportError) as error:
        if config.goal is not None:
            raise
        data.progress.note(f"Latency not measured: {error}")
        return ratio, [], str(error)


def _resume(artifact: Artifact, config: PruneConfig, data: StageContext, out: Path) -> Artifact | None:
    path = out / "prune_start.safetensors"
    if not path.exists():
        return None
    try:
        start = Artifact.load(path)
    except CheckpointError:
        return None
    return start if start.metadata.get("key") == _key(artifact, config, data) else None


def _key(artifact: Artifact, config: PruneConfig, data: StageContext) -> list[Any]:
    key = [artifact.sha256, data.train.fingerprint, data.input_size, data.threads, _plain(config)]
    return json.loads(json.dumps(key))  # type: ignore[no-any-return]


def _plain(config: PruneConfig) -> dict[str, Any]:
    return {**asdict(config), "precision": config.precision.value}


def _scores(net: nn.Module, task: Task, data: StageContext) -> Mapping[str, float]:
    from optimize.evaluate import evaluate, load_photos

    rgb = load_photos(data.eval, task.photo_size(data.input_size), limit=_JUDGED)
    return evaluate(net, task, rgb, lpips_net=data.lpips_net, lpips_weights=data.lpips_weights)


def _judged(net: nn.Module, task: Task, data: StageContext) -> float:
    """Return the LPIPS of a network on some training photos: the evaluation photos are not for choosing."""
    from optimize.evaluate import load_photos, lpips_all, render_all, truth_all

    rgb = load_photos(data.train.sample(_JUDGES, seed=data.seed + 1), task.photo_size(data.input_size))
    rendered = render_all(net, task, rgb)
    return float(lpips_all(rendered, truth_all(task, rgb), net=data.lpips_net, weights=data.lpips_weights).mean())


def _sizes(net: nn.Module, small: nn.Module, spec: ModelSpec, size: tuple[int, int]) -> dict[str, Any]:
    from benchmarks.cost import cost

    shapes = [item.shape for item in example_inputs(spec, size)]
    if len(shapes) != 1:
        return {"params_m": [sum(p.numel() for p in part.parameters()) / 1e6 for part in (net, small)]}
    n, c, h, w = shapes[0]
    costs = [cost(part, (n, c, h, w)) for part in (net, small)]
    return {"params_m": [round(c.params_m, 4) for c in costs], "gmacs": [round(c.gmacs, 4) for c in costs]}


name = "prune"
config_type = PruneConfig
