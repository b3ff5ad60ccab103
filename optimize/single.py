"""One stage on its own: ``train``, ``distill``, ``prune`` or ``quantize`` in a folder that it can go on in.

The folder holds ``recipe.yaml``, ``stage.json``, the artifact with its sidecar, and checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact, write_json
from models.errors import PareError, UnsupportedError, UsageError, explain, unforeseen
from models.progress import NULL_PROGRESS, Progress
from models.registry import MODELS, WEIGHTS
from optimize.pipeline import stage_defaults
from optimize.recipe import Recipe, resolve, stage_config, write_yaml
from optimize.run_folder import Policy, RunFolder, StageFolder, check_space
from optimize.sources import (
    check_device,
    check_input,
    check_lpips,
    check_size,
    limited_threads,
    make_context,
    open_recipe_photos,
    open_teacher,
    recipe_task,
)
from optimize.steps import is_main_process, run_stage, stage_fingerprint, wait_for_all

if TYPE_CHECKING:
    from optimize.stage import StageContext

#: What stages write; other files in the folder are never removed.
_RESULTS = ("stage.json", "train.log.json", "*.safetensors", "*.safetensors.json", "*.checkpoint", "*.png")
ENTRIES = ("recipe.yaml", "skipped_photos.json", "teacher", "cache", *_RESULTS)
_NEEDED_MB = 300.0


def run_single(
    name: str,
    recipe: Recipe,
    root: Path,
    *,
    artifact: Path | None = None,
    teacher_named: bool = True,
    policy: Policy = "same",
    progress: Progress = NULL_PROGRESS,
) -> dict[str, Any]:
    """Run stage ``name`` in the folder ``root`` and return a summary (JSON values).

    Args:
        name: Stage.
        recipe: Teacher, photos, and the section of the stage.
        root: Folder of the result.
        artifact: ``torch`` artifact to work on; None: the teacher.
        teacher_named: Use the recipe's teacher; False: find the one that ``artifact`` was made from.
        policy: What happens when ``root`` holds a run of another recipe; see ``RunFolder.claim``.
        progress: Where to report.

    Raises:
        PareError: Bad input, NaN loss, a full disk, or a folder that holds another run.
    """
    recipe = replace(recipe, stages=(name,) if name != "train" else ())
    check_device(recipe.device)
    check_lpips(recipe, [stage_config(recipe, name)])
    given = Artifact.load(artifact) if artifact is not None else None
    if root.suffix == ".safetensors":
        fix = f"pass --output {root.with_suffix('')}"
        raise UsageError(explain("--output", expected="a folder", got=root.name, fix=fix))
    photos = open_recipe_photos(recipe.data, seed=recipe.seed, task=recipe_task(recipe, given), progress=progress)
    progress.note(f"Photos: {photos.describe()}")
    config = stage_config(recipe, name, stage_defaults(name, recipe, photos, given))
    resolved = {**resolve(recipe, {name: config}), "artifact": given.sha256 if given else None}
    check_space(root, _NEEDED_MB)
    folder = RunFolder(root, ENTRIES)

    def work() -> dict[str, Any]:
        wait_for_all()
        context = make_context(recipe, photos, None, cache=root / "cache", progress=progress)
        teacher = _teacher_of(recipe, given, root, named=teacher_named) if name != "train" else None
        with limited_threads(recipe.threads):
            return _run(name, config, recipe, given, replace(context, teacher=teacher), root)

    if not is_main_process():
        return work()
    if folder.claim(resolved, policy=policy):
        progress.note(f"Going on with the run in {root}")
    with folder.locked():
        write_yaml(root / "recipe.yaml", resolved)
        summary = work()
        write_json(root / "skipped_photos.json", photos.skipped())
    return summary


def _run(
    name: str, config: Any, recipe: Recipe, given: Artifact | None, context: StageContext, root: Path
) -> dict[str, Any]:
    parent = given or context.teacher
    if parent is not None:
        check_size(parent, recipe.input_size)
        check_input(parent, context.eval, recipe.input_size)
    elif recipe.teacher.weights is not None:
        parent = open_teacher(recipe.teacher, root / "teacher")
    folder = StageFolder(root, name, stage_fingerprint(name, config, parent, context), entries=_RESULTS)
    try:
        record, result, ran = run_stage(name, config, parent, context, folder)
    except PareError:
        raise
    except Exception as error:  # code of the user's, and libraries, may raise anything
        expected, fix = "a network that it can work on", "set PARE_DEBUG=1 to see where"
        raise UnsupportedError(explain(f"stage {name}", expected=expected, got=unforeseen(error), fix=fix)) from error
    return {
        "stage": name,
        "artifact": str(result.path),
        "sha256": result.sha256,
        "precision": result.precision.value,
        "ran": ran,
        "seconds": record.seconds,
        "metadata": dict(result.metadata),
    }


def _teacher_of(recipe: Recipe, given: Artifact | None, root: Path, *, named: bool) -> Artifact:
    """Return what a stage learns from: the teacher that was named, else the one that the artifact was made from.

    An artifact whose teacher is not at hand is its own teacher.
    """
    if given is None or named:
        teacher = open_teacher(recipe.teacher, root / "teacher")
        if given is not None and given.task != teacher.task:
            fix = "pass the --teacher that it was made from"
            raise UsageError(explain("teacher", expected=f"task {given.task}", got=f"task {teacher.task}", fix=fix))
        return teacher
    for row in MODELS.values():
        if row.weights is None or not (WEIGHTS / row.weights).exists() or given.model not in (row.student, row.name):
            continue
        shipped = Artifact.load(WEIGHTS / row.weights)
        if given.model == row.student or given.parent_sha256 == shipped.sha256:
            return shipped
    return given
