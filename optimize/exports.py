"""One artifact a target and precision. What a target cannot do is written down, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.files import companions, remove
from export.registry import get_target
from models.artifact import Artifact, write_json
from models.errors import (
    CheckpointError,
    ExportError,
    MissingExtraError,
    PareError,
    RunFolderError,
    UnsupportedError,
    explain,
)
from models.progress import NULL_PROGRESS, Progress
from models.spec import Precision
from optimize.run_folder import disk_errors, fingerprint

if TYPE_CHECKING:
    from export.target import Target

Status = Literal["built", "unsupported", "failed"]
#: What helps when no target takes a network.
REWRITE = (
    "write the operators that are named in another way, add a target that takes them, or distill the network into a "
    "student, which ships in its place (stage distill; another --student where the student is what was refused)"
)


@dataclass(frozen=True)
class Job:
    """One artifact to make.

    Attributes:
        source: ``torch`` artifact to convert; None when the stage that makes it gave nothing.
        target: Name of the target.
        precision: Arithmetic.
        path: Where to write it.
        missing: Why ``source`` is None.
    """

    source: Artifact | None
    target: str
    precision: Precision
    path: Path
    missing: str | None = None

    @property
    def label(self) -> str:
        """For people, for example ``openvino int8``."""
        return f"{self.target} {self.precision}"


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        job: The job.
        status: ``built``, ``unsupported`` (the target has no such thing, whatever the network) or ``failed``.
        artifact: What was written, or None.
        reason: Why not.
        seconds: Wall time; 0 when an earlier run had made it.
        refused: The converter was asked and cannot do this network.
    """

    job: Job
    status: Status
    artifact: Artifact | None = None
    reason: str | None = None
    seconds: float = 0.0
    refused: bool = False


def short_name(model: str) -> str:
    """Return a file name for a model: the part behind the colon of ``package.module:factory``."""
    return model.rpartition(":")[2]


def plan(
    sources: Mapping[Precision, Artifact],
    *,
    targets: Sequence[str],
    precisions: Iterable[Precision],
    folder: Path,
    prefix: str = "",
    missing: Mapping[Precision, str] | None = None,
) -> list[Job]:
    """List the artifacts of every target and precision.

    Args:
        sources: Artifact to convert by precision.
        targets: Names of targets.
        precisions: Wanted.
        folder: Where artifacts go: ``<prefix><model>-<precision><suffix>``.
        prefix: Start of the file names.
        missing: Why a precision has no source.
    """
    any_source = next(iter(sources.values()))
    jobs = []
    for name in targets:
        target = get_target(name)
        for precision in precisions:
            source = sources.get(precision)
            model = short_name((source or any_source).model)
            path = folder / f"{prefix}{model}-{precision}{target.suffix}"
            jobs.append(Job(source, name, precision, path, (missing or {}).get(precision)))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    *,
    input_size: tuple[int, int],
    dynamic: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = NULL_PROGRESS,
) -> list[Outcome]:
    """Do every job; an artifact that an earlier run made from the same source in the same way stays.

    Raises:
        RunFolderError: The disk is full: nothing more can be written.
    """
    outcomes = []
    with progress.track("Exporting", total=len(jobs)) as bar:
        for job in jobs:
            how = {
                "input_size": input_size,
                "dynamic": dynamic,
                "options": dict((options or {}).get(job.target, {})),
            }
            outcomes.append(_run_job(job, how, progress))
            bar.advance(1, last=job.label)
    return outcomes


def _run_job(job: Job, how: Mapping[str, Any], progress: Progress) -> Outcome:
    if job.source is None:
        return Outcome(job, "failed", reason=job.missing or "there is nothing to export")
    target = get_target(job.target)
    if job.precision not in target.precisions:
        text = explain(
            f"precision of target {target.name}",
            expected=" | ".join(str(p) for p in target.precisions),
            got=job.precision,
            fix="leave it out, or choose another target",
        )
        return Outcome(job, "unsupported", reason=text)
    key = fingerprint(job.source.sha256, job.precision.value, how)
    done = _made_before(job.path, key)
    if done is not None:
        return Outcome(job, "built", done)
    start = time.perf_counter()
    try:
        with disk_errors(job.path):
            artifact = _export(job, target, how, progress)
            _note_key(artifact, key)
    except RunFolderError:
        raise
    except (
        MissingExtraError,
        UnsupportedError,
    ) as error:  # by design, or a package is missing
        return Outcome(job, "unsupported", reason=str(error))
    except Exception as error:  # a third-party converter may raise anything; the other targets go on
        remove(job.path)
        text = str(error) if isinstance(error, PareError) else f"{type(error).__name__}: {error}"
        return Outcome(job, "failed", reason=" ".join(text.split())[:1000], refused=True)
    return Outcome(job, "built", artifact, seconds=time.perf_counter() - start)


def _export(job: Job, target: Target, how: Mapping[str, Any], progress: Progress) -> Artifact:
    assert job.source is not None
    return target.load().export(
        job.source,
        job.path,
        precision=job.precision,
        input_size=how["input_size"],
        dynamic=how["dynamic"],
        options=how["options"],
        progress=progress,
    )


def check_made(outcomes: Iterable[Outcome]) -> None:
    """Raise ExportError when a converter refused the network, with every artifact and reason."""
    tried = list(outcomes)
    refused = [outcome for outcome in tried if outcome.refused]
    if refused:
        going_on = "pass --keep-going to go on without them; what is finished stays and is not run again"
        fix = going_on if any(outcome.artifact for outcome in tried) else REWRITE
        raise ExportError(explain("export", expected="every artifact", got=say_reasons(refused), fix=fix))


def say_reasons(outcomes: Iterable[Outcome]) -> str:
    """Say why artifacts were not made, or are not shipped; those of one reason together."""
    joined: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.reason:
            joined.setdefault(outcome.reason, []).append(outcome.job.label)
    return "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in joined.items())


def _key_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.key.json")


def _note_key(artifact: Artifact, key: str) -> None:
    write_json(_key_file(artifact.path), {"key": key, "sha256": artifact.sha256})


def _made_before(path: Path, key: str) -> Artifact | None:
    """Return the artifact at ``path`` when it was made by a job of this key and is whole."""
    import json

    try:
        note = json.loads(_key_file(path).read_text(encoding="utf-8"))
        if note.get("key") != key:
            return None
        artifact = Artifact.load(path)
    except (OSError, ValueError, AttributeError, CheckpointError):
        return None
    return artifact if artifact.sha256 == note.get("sha256") else None


def remove_strangers(folder: Path, jobs: Iterable[Job], *, keep: Iterable[str] = ()) -> None:
    """Remove what earlier runs left in ``folder``, no job makes any more, and ``keep`` does not name.

    What a target writes beside an artifact starts with the artifact's name, or with its stem and ``.ort``.
    """
    mine = [job.path for job in jobs]
    starts = tuple(name for path in mine for name in (path.name, f".{path.name}", f"{path.stem}.ort"))
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in set(keep) and not path.name.startswith(starts):
            remove(path)


def move(artifact: Artifact, folder: Path) -> Artifact:
    """Move an artifact, its sidecar and its companions into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    name, home = artifact.path.name, artifact.path.parent
    beside = [path for path in companions(artifact.path) if path.exists()]
    for path in {*home.glob(f"{name}*"), *home.glob(f".{name}*"), *beside}:
        remove(folder / path.name)
        path.replace(folder / path.name)
    return replace(artifact, path=folder / name)


def move_back(source: Path, folder: Path) -> None:
    """Move everything of ``source`` that ``folder`` lacks into it, and remove ``source``."""
    for path in list(source.iterdir()) if source.is_dir() else ():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / path.name).exists():
            path.replace(folder / path.name)
    remove(source)
