"""What networks cost at full width before anybody trains them: parameters, MACs, milliseconds by target and precision.

A network is chosen before it is trained, and its time does not depend on its weights. So each one is built with random
weights (or those of ``weights``), exported to every target and precision, and timed: the engines of one network
interleaved, on one photo, with a batch of one. INT8 is calibrated on a few photos, so that the engine computes what
an engine of trained weights would.

Smoothness needs trained weights of a task whose output is a picture of its own, such as an overlay: the mean absolute
difference of neighbouring pixels of the output over that of the target. 1 is as smooth as the target, above is rougher.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.contest import Contestant, open_contestants, say
from benchmarks.cost import cost
from benchmarks.machine import Interference, pinned
from benchmarks.networks_table import NetworkRow, write_networks
from benchmarks.run import default_threads, feed
from benchmarks.settings import Settings
from benchmarks.timing import Measurement, measure_interleaved
from benchmarks.zoo_table import Engine
from export.quantization import save_calibrated
from export.registry import get_target
from models.artifact import Artifact, load_network, save_network
from models.errors import ConfigError, MissingExtraError, RunFolderError, UnsupportedError, explain
from models.photos import centre_crop, to_batch
from models.progress import NULL_PROGRESS, Progress
from models.registry import create_model, get_spec, get_task
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.photos import PhotoSet
    from models.spec import ModelSpec
    from models.tasks.base import Task

_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8)
_CALIBRATION_PHOTOS = 4
#: Standard deviation of what replaces parameters that start at zero: a neutral network would quantize to nothing.
_NOISE = 0.02


def measure_networks(
    names: Sequence[str],
    photos: PhotoSet,
    out: Path,
    *,
    targets: Sequence[str],
    settings: Settings,
    weights: Path | None = None,
    progress: Progress = NULL_PROGRESS,
) -> list[NetworkRow]:
    """Export and time every network, and write ``out/networks.json`` and ``out/networks.md`` after each.

    Args:
        names: Registry names.
        photos: For calibration, and for the smoothness of trained networks.
        out: Folder; the artifacts stay in ``out/NAME``.
        targets: Names of targets.
        settings: Size, threads, calls.
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
    rows = []
    with progress.track("Networks", total=len(names)) as bar:
        for name in names:
            bar.advance(0, model=name)
            rows.append(_measure(name, photos, out, targets, settings, weights))
            write_networks(out, rows, settings)
            bar.advance(1)
    return rows


def _measure(
    name: str, photos: PhotoSet, out: Path, targets: Sequence[str], settings: Settings, weights: Path | None
) -> NetworkRow:
    spec, folder = get_spec(name), out / name.rpartition(":")[2]
    task = get_task(spec.task)
    shown = [photos.load(index) for index in range(min(_CALIBRATION_PHOTOS, len(photos)))]
    size = task.photo_size(settings.input_size)
    rgb = to_batch([centre_crop(photo, *size) for photo in shown])
    trained = next(iter(sorted(weights.rglob(f"{name}.safetensors"))), None) if weights is not None else None
    _make(folder)
    network = _save_network(spec, folder, trained)
    net = load_network(network)
    inputs, truth = task.prepare(rgb)
    spent = cost(net, (1, int(inputs.shape[1]), *settings.input_size))
    calibrated = save_calibrated(network, folder, inputs)
    made, refused = _export_all(network, calibrated, targets, folder, settings)
    engines, eager, busy = _time([network, *made], task, centre_crop(shown[0], *size), settings)
    engines += refused
    order = {(target, str(kind)): place for place, (target, kind) in enumerate(_pairs(targets))}
    return NetworkRow(
        model=name,
        params_m=spent.params_m,
        gmacs=spent.gmacs,
        height=settings.input_size[0],
        width=settings.input_size[1],
        torch_ms=eager,
        engines=tuple(sorted(engines, key=lambda engine: order[engine.target, engine.precision])),
        smoothness=_smoothness(net, inputs, truth) if trained is not None else None,
        interference=busy,
    )


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


def _pairs(targets: Sequence[str]) -> list[tuple[str, Precision]]:
    return [(name, kind) for name in targets for kind in _PRECISIONS if kind in get_target(name).precisions]


def _export_all(
    network: Artifact, calibrated: Artifact, targets: Sequence[str], folder: Path, settings: Settings
) -> tuple[list[Artifact], list[Engine]]:
    """Export to every target and precision; return what was made, and what was not with the reason."""
    made, refused = [], []
    for name, kind in _pairs(targets):
        row, source = get_target(name), calibrated if kind is Precision.INT8 else network
        path = folder / f"{network.path.stem}-{kind}{row.suffix}"
        try:
            made.append(row.load().export(source, path, precision=kind, input_size=settings.input_size))
        except (MissingExtraError, UnsupportedError) as error:
            refused.append(Engine(name, str(kind), "unsupported", reason=say(error)))
        except Exception as error:  # a third-party converter may raise anything; the other targets go on
            refused.append(Engine(name, str(kind), "failed", reason=say(error)))
    return made, refused


def _time(
    artifacts: Sequence[Artifact], task: Task, pixels: NDArray[np.uint8], settings: Settings
) -> tuple[list[Engine], float | None, float | None]:
    """Time the first artifact, which is PyTorch's, and the others; return (engines, PyTorch ms, interference)."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        cpus = stack.enter_context(pinned(settings.threads))
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(settings.threads or before)
        size = settings.input_size
        contest = open_contestants(artifacts, stack, threads=settings.threads, input_size=size, probes=False)
        able = {c.name: partial(c.infer, feed(c.subject, task, pixels)) for c in contest if c.can_be_timed}
        with Interference(cpus) as others:
            times = measure_interleaved(
                able,
                warmup=settings.warmup,
                iterations=settings.iterations,
                max_seconds=settings.max_seconds,
                seed=settings.seed,
            )
    eager = times.get(contest[0].name)
    engines = [_engine(contestant, times.get(contestant.name)) for contestant in contest[1:]]
    return engines, None if eager is None else eager.p50_ms, others.share


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


@torch.inference_mode()
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
