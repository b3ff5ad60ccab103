"""The flags of the command line and the place of each in a recipe. No torch import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from models.spec import MAX_THREADS

_WHAT, _DATA, _HOW, _OUT = "What", "Photos", "How", "Output"


def _flag(*names: str, help: str, panel: str = _HOW, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **options)


Teacher = Annotated[
    str | None,
    _flag(
        "--teacher", help="Model name, package.module:factory or FILE.py:factory. Default: resnet18_unet.", panel=_WHAT
    ),
]
Weights = Annotated[
    Path | None,
    _flag("--weights", help="The teacher's checkpoint, or a folder of them. Default: the shipped one.", panel=_WHAT),
]
TaskName = Annotated[
    str | None,
    _flag(
        "--task",
        help="Task, or FILE.py:Task, of your own factory. Default: that of its spec, else colorize.",
        panel=_WHAT,
    ),
]
Student = Annotated[
    str | None,
    _flag(
        "--student",
        help="Model name, FILE.py:factory, or teacher: itself narrowed. Default: the teacher's.",
        panel=_WHAT,
    ),
]
Data = Annotated[
    str | None,
    _flag("--data", help="Folder, named photo set, or URL#sha256=DIGEST. Default: embedded samples.", panel=_DATA),
]
EvalData = Annotated[
    str | None,
    _flag("--eval-data", help="Photos to measure with. Default: a tenth of --data, held out.", panel=_DATA),
]
CalibrationData = Annotated[
    str | None,
    _flag("--calibration-data", help="Photos to calibrate INT8 with. Default: the training photos.", panel=_DATA),
]
CalibrationSamples = Annotated[
    int | None,
    _flag("--calibration-samples", help="How many of them.", panel=_DATA, min=1),
]
EvalPhotos = Annotated[
    int | None,
    _flag("--eval-photos", help="At most so many photos to measure with. Default: 32.", panel=_DATA, min=1),
]
InputSize = Annotated[
    tuple[int, int] | None,
    _flag("--input-size", help="Height and width in pixels. Default: 256 256.", metavar="H W"),
]
Device = Annotated[
    str | None,
    _flag("--device", help="auto, cpu, cuda or mps: where stages train. Default: auto."),
]
Threads = Annotated[
    int | None,
    _flag("--threads", help="Threads of PyTorch and of each engine.", min=1, max=MAX_THREADS),
]
Seed = Annotated[int | None, _flag("--seed", help="Of everything random. Default: 0.", min=0)]
LpipsNet = Annotated[
    str | None,
    _flag("--lpips-net", help="lite, squeeze, alex or vgg. Default: lite."),
]
LpipsWeights = Annotated[
    Path | None,
    _flag("--lpips-weights", help="File or folder with the weights of an official net."),
]
Minutes = Annotated[
    float | None,
    _flag("--minutes", help="Training time; the schedule is shortened to fit."),
]
LearningRate = Annotated[float | None, _flag("--learning-rate", help="Peak of AdamW's rate.")]
MixedPrecision = Annotated[
    str | None,
    _flag("--mixed-precision", help="no, bf16 or fp16; auto: bf16 where the device has instructions for it."),
]
MaxLpipsDrop = Annotated[
    float | None,
    _flag("--max-lpips-drop", help="Most LPIPS that may be lost; more is not shipped.", min=0.0),
]
AllowDrop = Annotated[
    bool | None,
    _flag("--allow-drop", help="Go on and ship even if more is lost."),
]
PruningRatio = Annotated[
    float | None,
    _flag("--pruning-ratio", help="Fraction of the channels to remove."),
]
TargetLatency = Annotated[
    float | None,
    _flag("--target-latency-ms", help="Prune until an engine is as fast as this."),
]
TargetSpeedup = Annotated[
    float | None,
    _flag("--target-speedup", help="Prune until an engine is faster by this factor. Default: 1.8; a student 1.25."),
]
Engine = Annotated[
    list[str] | None,
    _flag("--engine", help="What pruning measures on: openvino, onnx or torch; again for more. Default: openvino."),
]
Importance = Annotated[
    str | None,
    _flag("--importance", help="What a channel is worth: taylor, magnitude or bn_scale. Default: taylor."),
]
RoundTo = Annotated[
    int | None,
    _flag("--round-to", help="Channels left are a multiple of this. Default: 16, less in narrow layers.", min=1),
]
Config = Annotated[
    Path | None,
    _flag("--config", help="Recipe file (YAML); flags go over it.", panel=_WHAT),
]
Settings = Annotated[
    list[str] | None,
    _flag("--set", help="Any key of the recipe: --set distill.fit.repeat=4. Again for more.", metavar="KEY=VALUE"),
]
Output = Annotated[
    Path | None,
    _flag("--output", "-o", help="Folder of the run. Default: under runs/.", panel=_OUT),
]
Resume = Annotated[
    bool, _flag("--resume", help="The folder holds a run of another recipe: run only what changed.", panel=_OUT)
]
Overwrite = Annotated[
    bool, _flag("--overwrite", help="The folder holds another run: remove it and start anew.", panel=_OUT)
]
KeepGoing = Annotated[
    bool,
    _flag("--keep-going", help="Leave out what a stage or target cannot do with this network, and say so.", panel=_OUT),
]
Json = Annotated[bool, _flag("--json", help="Print the result as JSON.", panel=_OUT)]
Quiet = Annotated[bool, _flag("--quiet", "-q", help="No progress.", panel=_OUT)]

#: Flag -> key of the recipe; ``{stage}`` is the verb. What is not here does not belong into a recipe.
KEYS: Mapping[str, str] = {
    "teacher": "teacher.model",
    "weights": "teacher.weights",
    "task": "teacher.task",
    "student": "distill.student",
    "from_scratch": "distill.from_scratch",
    "loss": "distill.loss",
    "data": "data.source",
    "eval_data": "data.eval",
    "eval_photos": "data.eval_photos",
    "calibration_data": "data.calibration",
    "calibration_samples": "quantize.calibration_samples",
    "input_size": "input_size",
    "device": "device",
    "threads": "threads",
    "seed": "seed",
    "lpips_net": "lpips_net",
    "lpips_weights": "lpips_weights",
    "minutes": "{stage}.fit.max_minutes",
    "learning_rate": "{stage}.fit.learning_rate",
    "mixed_precision": "{stage}.fit.mixed_precision",
    "pruning_ratio": "prune.pruning_ratio",
    "target_latency_ms": "prune.target_latency_ms",
    "target_speedup": "prune.target_speedup",
    "engine": "prune.engines",
    "importance": "prune.importance",
    "round_to": "prune.round_to",
    "encoder_weights": "train.encoder_weights",
    "stage": "stages",
    "target": "export.targets",
    "precision": "export.precisions",
    "dynamic": "export.dynamic",
    "warmup": "benchmark.warmup",
    "iterations": "benchmark.iterations",
    "budget_minutes": "budget_minutes",
}


def recipe_flags(stage: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted recipe keys of the flags that were given; paths as text, tuples as lists.

    Args:
        stage: The verb.
        given: Name of the parameter -> value; None, and an empty list, mean that it was left out.
    """
    flags: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == [] or name not in KEYS:
            continue
        plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        flags[KEYS[name].format(stage=stage)] = plain
    keys = {"max_lpips_drop": ("gate",), "allow_drop": ("gate", "quantize")} if stage == "run" else {}
    for name in ("max_lpips_drop", "allow_drop"):
        if given.get(name) is not None:
            flags |= {f"{section}.{name}": given[name] for section in keys.get(name, (stage,))}
    return flags
