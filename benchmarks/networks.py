"""What networks cost at full width before anybody trains them: parameters, MACs, milliseconds by target and precision.

A network is chosen before it is trained, and its time does not depend on its weights. So each one is built with random
weights (or those of ``weights``), exported to every target and precision, and timed on one photo with a batch of one:
the engines of one network interleaved, as many at a time as memory holds. INT8 is calibrated on a few photos, so that
the engine computes what an engine of trained weights would.

Smoothness needs trained weights of a task whose output is a picture of its own, such as an overlay: the mean absolute
difference of neighbouring pixels of the output over that of the target. 1 is as smooth as the target, above is rougher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.contest import Contestant, open_contestants, say
from benchmarks.cost import cost
from benchmarks.machine import Extremes, Interference, describe_machine, pinned
from benchmarks.networks_table import NetworkRow, write_networks
from benchmarks.run import default_threads, feed
from benchmarks.settings import Settings
from benchmarks.timing import Measurement, measure_interleaved
from benchmarks.zoo_table import Engine
from export.quantization import save_calibrated
from export.registry import get_target
from models.artifact import Artifact, load_network, save_network, sha256_of, write_json
from models.errors import ConfigError, MissingExtraError, PareError, RunFolderError, UnsupportedError, explain
from models.photos import centre_crop, to_batch
from models.progress import NULL_PROGRESS, Progress
from models.registry import MODELS, create_model, get_spec, get_task
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.photos import PhotoSet
    from models.spec import ModelSpec
    from models.tasks.base import Task

_ROW = "row.json"
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8)
_CALIBRATION_PHOTOS = 4
#: The next engine is opened while so many times the memory of the largest one is there.
_ROOM = 2.0
#: Standard deviation of what replaces parameters that start at zero: a neutral network would quantize to nothing.
_NOISE = 0.02


def measure_networks(
    names: Sequence[str],
    photos: PhotoSet,
    out: Path,
    *,
    targets: Sequence[str],
    settings: Settings,
    precisions: Sequence[Precision] = PRECISIONS,
    weights: Path | None = None,
    progress: Progress = NULL_PROGRESS,
) -> list[NetworkRow]:
    """Export and time every network, and write ``out/networks.json`` and ``out/networks.md`` after each.

    A network that is finished in ``out`` under the same settings is not measured again, and is in the table even where
    ``names`` leaves it out; files of one that was interrupted are not made again.

    Args:
        names: Registry names.
        photos: For calibration, and for the smoothness of trained networks.
        out: Folder; the artifacts stay in ``out/NAME``.
        targets: Names of targets.
        settings: Size, threads, calls.
        precisions: Of each target, as far as it has them.
        weights: Folder that holds ``NAME.safetensors`` somewhere below; networks without one stay untrained.
        progress: Where to report.

    Raises:
        ConfigError: No network.
        UnknownNameError: No such network or target.
        InputSizeError: A network cannot take the size.
        RunFolderError: The folder cannot be written.
    """
    if not names:
        raise ConfigError(explain("networks", expected="one or more names", got="none", fix="pass --models"))
    for name in names:
        get_spec(name).size.check(*settings.input_size)
    for target in targets:
        get_target(target)
    settings = replace(settings, threads=settings.threads or default_threads())
    there = sorted({path.parent.name for path in out.glob(f"*/{_ROW}")} & set(MODELS))
    pairs = [(target, kind) for target in targets for kind in precisions if kind in get_target(target).precisions]
    jobs = {name: _Job(get_spec(name), photos, out, tuple(pairs), settings, weights) for name in (*names, *there)}
    rows = {name: row for name, job in jobs.items() if (row := job.finished()) is not None}
    todo = [name for name in names if name not in rows]
    for name in names:
        if name in rows:
            progress.note(f"{name}: finished before, not measured again")
    with progress.track("Networks", total=len(names), completed=len(names) - len(todo)) as bar:
        for name in todo:
            bar.advance(0, model=name)
            rows[name] = _measure(jobs[name])
            write_networks(out, [rows[other] for other in jobs if other in rows], settings)
            bar.advance(1)
    table = [rows[name] for name in jobs if name in rows]
    write_networks(out, table, settings)
    return table


@dataclass(frozen=True)
class _Job:
    """One network, and everything that its row depends on."""

    spec: ModelSpec
    photos: PhotoSet
    out: Path
    pairs: tuple[tuple[str, Precision], ...]
    settings: Settings
    weights: Path | None

    @property
    def folder(self) -> Path:
        return self.out / self.spec.name.rpartition(":")[2]

    @property
    def trained(self) -> Path | None:
        """The file of trained weights, if there is one."""
        found = self.weights.rglob(f"{self.spec.name}.safetensors") if self.weights is not None else ()
        return next(iter(sorted(found)), None)

    def finished(self) -> NetworkRow | None:
        """Return the row of an earlier run of the same settings on this machine."""
        try:
            known = json.loads((self.folder / _ROW).read_text(encoding="utf-8"))
            return NetworkRow.from_json(known["row"]) if known["key"] == self._key() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, row: NetworkRow) -> None:
        """Keep the row."""
        write_json(self.folder / _ROW, {"key": self._key(), "row": asdict(row)})

    def _key(self) -> str:
        trained = None if (path := self.trained) is None else sha256_of(path)
        machine = describe_machine(threads=self.settings.threads).id
        content = [self.spec.name, self.settings.to_json(), self.pairs, trained, self.photos.fingerprint, machine]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _measure(job: _Job) -> NetworkRow:
    spec, folder, photos, settings, trained = job.spec, job.folder, job.photos, job.settings, job.trained
    task = get_task(spec.task)
    shown = [photos.load(index) for index in range(min(_CALIBRATION_PHOTOS, len(photos)))]
    size = task.photo_size(settings.input_size)
    rgb = to_batch([centre_crop(photo, *size) for photo in shown])
    _make(folder)
    network = _save_network(spec, folder, trained)
    net = load_network(network)
    inputs, truth = task.prepare(rgb)
    spent = cost(net, (1, int(inputs.shape[1]), *settings.input_size))
    calibrated = save_calibrated(network, folder, inputs)
    made, refused = _export_all(network, calibrated, job.pairs, folder, settings)
    timed = _time([network, *made], task, centre_crop(shown[0], *size), settings)
    order = {(target, str(kind)): place for place, (target, kind) in enumerate(job.pairs)}
    engines = [*refused, *(_engine(contestant, timed.times.get(contestant.name)) for contestant in timed.contest[1:])]
    eager = timed.times.get(timed.contest[0].name)
    row = NetworkRow(
        model=spec.name,
        params_m=spent.params_m,
        gmacs=spent.gmacs,
        height=settings.input_size[0],
        width=settings.input_size[1],
        torch_ms=None if eager is None else eager.p50_ms,
        engines=tuple(sorted(engines, key=lambda engine: order[engine.target, engine.precision])),
        smoothness=_smoothness(net, inputs, truth) if trained is not None else None,
        interference=max(timed.interference, default=None),
        groups=timed.groups,
    )
    job.finish(row)
    return row


def _save_network(spec: ModelSpec, folder: Path, trained: Path | None) -> Artifact:
    """Return the torch artifact of ``trained``, or of random weights, none of them zero."""
    if trained is not None:
        return Artifact.load(trained)
    torch.manual_seed(0)
    net = create_model(spec.name)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data.normal_(0, _NOISE)
    return save_network(net, folder / f"{spec.name.rpartition(':')[2]}.safetensors", model=spec.name, task=spec.task)


def _export_all(
    network: Artifact, calibrated: Artifact, pairs: Sequence[tuple[str, Precision]], folder: Path, settings: Settings
) -> tuple[list[Artifact], list[Engine]]:
    """Export to each target and precision; return what was made, and what was not with the reason."""
    made, refused = [], []
    for name, kind in pairs:
        row, source = get_target(name), calibrated if kind is Precision.INT8 else network
        path = folder / f"{network.path.stem}-{kind}{row.suffix}"
        if (known := _made_before(path, source, settings)) is not None:
            made.append(known)
            continue
        try:
            made.append(row.load().export(source, path, precision=kind, input_size=settings.input_size))
        except (MissingExtraError, UnsupportedError) as error:
            refused.append(Engine(name, str(kind), "unsupported", reason=say(error)))
        except Exception as error:  # a third-party converter may raise anything; the other targets go on
            refused.append(Engine(name, str(kind), "failed", reason=say(error)))
    return made, refused


def _made_before(path: Path, source: Artifact, settings: Settings) -> Artifact | None:
    """Return the artifact that an interrupted run exported from ``source``, if it is there."""
    try:
        known = Artifact.load(path)
        size = tuple(known.metadata["contract"]["input_size"])
    except (PareError, OSError, KeyError, TypeError):
        return None
    return known if known.parent_sha256 == source.sha256 and size == tuple(settings.input_size) else None


@dataclass
class _Timed:
    """What was measured, group by group."""

    contest: list[Contestant] = field(default_factory=list)
    times: dict[str, Measurement] = field(default_factory=dict)
    interference: list[float] = field(default_factory=list)
    groups: int = 0


def _time(artifacts: Sequence[Artifact], task: Task, pixels: NDArray[np.uint8], settings: Settings) -> _Timed:
    """Time the artifacts, the first of which is PyTorch's: as many at a time as memory holds."""
    timed, before = _Timed(), torch.get_num_threads()
    waiting = list(artifacts)
    while waiting:
        with ExitStack() as stack:
            cpus = stack.enter_context(pinned(settings.threads))
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(settings.threads or before)
            contest = _open_group(waiting, stack, task, pixels, settings)
            able = {c.name: partial(c.infer, feed(c.subject, task, pixels)) for c in contest if c.can_be_timed}
            with Interference(cpus) as others:
                timed.times |= measure_interleaved(
                    able,
                    warmup=settings.warmup,
                    iterations=settings.iterations,
                    max_seconds=settings.max_seconds,
                    seed=settings.seed,
                )
        timed.contest += contest
        timed.interference += [] if others.share is None else [others.share]
        timed.groups += 1
        for contestant in contest:
            contestant.runner = None  # closed
        del waiting[: len(contest)], able
    return timed


def _open_group(
    artifacts: Sequence[Artifact], stack: ExitStack, task: Task, pixels: NDArray[np.uint8], settings: Settings
) -> list[Contestant]:
    """Open the first of ``artifacts``, and more while there is room; each is called: that is when it takes memory."""
    contest: list[Contestant] = []
    largest = 0.0  # what one took while it was opened and called
    for artifact in artifacts:
        memory = Extremes(_free_bytes)
        free = memory.lowest
        if contest and free < _ROOM * largest:
            break
        with ExitStack() as own:
            with memory:
                (opened,) = open_contestants(
                    [artifact], own, threads=settings.threads, input_size=settings.input_size, probes=False
                )
                try:
                    if opened.can_be_timed:
                        opened.infer(feed(opened.subject, task, pixels))
                except Exception as error:  # a third-party runtime may raise anything; the other engines go on
                    opened.drop("failed", error)
            if contest and _free_bytes() < largest:
                break  # the others could not be called: it is opened again with the next group
            stack.enter_context(own.pop_all())
        contest.append(opened)
        largest = max(largest, free - memory.lowest)
    return contest


def _free_bytes() -> float:
    import psutil

    return float(psutil.virtual_memory().available)


def _engine(contestant: Contestant, times: Measurement | None) -> Engine:
    artifact = contestant.artifact
    return Engine(
        target=artifact.format,
        precision=str(artifact.precision),
        status=contestant.status,
        p50_ms=None if times is None else times.p50_ms,
        is_noisy=None if times is None else times.is_noisy,
        reason="; ".join(contestant.reasons.values()) if times is None else None,
    )


@torch.no_grad()
def _smoothness(net: nn.Module, inputs: Tensor, truth: Tensor) -> float | None:
    """Return the mean gradient of the output over that of the target; None where the target is flat."""
    output = torch.cat([net(one) for one in inputs.split(1)])
    wanted = _gradient(truth)
    return _gradient(output) / wanted if wanted > 0 else None


def _gradient(picture: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels of (N, C, H, W)."""
    return sum(float(picture.float().diff(dim=axis).abs().mean()) for axis in (2, 3))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "choose another --output"
        raise RunFolderError(explain(f"writing {folder}", expected="a writable folder", got=error, fix=fix)) from error
