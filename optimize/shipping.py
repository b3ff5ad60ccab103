"""The end of a run: everything measured in one contest, the LPIPS gate, the report, the bundle, the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.row import BenchmarkRow
from benchmarks.view import Headline
from export.files import remove
from models.artifact import write_json
from models.errors import ExportError, PareError, QualityGateError, explain
from models.progress import Progress
from optimize.accounts import notes, stage_accounts
from optimize.exports import REWRITE, Outcome, move, say_reasons
from optimize.run_folder import fingerprint, read_json
from optimize.run_state import REFERENCE, REJECTED, Run

if TYPE_CHECKING:
    from benchmarks.run import Benchmark
    from benchmarks.settings import Settings
    from optimize.stage import StageContext

NOT_SHIPPED = "not shipped"
#: What tells how a run ended, and where it lies while a run is at work that may end otherwise.
RESULTS, BEFORE = ("report", "bundle"), ".before"


def set_aside(root: Path) -> None:
    """Put report and bundle of the run before into ``.before``: nobody is to take them for those of this one."""
    for name in RESULTS:
        if (root / name).exists():
            (root / BEFORE).mkdir(exist_ok=True)
            remove(root / BEFORE / name)
            (root / name).replace(root / BEFORE / name)


def _bring_back(folder: Path) -> None:
    (folder.parent / BEFORE / folder.name).replace(folder)


def measure(run: Run, context: StageContext) -> None:
    """Measure everything in one contest and write the report; an unchanged contest is not repeated."""
    from benchmarks.machine import describe_machine
    from benchmarks.run import benchmark

    built = [outcome.artifact for outcome in run.outcomes if outcome.artifact is not None]
    chosen = [run.teacher, *run.stage_artifacts, *built]
    settings = _settings(run)
    machine = describe_machine(threads=settings.threads).id
    reasons = [[o.job.label, o.status, o.reason] for o in run.outcomes]
    hashes = [artifact.sha256 for artifact in chosen]
    key = fingerprint(hashes, reasons, settings.to_json(), run.resolved, context.eval.fingerprint, machine)
    report = run.root / "report"
    before = run.root / BEFORE / report.name
    known = read_json(before / "report.json")
    if known.get("rows") and read_json(before / ".key.json").get("key") == key:
        _bring_back(report)
        context.progress.note(f"benchmark: finished before, not run again: {report}")
        run.rows = [BenchmarkRow.from_json(row) for row in known["rows"]]
        return
    result = benchmark(
        chosen, context.eval, teacher=run.teacher, settings=settings, root=run.root, progress=context.progress
    )
    rows = [*result.rows, *(_row_of_failure(run, outcome) for outcome in run.outcomes if outcome.artifact is None)]
    teacher = next((row for row in rows if row.is_teacher), None)
    run.rows = [_with_objection(run, row, teacher) for row in rows]
    places = {old.artifact: new.artifact for old, new in zip(rows, run.rows, strict=True)}
    _write(run, replace(result, details=_moved(result.details, places)))
    write_json(report / ".key.json", {"key": key})


def _settings(run: Run) -> Settings:
    from benchmarks.settings import Settings

    recipe = run.recipe
    return Settings(
        input_size=recipe.input_size,
        threads=recipe.threads,
        lpips_net=recipe.lpips_net,
        lpips_weights=recipe.lpips_weights,
        seed=recipe.seed,
        **asdict(recipe.benchmark),
    )


def _write(run: Run, result: Benchmark) -> None:
    from benchmarks.report import write_report

    write_report(
        run.root / "report",
        machine=result.machine,
        recipe=run.resolved,
        rows=run.rows,
        pictures=result.pictures,
        stages=stage_accounts(run),
        notes=notes(run),
        details=result.details,
    )


def _row_of_failure(run: Run, outcome: Outcome) -> BenchmarkRow:
    job = outcome.job
    source = job.source or run.float_chain[-1]
    stages = source.stages if job.source else (*source.stages, "quantize")
    return BenchmarkRow(
        model=source.model,
        task=source.task,
        stage="teacher" if source is run.teacher and job.source else stages[-1],
        target=job.target,
        precision=job.precision.value,
        artifact=job.path.relative_to(run.root).as_posix(),
        sha256="",
        parent_sha256=source.sha256,
        stages=stages,
        device="",
        height=run.recipe.input_size[0],
        width=run.recipe.input_size[1],
        status="unsupported" if outcome.status == "unsupported" else "failed",
        reason=outcome.reason or "unknown",
    )


def _with_objection(run: Run, row: BenchmarkRow, teacher: BenchmarkRow | None) -> BenchmarkRow:
    """Say in a row that breaks the gate why it is not shipped, and where ``gate`` moves it."""
    gate = run.recipe.gate
    if teacher is None or row.distance is None or teacher.distance is None or gate.allow_drop or row.stage == "teacher":
        return row
    drop = row.distance - teacher.distance
    if drop <= gate.max_lpips_drop:
        return row
    text = f"{NOT_SHIPPED}: LPIPS {drop:.4f} above the teacher's, the gate is {gate.max_lpips_drop:g}"
    folder, _, file = row.artifact.rpartition("/")
    place = f"{REJECTED}/{file}" if folder == "artifacts" else row.artifact
    return replace(row, artifact=place, reason=f"{row.reason}; {text}" if row.reason else text)


def _moved(details: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Return the details of a contest with the values of photos under the new names of artifacts."""
    photos = details.get("photos")
    if not photos:
        return dict(details)
    values = {}
    for name, value in photos["values"].items():
        artifact, _, device = name.rpartition("@")
        values[f"{places.get(artifact, artifact)}@{device}"] = value
    return {**details, "photos": {**photos, "values": values}}


def gate(run: Run, progress: Progress) -> None:
    """Move what breaks the gate from ``artifacts`` to ``rejected``.

    Raises:
        QualityGateError: Nothing is left to ship, and some of it broke the gate.
        ExportError: Nothing is left to ship, and none of it could be made.
    """
    reasons = {row.artifact: row.reason for row in run.rows if row.artifact.startswith(f"{REJECTED}/")}
    kept = []
    for outcome in run.outcomes:
        reason = reasons.get(f"{REJECTED}/{outcome.job.path.name}")
        if outcome.artifact is not None and reason and outcome.job.path.parent.name != REFERENCE:
            progress.note(f"{outcome.job.label}: {reason}")
            outcome = replace(outcome, artifact=move(outcome.artifact, run.root / REJECTED))
            outcome = replace(outcome, status="failed", reason=reason)
        kept.append(outcome)
    run.outcomes = kept
    if run.outcomes and not run.shipped:
        raise _nothing_to_ship(run)


def _nothing_to_ship(run: Run) -> PareError:
    """Return the error of a run that made nothing to ship: what stood against each artifact, and what helps."""
    outcomes = [outcome for outcome in run.outcomes if outcome.job.path.parent.name != REFERENCE]
    rejected = any(NOT_SHIPPED in (outcome.reason or "") for outcome in outcomes)
    fixes = ["raise --max-lpips-drop, or pass --allow-drop"] if rejected else []
    if any(outcome.refused for outcome in outcomes):
        fixes.append(REWRITE)
    report = run.root / "report" / "report.md"
    fix = "; ".join([*(fixes or ["do what the reasons say, or export to other targets"]), f"{report} has it all"])
    text = explain("run", expected="an artifact to ship", got=say_reasons(outcomes) or "none", fix=fix)
    return QualityGateError(text) if rejected else ExportError(text)


def bundle(run: Run, progress: Progress) -> None:
    """Write what an app developer receives, unless the same artifacts and numbers are in it already."""
    if not run.shipped:
        return
    from export.bundle import write_bundle

    folder, note = run.root / "bundle", run.root / ".bundle.key.json"
    rows = {row.artifact: row for row in run.rows}
    scores = {
        artifact.path.name: _scores(rows[name])
        for artifact in run.shipped
        if (name := artifact.path.relative_to(run.root).as_posix()) in rows
    }
    key = fingerprint([artifact.sha256 for artifact in run.shipped], run.float_chain[-1].sha256, scores)
    before = run.root / BEFORE / folder.name
    if read_json(note).get("key") == key and before.is_dir():
        _bring_back(folder)
        progress.note(f"bundle: written before: {folder}")
        return
    reference = run.float_chain[-1]
    write_bundle(run.shipped, folder, reference=reference, teacher=run.teacher, scores=scores, progress=progress)
    write_json(note, {"key": key})


def _scores(row: BenchmarkRow) -> dict[str, Any]:
    names = ("lpips", "lpips_net", "lpips_vs_teacher", "latency_p50_ms", "speedup", "device", "reason")
    return {name: value for name in names if (value := getattr(row, name)) is not None}


def summarize(run: Run) -> dict[str, Any]:
    """Return what a command line prints: where everything is, and the fastest artifact beside the teacher."""
    return {
        "output": str(run.root),
        "report": str(run.root / "report" / "index.html"),
        "bundle": str(run.root / "bundle"),
        "stages": [
            {
                "name": result.record.name,
                "accepted": result.record.accepted,
                "reason": result.record.reason,
                "seconds": result.record.seconds,
                "lpips": (result.record.scores or {}).get("lpips"),
                "artifact": str(result.artifact.path) if result.artifact else None,
            }
            for result in run.stages
        ],
        "artifacts": [
            {
                "target": outcome.job.target,
                "precision": outcome.job.precision.value,
                "status": outcome.status,
                "reason": outcome.reason,
                "path": str(outcome.artifact.path) if outcome.artifact else None,
            }
            for outcome in run.outcomes
            if outcome.job.path.parent.name != REFERENCE
        ],
        "best": best_row(run),
    }


def best_row(run: Run) -> dict[str, Any] | None:
    """Return the fastest shipped artifact that was timed, beside the teacher in PyTorch."""
    teacher = next((row for row in run.rows if row.is_teacher), None)
    names = {artifact.path.relative_to(run.root).as_posix() for artifact in run.shipped}
    able = [row for row in run.rows if row.speedup and row.artifact in names]
    if teacher is None or not able:
        return None
    best = max(able, key=lambda row: row.speedup or 0.0)
    known = best.distance is not None and teacher.distance is not None
    drop = (best.distance or 0.0) - (teacher.distance or 0.0)
    return {
        "label": best.label,
        "artifact": best.artifact,
        "latency_p50_ms": best.latency_p50_ms,
        "teacher_latency_p50_ms": teacher.latency_p50_ms,
        "speedup": best.speedup,
        "lpips": best.lpips,
        "lpips_vs_teacher": best.lpips_vs_teacher,
        "is_noisy": Headline(best, teacher, drop).is_noisy,
        "lpips_drop": drop if known else None,
        "lpips_net": best.lpips_net,
    }
