"""``python -m optimize {train,distill,prune,quantize,run,list}``: the only place here that prints. No torch import."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from models.console import make_progress, print_json, run_app
from models.errors import UsageError, explain
from optimize import flags as f

app = typer.Typer(
    name="optimize",
    help="Walk a trained image-to-image network down the LPIPS-against-latency curve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_ARTIFACT = typer.Argument(help="Artifact to work on (.safetensors of Pare). Default: the teacher.", show_default=False)
Source = Annotated[Path | None, _ARTIFACT]


@app.command()
def train(
    teacher: f.Teacher = None,
    weights: f.Weights = None,
    task: f.TaskName = None,
    data: f.Data = None,
    eval_data: f.EvalData = None,
    eval_photos: f.EvalPhotos = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(help="imagenet (downloads torchvision's) or a file; default: random.", show_default=False),
    ] = None,
    minutes: f.Minutes = None,
    learning_rate: f.LearningRate = None,
    mixed_precision: f.MixedPrecision = None,
    input_size: f.InputSize = None,
    device: f.Device = None,
    threads: f.Threads = None,
    seed: f.Seed = None,
    lpips_net: f.LpipsNet = None,
    lpips_weights: f.LpipsWeights = None,
    config: f.Config = None,
    settings: f.Settings = None,
    output: f.Output = None,
    resume: f.Resume = False,
    overwrite: f.Overwrite = False,
    json: f.Json = False,
    quiet: f.Quiet = False,
) -> None:
    """Train a teacher from photos."""
    _single("train", locals())


@app.command()
def distill(
    teacher: f.Teacher = None,
    weights: f.Weights = None,
    task: f.TaskName = None,
    student: f.Student = None,
    from_scratch: Annotated[
        bool | None,
        typer.Option("--from-scratch", help="Do not start from the shipped student.", show_default=False),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="regression or kl_mse. Default: regression.", show_default=False),
    ] = None,
    data: f.Data = None,
    eval_data: f.EvalData = None,
    eval_photos: f.EvalPhotos = None,
    minutes: f.Minutes = None,
    learning_rate: f.LearningRate = None,
    mixed_precision: f.MixedPrecision = None,
    input_size: f.InputSize = None,
    device: f.Device = None,
    threads: f.Threads = None,
    seed: f.Seed = None,
    lpips_net: f.LpipsNet = None,
    lpips_weights: f.LpipsWeights = None,
    config: f.Config = None,
    settings: f.Settings = None,
    output: f.Output = None,
    resume: f.Resume = False,
    overwrite: f.Overwrite = False,
    json: f.Json = False,
    quiet: f.Quiet = False,
) -> None:
    """Teach a small student what the teacher answers."""
    _single("distill", locals())


@app.command()
def prune(
    artifact: Source = None,
    teacher: f.Teacher = None,
    weights: f.Weights = None,
    task: f.TaskName = None,
    pruning_ratio: f.PruningRatio = None,
    target_latency_ms: f.TargetLatency = None,
    target_speedup: f.TargetSpeedup = None,
    engine: f.Engine = None,
    importance: f.Importance = None,
    round_to: f.RoundTo = None,
    data: f.Data = None,
    eval_data: f.EvalData = None,
    eval_photos: f.EvalPhotos = None,
    minutes: f.Minutes = None,
    learning_rate: f.LearningRate = None,
    mixed_precision: f.MixedPrecision = None,
    input_size: f.InputSize = None,
    device: f.Device = None,
    threads: f.Threads = None,
    seed: f.Seed = None,
    lpips_net: f.LpipsNet = None,
    lpips_weights: f.LpipsWeights = None,
    config: f.Config = None,
    settings: f.Settings = None,
    output: f.Output = None,
    resume: f.Resume = False,
    overwrite: f.Overwrite = False,
    json: f.Json = False,
    quiet: f.Quiet = False,
) -> None:
    """Remove channels, to a ratio or to a latency measured on an engine, and fine-tune by distillation."""
    _single("prune", locals())


@app.command()
def quantize(
    artifact: Source = None,
    teacher: f.Teacher = None,
    weights: f.Weights = None,
    task: f.TaskName = None,
    data: f.Data = None,
    eval_data: f.EvalData = None,
    eval_photos: f.EvalPhotos = None,
    calibration_data: f.CalibrationData = None,
    calibration_samples: f.CalibrationSamples = None,
    max_lpips_drop: f.MaxLpipsDrop = None,
    allow_drop: f.AllowDrop = None,
    input_size: f.InputSize = None,
    device: f.Device = None,
    threads: f.Threads = None,
    seed: f.Seed = None,
    lpips_net: f.LpipsNet = None,
    lpips_weights: f.LpipsWeights = None,
    config: f.Config = None,
    settings: f.Settings = None,
    output: f.Output = None,
    resume: f.Resume = False,
    overwrite: f.Overwrite = False,
    json: f.Json = False,
    quiet: f.Quiet = False,
) -> None:
    """Calibrate INT8 on photos; layers that cost most stay in higher precision."""
    _single("quantize", locals())


@app.command()
def run(
    teacher: f.Teacher = None,
    weights: f.Weights = None,
    task: f.TaskName = None,
    student: f.Student = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Stage to run, in order; again for more. Default: distill, prune, quantize."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Target to export to; again for more. Default: all."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16, bf16 or int8; again for more. Default: fp32, fp16 and int8."),
    ] = None,
    dynamic: Annotated[
        bool | None,
        typer.Option("--dynamic", help="Leave height and width of the artifacts open.", show_default=False),
    ] = None,
    data: f.Data = None,
    eval_data: f.EvalData = None,
    eval_photos: f.EvalPhotos = None,
    calibration_data: f.CalibrationData = None,
    calibration_samples: f.CalibrationSamples = None,
    pruning_ratio: f.PruningRatio = None,
    target_latency_ms: f.TargetLatency = None,
    target_speedup: f.TargetSpeedup = None,
    max_lpips_drop: f.MaxLpipsDrop = None,
    allow_drop: f.AllowDrop = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(help="Time for the stages together. Default: a minute or two each.", show_default=False),
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Unrecorded calls. Default: 10.", min=0)] = None,
    iterations: Annotated[
        int | None,
        typer.Option(help="Recorded calls of each artifact. Default: 50.", min=1),
    ] = None,
    input_size: f.InputSize = None,
    device: f.Device = None,
    threads: f.Threads = None,
    seed: f.Seed = None,
    lpips_net: f.LpipsNet = None,
    lpips_weights: f.LpipsWeights = None,
    config: f.Config = None,
    settings: f.Settings = None,
    output: f.Output = None,
    resume: f.Resume = False,
    overwrite: f.Overwrite = False,
    keep_going: f.KeepGoing = False,
    json: f.Json = False,
    quiet: f.Quiet = False,
) -> None:
    """Distill, prune, quantize, export to every target, measure, and report. Run it again to go on."""
    given = locals()
    recipe, root, policy = _prepare("run", given)
    from optimize.pipeline import run_pipeline

    summary = run_pipeline(recipe, root, policy=policy, keep_going=keep_going, progress=make_progress(quiet=quiet))
    print_json(summary) if json else _print_summary(summary)


@app.command("list")
def list_names(json: f.Json = False) -> None:
    """Show models, tasks, stages, targets and metrics."""
    from benchmarks.metrics import METRICS
    from export.registry import list_targets
    from models.registry import list_models, list_tasks
    from optimize.photo_sets import photo_sets
    from optimize.registry import STAGES

    tables = {
        "models": list_models(),
        "tasks": list_tasks(),
        "stages": list(STAGES),
        "targets": list_targets(),
        "metrics": list(METRICS),
    }
    if json:
        print_json(tables)
        return
    for kind, names in tables.items():
        print(f"{kind:8} {'  '.join(names)}")
    for name, source in photo_sets().items():
        print(f"photos   {name}: {source.about} ({source.licence})")


def _single(stage: str, given: Mapping[str, Any]) -> None:
    recipe, root, policy = _prepare(stage, given)
    from optimize.single import run_single

    named = stage == "train" or given.get("artifact") is None or any(given[k] for k in ("teacher", "weights", "config"))
    summary = run_single(
        stage,
        recipe,
        root,
        artifact=given.get("artifact"),
        teacher_named=bool(named),
        policy=policy,
        progress=make_progress(quiet=given["quiet"] or not _is_first_process()),
    )
    if not _is_first_process():
        return
    if given["json"]:
        print_json(summary)
        return
    print(f"{stage}: {summary['artifact']}{'' if summary['ran'] else ' (finished before)'}")


def _is_first_process() -> bool:
    """Say whether this is the only process, or the first one of a launcher (torchrun, accelerate launch)."""
    return os.environ.get("RANK", "0") == "0"


def _prepare(stage: str, given: Mapping[str, Any]) -> tuple[Any, Path, Any]:
    """Return the recipe, the folder and the folder policy of a command."""
    from optimize.recipe import combine

    if given["resume"] and given["overwrite"]:
        raise UsageError(explain("flags", expected="--resume or --overwrite", got="both", fix="leave one out"))
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # package.module:factory of the user
    recipe = combine(given["config"], f.recipe_flags(stage, given), tuple(given["settings"] or ()))
    if recipe.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    policy = "overwrite" if given["overwrite"] else "resume" if given["resume"] else "same"
    return recipe, given["output"] or _default_output(stage, recipe, given), policy


def _default_output(stage: str, recipe: Any, given: Mapping[str, Any]) -> Path:
    artifact: Path | None = given.get("artifact")
    name = artifact.stem if artifact else recipe.teacher.model.rpartition(":")[2]
    return Path("runs") / (name if stage == "run" else f"{name}-{stage}")


def _print_summary(summary: Mapping[str, Any]) -> None:
    for stage in summary["stages"]:
        lpips = "" if stage["lpips"] is None else f"LPIPS {stage['lpips']:.4f}"
        taken = "" if stage["accepted"] else f"  not taken: {stage['reason']}"
        print(f"{stage['name']:9} {lpips}{taken}")
    for artifact in summary["artifacts"]:
        what = artifact["path"] or f"{artifact['status']}: {artifact['reason']}"
        print(f"{artifact['target']:9} {artifact['precision']:5} {what}")
    best = summary["best"]
    if best:
        drop = "" if best["lpips_drop"] is None else f", LPIPS-{best['lpips_net']} {best['lpips_drop']:+.4f}"
        times = f"{best['teacher_latency_p50_ms']:.1f} ms -> {best['latency_p50_ms']:.2f} ms"
        noisy = " (noisy)" if best["is_noisy"] else ""
        print(f"fastest   {best['label']}: {times}, {best['speedup']:.1f}x{noisy}{drop}")
    print(f"report    {summary['report']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_app(app, argv, prog="python -m optimize")
