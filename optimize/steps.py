"""Running one stage: finished before or not, measured on the evaluation photos, gated on LPIPS, written down."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact, load_network
from models.errors import (
    ExportError,
    MissingExtraError,
    OutOfReachError,
    PareError,
    ParityError,
    QualityGateError,
    UnsupportedError,
    explain,
    unforeseen,
)
from models.photos import PhotoSet, centre_crop, to_batch
from models.progress import format_seconds
from models.spec import Precision
from optimize.config import to_plain
from optimize.registry import get_row, get_stage
from optimize.run_folder import StageFolder, StageRecord, disk_errors, fingerprint
from optimize.sources import weights_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.recipe import GateRecipe
    from optimize.stage import StageContext

#: What a stage may fail with while the run goes on without it: its result is not good enough, or an engine is missing.
_GO_ON = (QualityGateError, OutOfReachError, MissingExtraError)
#: What a stage cannot do with this network: the run goes on only where it was told to.
_CANNOT = (UnsupportedError, ExportError, ParityError)


@dataclass(frozen=True)
class StageResult:
    """What a stage gave.

    Attributes:
        record: What is known of it.
        artifact: The result, or None when it failed.
        ran: False when an earlier run had finished it.
    """

    record: StageRecord
    artifact: Artifact | None
    ran: bool


class StageJudge:
    """Measures networks on the evaluation photos, in PyTorch, and says what may go on.

    Args:
        data: Photos, input size, LPIPS net.
        gate: What may be shipped.
    """

    def __init__(self, data: StageContext, gate: GateRecipe) -> None:
        self.data, self.gate = data, gate
        self._photos: Tensor | None = None

    def measure(self, artifact: Artifact) -> dict[str, Any]:
        """Return ``lpips``, ``lpips_net``, ``psnr_db``, ... of a ``torch`` artifact in FP32, means over the photos."""
        from optimize.evaluate import evaluate
        from optimize.taught import lacks_truth, task_of

        task = task_of(artifact, self.data)
        if self._photos is None:
            self._photos = load_crops(self.data.eval, task.photo_size(self.data.input_size))
        net, weights = self.data.lpips_net, self.data.lpips_weights
        scores = evaluate(load_network(artifact), task, self._photos, lpips_net=net, lpips_weights=weights)
        known = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        return {"lpips_net": net, "lpips_to": "teacher" if lacks_truth(task) else "truth", **known}

    def objection(self, scores: Mapping[str, Any], teacher: Mapping[str, Any]) -> str | None:
        """Return why a result may not go on, or None."""
        drop = float(scores["lpips"]) - float(teacher["lpips"])
        if drop <= self.gate.max_lpips_drop or self.gate.allow_drop:
            return None
        return (
            f"LPIPS-{scores['lpips_net']} {scores['lpips']:.4f} is {drop:.4f} above the teacher's; the gate is "
            f"{self.gate.max_lpips_drop:g}; --allow-drop takes it all the same"
        )


def load_crops(photos: PhotoSet, size: tuple[int, int]) -> Tensor:
    """Decode photos as centre crops: (N, 3, H, W) in [0, 1]."""
    return to_batch([centre_crop(photo, *size) for photo in photos])


def stage_fingerprint(name: str, config: Any, artifact: Artifact | None, data: StageContext) -> str:
    """Hash everything that the result of a stage depends on, and nothing else."""
    row = get_row(name)
    photos = {kind: getattr(data, kind).fingerprint for kind in row.photos}
    teacher = data.teacher.sha256 if data.teacher else None
    parent = artifact.sha256 if artifact else None
    measure = [list(data.input_size), data.lpips_net, weights_fingerprint(data.lpips_weights), data.seed]
    threads = data.threads if row.times_engines else None
    return fingerprint(name, to_plain(config), parent, teacher, photos, measure, threads)


def run_stage(
    name: str, config: Any, artifact: Artifact | None, data: StageContext, folder: StageFolder
) -> tuple[StageRecord, Artifact, bool]:
    """Run stage ``name``, or take what an earlier run finished. The record is not yet judged.

    Returns:
        The record, the artifact, and whether it ran.

    Raises:
        PareError: The stage failed; the record says so, and its checkpoints stay.
    """
    done = folder.finished()
    if done is not None:
        took = format_seconds(done[0].seconds)
        data.progress.note(f"{name}: finished before (took {took}), not run again: {done[1].path}")
        return *done, False
    stage = get_stage(name)
    record = StageRecord(name, folder.key)
    if is_main_process():
        with disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            record = folder.begin()
    wait_for_all()
    data.progress.note(f"{name}: {'goes on' if record.seconds else 'starts'} in {folder.path}")
    start = time.monotonic()
    try:
        with disk_errors(folder.path):
            result = stage.run(artifact, config, data, folder.path)
    except BaseException as error:
        _write_failure(folder, record, error, time.monotonic() - start)
        raise
    seconds = record.seconds + time.monotonic() - start
    record = replace(record, status="finished", artifact=result.path.name, seconds=round(seconds, 1), accepted=True)
    if is_main_process():
        folder.write(record)
    return record, result, True


def run_judged_stage(
    name: str,
    config: Any,
    artifact: Artifact,
    data: StageContext,
    folder: StageFolder,
    judge: StageJudge,
    teacher_scores: Mapping[str, Any],
    *,
    keep_going: bool = False,
) -> StageResult:
    """Run a stage of the pipeline and decide whether the next one works on its result.

    Raises:
        UnsupportedError: The stage cannot work on this network. With ``keep_going`` that is written down instead.
        PareError: The input is bad or the training failed.
    """
    try:
        record, result, ran = run_stage(name, config, artifact, data, folder)
    except _GO_ON as error:
        return _failed(folder, name, str(error), data)
    except _CANNOT as error:
        if not keep_going:
            raise UnsupportedError(_stopped(name, str(error))) from error
        return _failed(folder, name, str(error), data)
    except PareError:
        raise
    except Exception as error:  # code of the user's, and libraries, may raise anything
        text = unforeseen(error)
        if not keep_going:
            raise UnsupportedError(_stopped(name, text)) from error
        return _failed(folder, name, text, data)
    if record.scores is None:
        scores = measured_scores(result, judge)
        record = folder.write(replace(record, scores=scores))
    reason = judge.objection(record.scores or {}, teacher_scores) or no_gain(result, judge.gate)
    record = folder.write(replace(record, accepted=reason is None, reason=reason))
    data.progress.note(describe(record, teacher_scores))
    return StageResult(record, result, ran)


def measured_scores(artifact: Artifact, judge: StageJudge) -> dict[str, Any]:
    """Return the scores of a stage's result: of INT8 what the stage simulated, of the others those in PyTorch."""
    own = artifact.metadata.get("scores")
    if artifact.precision is Precision.INT8 and isinstance(own, Mapping) and "lpips" in own:
        return {"lpips_net": judge.data.lpips_net, **own}
    return judge.measure(artifact)


def no_gain(artifact: Artifact, gate: GateRecipe) -> str | None:
    """Return why a pruned network is not worth having, or None: it must be faster by ``gate.min_gain``."""
    speedup = artifact.metadata.get("speedup")
    if artifact.stages[-1:] != ("prune",) or not isinstance(speedup, (int, float)) or speedup >= gate.min_gain:
        return None
    return f"only {speedup:.2f}x faster than before, the least worth having is {gate.min_gain:g}x"


def describe(record: StageRecord, teacher_scores: Mapping[str, Any]) -> str:
    """Say in a line what a stage cost, for example ``prune: LPIPS-lite 0.1712 (teacher +0.0012) in 1:02``."""
    scores = record.scores or {}
    text = record.name
    if "lpips" in scores:
        drop = float(scores["lpips"]) - float(teacher_scores["lpips"])
        text += f": LPIPS-{scores['lpips_net']} {scores['lpips']:.4f} (teacher {drop:+.4f})"
    text += f" in {format_seconds(record.seconds)}"
    return text if record.accepted else f"{text}; not taken: {record.reason}"


def _stopped(name: str, reason: str) -> str:
    fix = "pass --keep-going to go on without it; what is finished stays and is not run again"
    return explain(f"stage {name}", expected="a network that it can work on", got=reason, fix=fix)


def _failed(folder: StageFolder, name: str, reason: str, data: StageContext) -> StageResult:
    data.progress.note(f"{name}: failed, the run goes on without it: {reason}")
    record = folder.read() or StageRecord(name, folder.key)
    record = folder.write(replace(record, status="failed", reason=reason, accepted=False))
    return StageResult(record, None, True)


def _write_failure(folder: StageFolder, record: StageRecord, error: BaseException, seconds: float) -> None:
    interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
    if not is_main_process():
        return
    text = "interrupted" if interrupted else str(error)
    seconds = round(record.seconds + seconds, 1)
    try:
        folder.write(replace(record, status="running" if interrupted else "failed", seconds=seconds, reason=text))
    except PareError:
        return  # the disk is full: the error that is under way says so


def is_main_process() -> bool:
    """Say whether this is the first, or the only, process of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Wait for the other processes of a launcher, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate.state import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def written_once(write: Callable[[], Artifact], path: Path) -> Artifact:
    """Let the first process of a launcher write the artifact at ``path``; the others wait and read it."""
    artifact = write() if is_main_process() else None
    wait_for_all()
    return artifact or Artifact.load(path)
