"""The whole path: teacher -> stages -> one artifact a target and precision -> measured report and bundle. Resumable.

The folder of a run::

    recipe.yaml              the recipe with every default filled in
    skipped_photos.json      photos that were not used, with reasons
    stages/00-teacher/       scores of the teacher (and its weights, where they are your own)
    stages/01-distill/ ...   stage.json, the artifact, checkpoints of what was interrupted
    artifacts/               what to ship; reference/ holds the teacher and earlier stages in the same engines
    rejected/                artifacts that lost more LPIPS than the gate allows
    report/                  report.json, report.md, index.html, front.svg, pictures
    bundle/                  what an app developer receives
    .before/                 report and bundle of the run before, while one is at work that may end otherwise
    cache/                   teacher answers; can be removed
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.files import remove
from models.artifact import Artifact, write_json
from models.errors import UnsupportedError, explain, running_users_code
from models.progress import NULL_PROGRESS, Progress
from models.registry import MODELS, get_spec, get_task
from models.spec import Precision
from optimize import shipping
from optimize.exports import Job, check_made, move_back, plan, remove_strangers, run_jobs
from optimize.narrow import TEACHER
from optimize.quantize import DEFAULT_AIM
from optimize.recipe import Recipe, resolve, stage_config, write_yaml
from optimize.registry import get_stage
from optimize.run_folder import Policy, RunFolder, StageFolder, check_space, fingerprint, read_json
from optimize.run_state import REFERENCE, REJECTED, Run
from optimize.sources import (
    Photos,
    check_device,
    check_input,
    check_lpips,
    check_size,
    limited_threads,
    make_context,
    open_recipe_photos,
    open_teacher,
    recipe_task,
    weights_fingerprint,
)
from optimize.steps import StageJudge, run_judged_stage, stage_fingerprint

if TYPE_CHECKING:
    from optimize.stage import StageContext

ENTRIES = (
    "recipe.yaml",
    "skipped_photos.json",
    "stages",
    "artifacts",
    "rejected",
    "report",
    "bundle",
    "cache",
    ".bundle.key.json",
    shipping.BEFORE,
)
_NEEDED_MB = 600.0
FEW_PHOTOS = 100
#: Shares of ``budget_minutes``.
_SHARES = {"distill": 0.45, "prune": 0.35, "quantize": 0.2}
#: Crops that the teacher answers, at least, for each minute of training, and at most (4 GB); and of one photo.
_CROPS, _CROPS_A_MINUTE, _MAX_CROPS, _MAX_VIEWS = 1500, 750, 16_000, 48
_LONG_MINUTES = 60.0
#: How students learn, by where they start; a shipped one as the stage itself says.
_LEARNING: Mapping[str, Mapping[str, Any]] = {
    "shipped": {},
    "narrowed": {"learning_rate": 3e-4},
    "scratch": {"learning_rate": 1e-3, "optimizer": "muon"},
}
#: Minutes of fine-tuning behind a distillation, which has learned from the same answers.
_STUDENT_MINUTES = 1.0


def run_pipeline(
    recipe: Recipe,
    root: Path,
    *,
    policy: Policy = "same",
    keep_going: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> dict[str, Any]:
    """Run ``recipe`` in the folder ``root`` and return a summary (JSON values).

    What is finished in ``root`` is not run again. Interrupt it at any time and run it again to go on.

    Args:
        recipe: What to do.
        root: Folder of the run.
        policy: What happens when ``root`` holds a run of another recipe; see ``RunFolder.claim``.
        keep_going: What a stage or a converter cannot do with this network is written down, and the rest goes on.
        progress: Where to report.

    Raises:
        UnsupportedError: Without ``keep_going``: a stage cannot work on this network.
        ExportError: Without ``keep_going``: a converter refused it; all others were tried.
        ExportError: Also with ``keep_going``: no target took the network.
        PareError: Bad input, NaN loss, a full disk, a folder that holds another run, or nothing left to ship.
    """
    _check_one_process()
    check_device(recipe.device)
    check_lpips(recipe, [stage_config(recipe, name) for name in recipe.stages])
    photos = open_recipe_photos(recipe.data, seed=recipe.seed, task=recipe_task(recipe), progress=progress)
    progress.note(f"Photos: {photos.describe()}")
    planned = {name: stage_config(recipe, name, stage_defaults(name, recipe, photos)) for name in recipe.stages}
    resolved = resolve(recipe, planned)
    folder = RunFolder(root, ENTRIES)
    check_space(root, _NEEDED_MB)
    if folder.claim(resolved, policy=policy):
        progress.note(f"Going on with the run in {root}")
    with folder.locked(), limited_threads(recipe.threads):
        write_yaml(root / "recipe.yaml", resolved)
        teacher = open_teacher(recipe.teacher, root / "stages" / "00-teacher")
        check_size(teacher, recipe.input_size)
        check_input(teacher, photos.eval, recipe.input_size)
        run = Run(root, recipe, resolved, teacher)
        context = make_context(recipe, photos, teacher, cache=root / "cache", progress=progress)
        shipping.set_aside(root)
        _run_stages(run, photos, context, keep_going=keep_going)
        write_json(root / "skipped_photos.json", photos.skipped())
        _export(run, context)
        if not keep_going:
            check_made(outcome for outcome in run.outcomes if outcome.job.path.parent.name != REFERENCE)
        shipping.measure(run, context)
        shipping.gate(run, progress)
        shipping.bundle(run, progress)
        remove(root / shipping.BEFORE)
    return shipping.summarize(run)


def _check_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "launch train, distill or prune with it, then pass their artifact with --weights to run"
        got = f"{os.environ['WORLD_SIZE']} of a launcher"
        raise UnsupportedError(explain("run", expected="one process", got=got, fix=fix))


def stage_defaults(name: str, recipe: Recipe, photos: Photos, artifact: Artifact | None = None) -> dict[str, Any]:
    """Return what a stage's config gets from the run where the recipe says nothing.

    That is: time, crops a photo (the same for all stages that learn from the teacher's answers, which are then computed
    once), rate and optimizer, and the LPIPS that INT8 aims at where the gate is tighter than the stage's own aim. A
    pruned network is not fine-tuned on fewer than ``FEW_PHOTOS``: a minute on six photos cost it 0.047 LPIPS-squeeze,
    measured on others.

    Args:
        name: Stage.
        recipe: What to do.
        photos: Photos of the run.
        artifact: What the stage will work on; None: what the stages before it are meant to make.
    """
    known = {item.name for item in fields(get_stage(name).config_type)}
    defaults: dict[str, Any] = {}
    share = recipe.budget_minutes and recipe.budget_minutes * _share(name, recipe.stages)
    if share and "fit" in known:
        defaults["fit"] = {"max_minutes": share}
    elif share and "max_minutes" in known:
        defaults["max_minutes"] = share
    if name == "train":
        defaults.update(model=recipe.teacher.model, task=recipe.teacher.task)
        spec = get_spec(recipe.teacher.model, task=recipe.teacher.task)
        defaults["fit"] = {**defaults.get("fit", {}), **spec.fit}
    if name in ("distill", "prune"):
        defaults["fit"] = {**defaults.get("fit", {}), "repeat": _views(recipe, len(photos.train))}
    if name == "distill":
        defaults["fit"] = {**defaults["fit"], **_LEARNING[_start(recipe)]}
    if name == "prune":
        defaults["fit"] = {**_tuning(recipe, artifact), **defaults["fit"]}
        if len(photos.train) < FEW_PHOTOS:
            defaults["fine_tune"] = False
    if name == "quantize" and not {"max_lpips_drop", "aim_lpips_drop"} & recipe.options.get(name, {}).keys():
        defaults["aim_lpips_drop"] = min(DEFAULT_AIM, recipe.gate.max_lpips_drop)
    return defaults


def _start(recipe: Recipe) -> str:
    """Return where the student of ``recipe`` starts, as ``optimize.distill.start_student`` names it.

    Measured on Zero-DCE's curves, 72 s for ``image_unet``, not quite the same start: 27.3 dB to the teacher in 139
    steps at 1e-3, 24.8 dB in 630 steps at 1e-4. With Muon 30.8 dB where AdamW had 29.4 (docs/distillation.md).
    """
    options = recipe.options.get("distill", {})
    if options.get("student") == TEACHER:
        return "narrowed"
    row = MODELS.get(recipe.teacher.model)
    is_shipped = recipe.teacher.weights is None and row is not None and row.weights is not None
    own = options.get("student_kwargs") or options.get("from_scratch")
    if is_shipped and row is not None and options.get("student") in (None, row.student) and not own:
        return "shipped"
    return "scratch"


def _tuning(recipe: Recipe, artifact: Artifact | None) -> dict[str, Any]:
    """Return how long and by what a pruned network is fine-tuned: a student goes on as it learned.

    Measured in docs/distillation.md. A teacher, also one whose student was refused, has what the stage itself says.
    """
    if artifact is None:
        start = _start(recipe) if "distill" in recipe.stages else None
    else:
        start = artifact.metadata.get("start") if artifact.stages[-1:] == ("distill",) else None
    if start is None:
        return {}
    return {"max_minutes": _STUDENT_MINUTES, **(_LEARNING["scratch"] if start == "scratch" else {})}


def _views(recipe: Recipe, photos: int) -> int:
    """Return how many crops of each photo the teacher answers: enough for the training time, and room on the disk."""
    given = [recipe.options.get(name, {}).get("fit", {}).get("max_minutes", 1.0) for name in ("distill", "prune")]
    minutes = max(float(value or _LONG_MINUTES) for value in (*given, recipe.budget_minutes or 1.0))
    crops = min(max(_CROPS, int(_CROPS_A_MINUTE * minutes)), _MAX_CROPS)
    return min(max(crops // photos, 1), _MAX_VIEWS)


def _share(name: str, stages: Sequence[str]) -> float:
    return _SHARES.get(name, 0.2) / sum(_SHARES.get(other, 0.2) for other in stages)


def _run_stages(run: Run, photos: Photos, context: StageContext, *, keep_going: bool) -> None:
    judge = StageJudge(context, run.recipe.gate)
    run.teacher_scores = _teacher_scores(run, judge)
    scores = run.teacher_scores
    context.progress.note(
        f"teacher: LPIPS-{scores['lpips_net']} {scores['lpips']:.4f}; "
        f"{get_task(run.teacher.task).do_nothing}: {scores['lpips_do_nothing']:.4f}"
    )
    current = run.teacher
    for number, name in enumerate(run.recipe.stages, start=1):
        config = stage_config(run.recipe, name, stage_defaults(name, run.recipe, photos, current))
        key = stage_fingerprint(name, config, current, context)
        folder = StageFolder(run.root / "stages" / f"{number:02d}-{name}", name, key)
        result = run_judged_stage(name, config, current, context, folder, judge, scores, keep_going=keep_going)
        run.stages.append(result)
        if result.record.accepted and result.artifact is not None:
            current = result.artifact


def _teacher_scores(run: Run, judge: StageJudge) -> dict[str, Any]:
    """Measure the teacher, or read what an earlier run of the same photos found."""
    data = judge.data
    weights = weights_fingerprint(data.lpips_weights)
    key = fingerprint(run.teacher.sha256, data.eval.fingerprint, list(data.input_size), data.lpips_net, weights)
    path = run.root / "stages" / "00-teacher" / "scores.json"
    known = read_json(path)
    if known.get("key") == key:
        return dict(known["scores"])
    with running_users_code(run.teacher.model, expected="an answer to the photos of the evaluation"):
        scores = judge.measure(run.teacher)
    write_json(path, {"key": key, "scores": scores})
    return scores


def _export(run: Run, context: StageContext) -> None:
    """Export what is shipped to every target, and the teacher and the stages before it to the reference targets."""
    recipe, folder = run.recipe.export, run.root / "artifacts"
    *earlier, shipped = run.float_chain
    sources: dict[Precision, Artifact] = dict.fromkeys(Precision, shipped)
    del sources[Precision.INT8]
    missing = {}
    precisions = list(recipe.precisions)
    if run.quantized is not None:
        sources[Precision.INT8] = run.quantized
    elif "quantize" in run.recipe.stages:
        missing[Precision.INT8] = _why_not_quantized(run)
    elif Precision.INT8 in precisions:
        precisions.remove(Precision.INT8)
        context.progress.note("No INT8 artifacts: the recipe has no quantize stage")
    jobs = plan(sources, targets=recipe.targets, precisions=precisions, folder=folder, missing=missing)
    for artifact in earlier:
        sources = {Precision.FP32: artifact}
        stage = "teacher" if artifact is run.teacher else artifact.stages[-1]
        jobs += plan(
            sources,
            targets=recipe.reference_targets,
            precisions=(Precision.FP32,),
            folder=folder / REFERENCE,
            prefix=f"{stage}-",
        )
    move_back(run.root / REJECTED, folder)
    _clear_exports(folder, jobs)
    size = run.recipe.input_size
    progress = context.progress
    run.outcomes = run_jobs(jobs, input_size=size, dynamic=recipe.dynamic, options=recipe.options, progress=progress)
    for outcome in run.outcomes:
        if outcome.status != "built":
            progress.note(f"{outcome.job.label}: {outcome.status}: {outcome.reason}")


def _why_not_quantized(run: Run) -> str:
    record = next(result.record for result in run.stages if result.record.name == "quantize")
    return f"the quantize stage was not taken: {record.reason}"


def _clear_exports(folder: Path, jobs: Sequence[Job]) -> None:
    remove_strangers(folder / REFERENCE, [job for job in jobs if job.path.parent == folder / REFERENCE])
    remove_strangers(folder, [job for job in jobs if job.path.parent == folder], keep=(REFERENCE,))
