"""The INT8 stage: calibrate on photos, score each layer in LPIPS, keep in float what costs most, gate, write down.

The result keeps its FP32 weights and carries the record that every exporter lowers to its own dialect
(``export.quantization``). Its LPIPS is simulated in PyTorch here; the report measures each engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.artifact import Artifact, load_network, save_network, save_tensors, sha256_of
from models.errors import CheckpointError, ConfigError, QualityGateError, explain
from models.photos import centre_crop, to_batch
from models.registry import get_spec
from models.spec import Precision
from optimize.taught import task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.tasks.base import Task
    from optimize.calibration import CalibrationSet
    from optimize.sensitivity import FloatChoice, LayerSensitivity, Scorer
    from optimize.simulation import SimulatedInt8
    from optimize.stage import StageContext

CALIBRATION = "calibration.safetensors"
RESULT = "quantized.safetensors"
#: The aim where the caller sets neither an aim nor a limit.
DEFAULT_AIM = 0.002


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        method: ``ptq``: post-training; ranges and biases are fitted as ``optimize.range_fitting`` says.
        calibration_samples: Inputs that the ranges are measured on.
        max_lpips_drop: A limit: an INT8 network whose LPIPS is further above the float network's is refused. None: no
            limit here; the drop is written down, and the gate of a run decides what ships.
        aim_lpips_drop: An aim: layers stay in float until the drop is at most this, as far as ``max_float_share`` goes;
            a missed aim is said and refuses nothing. None: ``max_lpips_drop``, or 0.002 without one.
        allow_drop: Keep the result even where it is over the limit.
        sensitivity_photos: Evaluation photos that single layers are scored on.
        sensitivity_size: Their largest side, pixels; smaller is faster.
        max_float_share: Largest share of the multiply-adds that may stay in higher precision.
    """

    method: Literal["ptq"] = "ptq"
    calibration_samples: int = 128
    max_lpips_drop: float | None = None
    aim_lpips_drop: float | None = None
    allow_drop: bool = False
    sensitivity_photos: int = 12
    sensitivity_size: int = 128
    max_float_share: float = 0.25

    def __post_init__(self) -> None:
        if self.method != "ptq":
            fix = "use ptq"
            raise ConfigError(explain("quantization method", expected="ptq", got=repr(self.method), fix=fix))
        for name, least in (("calibration_samples", 1), ("sensitivity_photos", 1), ("sensitivity_size", 32)):
            if getattr(self, name) < least:
                fix = f"raise {name}"
                got = getattr(self, name)
                raise ConfigError(explain(name, expected=f"{least} or more", got=got, fix=fix))
        for name, fix in (("max_lpips_drop", "change --max-lpips-drop"), ("aim_lpips_drop", "change the recipe")):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ConfigError(explain(name, expected="0 or more", got=value, fix=fix))
        if self.max_lpips_drop is not None and self.aim > self.max_lpips_drop:
            expected, fix = f"at most max_lpips_drop, {self.max_lpips_drop:g}", "lower it or leave it out"
            raise ConfigError(explain("aim_lpips_drop", expected=expected, got=self.aim_lpips_drop, fix=fix))
        if not 0 <= self.max_float_share <= 1:
            fix = "use for example 0.25"
            raise ConfigError(explain("max_float_share", expected="0 to 1", got=self.max_float_share, fix=fix))

    @property
    def aim(self) -> float:
        """LPIPS drop that layers stay in float for."""
        if self.aim_lpips_drop is not None:
            return self.aim_lpips_drop
        return DEFAULT_AIM if self.max_lpips_drop is None else self.max_lpips_drop


name = "quantize"
config_type = QuantizeConfig


def run(artifact: Artifact | None, config: QuantizeConfig, data: StageContext, out: Path) -> Artifact:
    """Quantize ``artifact``; see ``optimize.stage.Stage.run``.

    The result's metadata: ``quantization`` (the record), ``scores`` and ``float_scores`` (INT8 simulated, float),
    ``lpips_drop``, ``aim`` (the LPIPS drop aimed at, by how much it was ``missed_by``, and the drop of each number of
    layers in float that was ``tried``), ``lpips_drop_symmetric`` (TensorRT rounds inputs symmetrically; a large drop is
    a warning and fails nothing, for more float layers would slow down the other targets),
    ``sensitivity`` (a row a layer), ``warnings``.

    Raises:
        CheckpointError: No artifact, or one that is quantized already.
        DataError: The calibration photos cannot be used, or are of one colour.
        UnsupportedError: The network has no layer to quantize.
        QualityGateError: INT8 costs more LPIPS than ``max_lpips_drop``, and ``allow_drop`` is not set.
    """
    artifact = _check(artifact)
    task = task_of(artifact, data)
    net = load_network(artifact)
    calibration = _gather(task, config, data)
    simulation = _simulate(net, calibration, data)
    scorer, small = _scorers(simulation, task, artifact, config, data)
    coverage = _with_saturation(calibration.coverage, simulation, scorer)
    scores, choice, float_scores, int8_scores = _mix(net, simulation, scorer, small, config, data)
    kept = choice.layers
    drop = int8_scores["lpips"] - float_scores["lpips"]
    data.progress.note(_summary(data.lpips_net, drop, kept, scores))
    gate(drop, config, lpips_net=data.lpips_net)
    rounded = [layer for layer in simulation.layers if layer not in kept]
    symmetric = scorer.drop(rounded, float_scores["lpips"], symmetric=True)
    missed = max(drop - config.aim, 0.0)
    said = [*_aim_warnings(choice, missed, config, data), *_symmetry_warnings(symmetric, drop, config, data)]
    record = _record(simulation, kept, calibration, coverage, scorer.noise(rounded), out)
    return save_network(
        net,
        out / RESULT,
        model=artifact.model,
        task=artifact.task,
        precision=Precision.INT8,
        stages=(*artifact.stages, "quantize"),
        parent=artifact,
        model_kwargs=artifact.model_kwargs,
        metadata={
            "quantization": record,
            "scores": {**int8_scores, "simulated": True},
            "float_scores": float_scores,
            "lpips_drop": drop,
            "aim": {"lpips_drop": config.aim, "missed_by": missed, "tried": choice.tried},
            "lpips_drop_symmetric": symmetric,
            "lpips_net": data.lpips_net,
            "sensitivity": [row.to_json() for row in scores],
            "warnings": [*coverage["warnings"], *said],
        },
    )


def gate(drop: float, config: QuantizeConfig, *, lpips_net: str) -> None:
    """Refuse an INT8 network that lost more LPIPS than the limit, where there is one.

    Args:
        drop: LPIPS of INT8 minus LPIPS of float.
        config: ``max_lpips_drop`` and ``allow_drop``.
        lpips_net: Net of ``drop``.

    Raises:
        QualityGateError: It lost more, and ``allow_drop`` is not set.
    """
    if config.max_lpips_drop is None or drop <= config.max_lpips_drop or config.allow_drop:
        return
    expected = f"an LPIPS-{lpips_net} drop of at most {config.max_lpips_drop:g}"
    fix = "raise --max-lpips-drop or max_float_share, calibrate on more photos, or pass --allow-drop"
    raise QualityGateError(explain("INT8", expected=expected, got=f"{drop:.4f}", fix=fix))


def _check(artifact: Artifact | None) -> Artifact:
    if artifact is None or artifact.precision is Precision.INT8:
        got = "none" if artifact is None else f"{artifact.path.name}, quantized already"
        fix = "pass the artifact that comes before"
        raise CheckpointError(explain("quantize", expected="a float artifact", got=got, fix=fix))
    return artifact


def _gather(task: Task, config: QuantizeConfig, data: StageContext) -> CalibrationSet:
    from optimize.calibration import describe, gather

    calibration = gather(
        data.calibration,
        task,
        samples=config.calibration_samples,
        input_size=data.input_size,
        seed=data.seed,
        progress=data.progress,
    )
    data.progress.note(f"Calibration: {describe(calibration.coverage)}")
    for warning in calibration.warnings:
        data.progress.note(f"Warning: {warning}")
    return calibration


def _simulate(net: nn.Module, calibration: CalibrationSet, data: StageContext) -> SimulatedInt8:
    from optimize.range_fitting import fit
    from optimize.simulation import SimulatedInt8

    simulation = SimulatedInt8(net, calibration.inputs, progress=data.progress)
    fit(simulation, calibration.inputs, progress=data.progress)
    return simulation


def _scorers(
    simulation: SimulatedInt8, task: Task, artifact: Artifact, config: QuantizeConfig, data: StageContext
) -> tuple[Scorer, Scorer]:
    """Return one scorer on all evaluation photos at full size, and one on a few small ones."""
    from optimize.crop_sizes import refusal
    from optimize.sensitivity import Scorer

    rgb = _crops(data, task.photo_size(data.input_size))
    full = Scorer(simulation, task, rgb, data.lpips_net, data.lpips_weights)
    scale = config.sensitivity_size / max(data.input_size)
    size = data.input_size
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in data.input_size)
        spec = get_spec(artifact.model, task=artifact.task)
        smaller = spec.size.fit(height, width)
        sample = task.inputs_of(_crops(data, task.photo_size(smaller), limit=1))
        size = data.input_size if refusal(simulation, sample, spec.outputs[0]) else smaller
    return full, replace(full, rgb=_crops(data, task.photo_size(size), limit=config.sensitivity_photos))


def _crops(data: StageContext, size: tuple[int, int], *, limit: int | None = None) -> Tensor:
    photos = data.eval if limit is None else data.eval.sample(limit, seed=data.seed)
    return to_batch([centre_crop(photo, *size) for photo in photos])


def _with_saturation(coverage: Mapping[str, Any], simulation: SimulatedInt8, scorer: Scorer) -> dict[str, Any]:
    """Add how far the held-out photos leave the calibrated ranges."""
    from optimize.calibration import saturation

    found = saturation(simulation.outside(scorer.task.inputs_of(scorer.rgb[:16])))
    warnings = list(coverage["warnings"])
    if found["worst"] > 0.01:
        warnings.append(
            f"{found['worst']:.1%} of the values at layer {found['worst_layer']} leave the calibrated range on photos "
            "that were not calibrated on: calibrate on more photos"
        )
    return {**coverage, "held_out_outside": found, "warnings": warnings}


def _mix(
    net: nn.Module,
    simulation: SimulatedInt8,
    scorer: Scorer,
    small: Scorer,
    config: QuantizeConfig,
    data: StageContext,
) -> tuple[list[LayerSensitivity], FloatChoice, dict[str, float], dict[str, float]]:
    """Return the sensitivities, the choice of float layers, and the scores of the float and of the INT8 network."""
    from optimize.evaluate import evaluate
    from optimize.sensitivity import by_worth, choose_float_layers, score_layers

    quality = {"lpips_net": data.lpips_net, "lpips_weights": data.lpips_weights}
    float_scores = evaluate(net, scorer.task, scorer.rgb, **quality)  # type: ignore[arg-type]
    scores = score_layers(small, progress=data.progress)
    with data.progress.track("INT8 on the evaluation photos") as bar:

        def drop_of(floats: tuple[str, ...]) -> float:
            drop = scorer.drop([layer for layer in simulation.layers if layer not in floats], float_scores["lpips"])
            bar.advance(1, drop=drop)
            return drop

        choice = choose_float_layers(
            drop_of,
            by_worth(scores),
            {row.layer: row.macs_share for row in scores},
            aim=config.aim,
            max_share=config.max_float_share,
        )
        with simulation.quantized([layer for layer in simulation.layers if layer not in choice.layers]) as quantized:
            int8_scores = evaluate(quantized, scorer.task, scorer.rgb, **quality)  # type: ignore[arg-type]
    marked = [replace(row, precision="float" if row.layer in choice.layers else "int8") for row in scores]
    return marked, choice, float_scores, int8_scores


def _aim_warnings(choice: FloatChoice, missed: float, config: QuantizeConfig, data: StageContext) -> list[str]:
    """Return by how much the aim was missed, and what was tried, where it was."""
    if not missed:
        return []
    tried = ", ".join(f"{count} ({drop:+.4f})" for count, drop in choice.tried.items())
    text = (
        f"the aim of LPIPS-{data.lpips_net} {config.aim:+.4f} was missed by {missed:.4f}; tried with layers in higher "
        f"precision: {tried}; {choice.most} is the most that max_float_share {config.max_float_share:g} allows: raise "
        "it, calibrate on more photos, or ship fp16"
    )
    data.progress.note(f"Warning: {text}")
    return [text]


def _symmetry_warnings(symmetric: float, drop: float, config: QuantizeConfig, data: StageContext) -> list[str]:
    """Return what to know about TensorRT, whose symmetric rounding the gate does not hold."""
    if symmetric <= max(config.aim, drop):
        return []
    text = (
        f"TensorRT rounds the inputs of layers symmetrically, which costs LPIPS-{data.lpips_net} {symmetric:+.4f} "
        f"instead of {drop:+.4f}, simulated: lower quantize.aim_lpips_drop for more float layers, or use fp16 there"
    )
    data.progress.note(f"Warning: {text}")
    return [text]


def _record(
    simulation: SimulatedInt8,
    kept: tuple[str, ...],
    calibration: CalibrationSet,
    coverage: Mapping[str, Any],
    noise: float,
    out: Path,
) -> dict[str, Any]:
    """Write the calibration inputs (as FP16) and the bias corrections beside the artifact and return the record."""
    from export.quantization import CORRECTION, TENSOR, Quantization

    path = out / CALIBRATION
    corrections = {f"{CORRECTION}{name}": value for name, value in simulation.corrections.items()}
    save_tensors({TENSOR: calibration.inputs.half(), **corrections}, path)
    record = Quantization(
        calibration=path,
        samples=len(calibration.inputs),
        sha256=sha256_of(path),
        float_layers=kept,
        ranges=simulation.ranges,
        coverage=coverage,
        noise=noise,
    )
    return record.to_json(out)


def _summary(lpips_net: str, drop: float, kept: tuple[str, ...], scores: list[LayerSensitivity]) -> str:
    share = sum(row.macs_share for row in scores if row.layer in kept)
    floats = f"; in higher precision: {', '.join(kept)} ({share:.1%} of the multiply-adds)" if kept else ""
    return f"INT8, simulated: LPIPS-{lpips_net} {drop:+.4f}{floats}"
