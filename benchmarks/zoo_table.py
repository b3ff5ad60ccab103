"""One row of the zoo: what a run's ``report.json`` says of one model, from its teacher to what it ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.report import read_report, rows_of
from benchmarks.row import BenchmarkRow
from models.errors import ConfigError, explain
from models.registry import get_task

if TYPE_CHECKING:
    from models.spec import ModelSpec

#: Metric of a task -> column of the report.
COLUMNS = {"lpips": "lpips", "psnr": "psnr_db", "ssim": "ssim", "delta_e": "delta_e"}
LOWER_IS_BETTER = ("lpips", "delta_e")
#: Folder of a run that holds what is shipped, and the one in it that holds what it is compared with.
_SHIPPED, _REFERENCE = "artifacts", "reference"
Status = Literal["done", "failed"]


@dataclass(frozen=True)
class Engine:
    """One artifact that a model ships.

    Attributes:
        target: Name of the target.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        status: As in the report: ``measured``, ``built``, ``unsupported`` or ``failed``.
        p50_ms: Median of one call, or None.
        is_noisy: Quartiles further apart than 10% of the median.
        size_mb: Of the file or folder, MB.
        lpips_to_teacher: Distance of its pictures to the teacher's.
        reason: Why something is missing.
    """

    target: str
    precision: str
    status: str
    p50_ms: float | None = None
    is_noisy: bool | None = None
    size_mb: float | None = None
    lpips_to_teacher: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ZooRow:
    """One model. Unknown is None; what could not be made or measured says why in ``engines`` or ``reason``.

    Attributes:
        model: Registry name of the teacher.
        task: Its task.
        status: ``done``, or ``failed`` with the reason.
        reason: Why it failed, or why a number is None.
        minutes: Training time that it was given: the teacher's and that of the stages after it.
        seconds: Time that it took, all in all; of a row that was resumed the last part.
        teacher: Where the teacher's weights are from, for people.
        student: Network that is shipped.
        stages: What was done to it, and what was not taken, for people.
        height: Of the input, pixels.
        width: Of the input, pixels.
        photos: Photos that the quality is a mean of.
        teacher_params_m: Parameters of the teacher, millions.
        params_m: Parameters of what is shipped, millions.
        teacher_gmacs: Multiply-adds of the teacher, thousand millions.
        gmacs: Multiply-adds of what is shipped, thousand millions.
        teacher_size_mb: Checkpoint of the teacher, MB.
        size_mb: The shipped artifact, MB.
        teacher_p50_ms: Target -> median of one call of the teacher in FP32; ``torch`` is PyTorch eager.
        engines: Everything that is shipped.
        shipped: The artifact that stands for the model: the fastest INT8 one, else the fastest, for people.
        speedup: Of that one over the teacher in PyTorch eager.
        lpips_net: Net of every LPIPS number.
        lpips_to_teacher: Of the shipped artifact.
        metric: The first metric of the task.
        metric_to: ``truth``, or ``teacher`` where the task has no ground truth.
        do_nothing: What the do-nothing baseline is, in words.
        idle_value: Metric of doing nothing.
        teacher_value: Metric of the teacher; None where it is the truth.
        shipped_value: Metric of the shipped artifact.
        teacher_margin: How much better than doing nothing the teacher is; negative: worse.
        shipped_margin: The same of the shipped artifact.
        machine: Where the latencies were measured, ``Machine.id``.
        interference: Part of the processors that other processes used meanwhile, 0 to 1.
        report: The report of the run, relative to the zoo.
    """

    model: str
    task: str
    status: Status = "done"
    reason: str | None = None
    minutes: float | None = None
    seconds: float | None = None
    teacher: str | None = None
    student: str | None = None
    stages: str | None = None
    height: int | None = None
    width: int | None = None
    photos: int | None = None
    teacher_params_m: float | None = None
    params_m: float | None = None
    teacher_gmacs: float | None = None
    gmacs: float | None = None
    teacher_size_mb: float | None = None
    size_mb: float | None = None
    teacher_p50_ms: Mapping[str, float] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()
    shipped: str | None = None
    speedup: float | None = None
    lpips_net: str | None = None
    lpips_to_teacher: float | None = None
    metric: str | None = None
    metric_to: str | None = None
    do_nothing: str | None = None
    idle_value: float | None = None
    teacher_value: float | None = None
    shipped_value: float | None = None
    teacher_margin: float | None = None
    shipped_margin: float | None = None
    machine: str | None = None
    interference: float | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if self.status == "failed" and not self.reason:
            fix = "say it in `reason`"
            raise ConfigError(explain(f"row {self.model}", expected="why it failed", got="no reason", fix=fix))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, all fields."""
        content = asdict(self)
        content["engines"] = [asdict(engine) for engine in self.engines]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ZooRow:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: A field is unknown.
        """
        unknown = sorted(set(content) - {item.name for item in fields(cls)})
        if unknown:
            fix = "run the zoo again"
            raise ConfigError(explain("row of a zoo", expected="the fields of ZooRow", got=unknown, fix=fix))
        return cls(**{**content, "engines": tuple(Engine(**engine) for engine in content.get("engines", ()))})


def failed_row(spec: ModelSpec, reason: str, training: Mapping[str, Any]) -> ZooRow:
    """Return the row of a model whose training or run ended with an error."""
    stage = "run" if training or spec.weights else "train"
    origin = describe_training(spec, training) if training else None
    return ZooRow(spec.name, spec.task, status="failed", reason=f"{stage}: {reason}", teacher=origin)


def row_of(spec: ModelSpec, report: Path, training: Mapping[str, Any]) -> ZooRow:
    """Read the report of a run.

    Args:
        spec: The teacher.
        report: Folder of the report.
        training: What ``optimize train`` printed; empty where the teacher was not trained here.

    Raises:
        CheckpointError: No report there.
    """
    content = read_report(report)
    rows = rows_of(content)
    teacher = next((row for row in rows if row.is_teacher), None)
    shipped = [row for row in rows if PurePosixPath(row.artifact).parent.as_posix() == _SHIPPED]
    best = choose_shipped(shipped)
    shape = teacher or best
    return ZooRow(
        model=spec.name,
        task=spec.task,
        reason=None if best is not None else "nothing that is shipped was measured; the engines say why",
        teacher=describe_training(spec, training),
        student=next((row.model for row in shipped), None),
        stages=describe_stages(content.get("stages") or []),
        height=shape.height if shape else None,
        width=shape.width if shape else None,
        photos=(content.get("photos") or {}).get("count"),
        teacher_params_m=teacher.params_m if teacher else None,
        params_m=best.params_m if best else None,
        teacher_gmacs=teacher.gmacs if teacher else None,
        gmacs=best.gmacs if best else None,
        teacher_size_mb=teacher.size_mb if teacher else None,
        size_mb=best.size_mb if best else None,
        teacher_p50_ms=_teacher_times(rows),
        engines=tuple(_engine(row) for row in shipped),
        shipped=best.label if best else None,
        speedup=best.speedup if best else None,
        lpips_net=best.lpips_net if best else None,
        lpips_to_teacher=best.lpips_vs_teacher if best else None,
        machine=next((row.machine for row in rows if row.latency_p50_ms is not None), None),
        interference=max((row.interference for row in rows if row.interference is not None), default=None),
        **_margins(spec, content.get("baseline") or {}, teacher, best),
    )


def choose_shipped(rows: Sequence[BenchmarkRow]) -> BenchmarkRow | None:
    """Return the artifact that stands for a model: the fastest INT8 one, else one judged in INT8, else the fastest."""
    judged = [row for row in rows if row.distance is not None]
    ranked = sorted(judged, key=lambda row: (row.precision != "int8", row.latency_p50_ms or float("inf")))
    return ranked[0] if ranked else None


def describe_training(spec: ModelSpec, training: Mapping[str, Any]) -> str:
    """Say where the teacher's weights are from, for example ``212 steps in 60 s``."""
    if not training:
        return "as shipped"
    account = dict(training.get("metadata", {})).get("account") or {}
    if not account:
        return f"trained here, {training.get('seconds', 0):.0f} s"
    return f"{account['steps']} steps in {account['seconds']:.0f} s"


def describe_stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """Say what was done, for example ``distill 30 s, prune 20 s (not taken: ...)``."""
    parts = []
    for stage in stages:
        seconds = f" {stage['seconds']:.0f} s" if stage.get("seconds") is not None else ""
        taken = "" if stage.get("accepted", True) else f" ({stage.get('note')})"
        parts.append(f"{stage.get('stage')}{seconds}{taken}")
    return ", ".join(parts)


def _teacher_times(rows: Sequence[BenchmarkRow]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        is_reference = PurePosixPath(row.artifact).parent.name == _REFERENCE or row.is_teacher
        if row.stage == "teacher" and is_reference and row.precision == "fp32" and row.latency_p50_ms is not None:
            found.setdefault(row.target, row.latency_p50_ms)
    return found


def _engine(row: BenchmarkRow) -> Engine:
    return Engine(
        target=row.target,
        precision=row.precision,
        status=row.status,
        p50_ms=row.latency_p50_ms,
        is_noisy=row.latency_is_noisy,
        size_mb=row.size_mb,
        lpips_to_teacher=row.lpips_vs_teacher,
        reason=row.reason,
    )


def _margins(
    spec: ModelSpec, baseline: Mapping[str, Any], teacher: BenchmarkRow | None, best: BenchmarkRow | None
) -> dict[str, Any]:
    """Return the task's metric of doing nothing, of the teacher and of what is shipped, and what is gained."""
    task = get_task(spec.task)
    metric = next((name for name in task.metrics if name in COLUMNS), "lpips")
    column = COLUMNS[metric]
    has_truth = teacher is not None and teacher.lpips is not None
    if metric == "lpips" and not has_truth:
        values = (baseline.get("lpips"), None, best.lpips_vs_teacher if best else None)
    else:
        known = getattr(teacher, column, None) if has_truth else None
        values = (baseline.get(column), known, getattr(best, column, None))
    idle, of_teacher, of_shipped = values
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def margin(value: float | None) -> float | None:
        return None if value is None or idle is None else sign * (value - idle)

    return {
        "metric": metric,
        "metric_to": "truth" if has_truth else "teacher",
        "do_nothing": task.do_nothing,
        "idle_value": idle,
        "teacher_value": of_teacher,
        "shipped_value": of_shipped,
        "teacher_margin": margin(of_teacher),
        "shipped_margin": margin(of_shipped),
    }
