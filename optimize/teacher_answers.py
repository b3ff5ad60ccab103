"""The teacher's answers on fixed crops of the photos, computed once through the fastest runtime here and kept on disk.

A folder of the cache holds raw arrays (memory-mapped) and ``index.json``; it is named by everything that the answers
depend on, so that a changed teacher, photo or crop makes another folder. An interrupted computation goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from export.quiet import quiet
from export.readings import Readings
from models.artifact import Artifact, write_json
from models.errors import RunFolderError, UnsupportedError, explain, require
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.two_ends import Between, load_at_levels
from optimize.data import PhotoCrops, to_float

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.photos import PhotoSet

Predict = Callable[[Tensor], tuple[Tensor, Tensor | None]]
_SCHEMA = 2
_BATCH = 16
#: Seconds that a batch should not exceed by far: a slow teacher answers fewer crops at once.
_BATCH_SECONDS = 4.0
#: Crops that a teacher answers in any case.
_LEAST = 128


@dataclass(frozen=True)
class AnswerConfig:
    """Which crops the teacher answers.

    Attributes:
        size: Side of a crop, pixels.
        views: Crops of each photo.
        seed: Of the crops.
        min_area: Smallest share of the photo's central square.
        tone_jitter: Half-width of the random gamma, in log2.
        features: Keep the teacher's inner features too, for feature matching.
    """

    size: int
    views: int = 1
    seed: int = 0
    min_area: float = 0.35
    tone_jitter: float = 0.1
    features: bool = True


class WithFeature(nn.Module):
    """A network that also returns the output of its submodule ``name``: (output, feature)."""

    def __init__(self, net: nn.Module, name: str | None) -> None:
        super().__init__()
        self.net = net
        self._feature: Tensor | None = None
        if name is not None:
            net.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._feature = output

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) -> output, or (output, feature)."""
        output = self.net(input)
        return output if self._feature is None else (output, self._feature)


class Answers:
    """A dataset of (crop uint8 (3, S, S), output fp16 (C, S, S), feature fp16 (F, h, w) or empty).

    Randomly flipped where the task allows that and draws nothing from the content of a photo. Crops of pairs are
    (6, S, S), of raw pairs uint16 (5, S, S).

    Attributes:
        runtime: What computed the answers, for example ``openvino bf16``.
        epoch: Set by the training loop; changes the flips.
    """

    def __init__(self, folder: Path, *, may_flip: bool = True) -> None:
        self._may_flip = may_flip
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.folder, self.runtime, self.seed = folder, str(index["runtime"]), int(index["seed"])
        self.epoch = 0
        done = int(index["done"])
        self._arrays = {name: _open(folder, name, row, done) for name, row in index["arrays"].items()}

    def __len__(self) -> int:
        return len(self._arrays["rgb"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        flip = self._may_flip and np.random.default_rng((self.seed, self.epoch, index)).random() < 0.5
        rgb, output = self._item("rgb", index, flip), self._item("output", index, flip)
        feature = self._item("feature", index, flip) if "feature" in self._arrays else torch.empty(0)
        return rgb, output, feature

    def _item(self, name: str, index: int, flip: bool) -> Tensor:
        value = self._arrays[name][index]
        return torch.from_numpy((value[..., ::-1] if flip else value).copy())

    @property
    def feature_channels(self) -> int:
        """Channels of the kept feature; 0 when none was kept."""
        return int(self._arrays["feature"].shape[1]) if "feature" in self._arrays else 0


def _open(folder: Path, name: str, row: Any, done: int) -> NDArray[Any]:
    return np.memmap(folder / f"{name}.bin", dtype=row["dtype"], mode="r", shape=(done, *row["shape"][1:]))


def fastest_predict(artifact: Artifact, sample: Tensor, *, feature: str | None) -> tuple[str, Predict]:
    """Return the fastest runtime that answers like PyTorch does, and its name.

    OpenVINO (bf16 where the processor has it and the answers stay within half a visible step on average, else fp32)
    is tried against PyTorch eager on ``sample`` (N, C, S, S), as much of it as takes seconds, each timed once warm.
    """
    teacher = load_at_levels(artifact)
    one_by_one = isinstance(teacher, Between)  # with weights of its own for each image: no trace, no inner feature
    net = WithFeature(teacher, None if one_by_one else feature).eval()
    scale = get_task(artifact.task).output_scale

    def eager(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            answer = net(inputs)
        return answer if isinstance(answer, tuple) else (answer, None)

    if torch.cuda.is_available():
        net.cuda()
        return "torch cuda", lambda inputs: _to_cpu(eager(inputs.cuda()))
    sample = _batch(eager, sample)
    contestants: dict[str, Predict] = {"torch fp32": eager}
    if not one_by_one:
        with suppress(Exception):  # not installed, or an operator that it does not know: it has errors of its own
            model = _traced(net, sample)
            for precision in ("bf16", "f32"):
                contestants[f"openvino {precision}"] = _openvino_predict(model, sample, precision)
    reference = eager(sample)[0]
    seconds = {}
    for name, predict in contestants.items():
        try:
            drift = float((predict(sample)[0] - reference).abs().mean()) / scale
        except Exception:  # the same
            continue
        if drift > 0.5:
            continue
        seconds[name] = _seconds(predict, sample)
    best = min(seconds, key=lambda name: seconds[name])
    return best, contestants[best]


def _seconds(predict: Predict, sample: Tensor) -> float:
    """Return how long an image of ``sample`` takes, seconds."""
    start = time.perf_counter()
    predict(sample)
    return (time.perf_counter() - start) / len(sample)


def _batch(predict: Predict, sample: Tensor) -> Tensor:
    """Return as many images of ``sample`` as are answered in a few seconds."""
    return sample[: max(int(_BATCH_SECONDS / _seconds(predict, sample[:1])), 1)]


def _to_cpu(answer: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return answer[0].float().cpu(), None if answer[1] is None else answer[1].float().cpu()


def _traced(net: nn.Module, sample: Tensor) -> Any:
    """Return OpenVINO's model of ``net``, traced on one image, since some need gigabytes for that."""
    ov = require("openvino", "openvino")
    readings = Readings(net, (sample[:1],))
    readings.refuse()
    with torch.no_grad(), readings, quiet():
        return ov.convert_model(net, example_input=sample[:1])


def _openvino_predict(model: Any, sample: Tensor, precision: str) -> Predict:
    """Compile a traced ``model``; answer in batches where the trace allows it."""
    ov = require("openvino", "openvino")
    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "THROUGHPUT"}

    def at(batch: int) -> Any:
        model.reshape([batch, *sample.shape[1:]])
        return ov.Core().compile_model(model, "CPU", config)

    try:
        compiled, size = at(-1), len(sample)
        compiled(sample.numpy())
    except RuntimeError:  # the trace holds its batch
        compiled, size = at(1), 1

    def predict(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        answers = [compiled(part.numpy()) for part in inputs.split(size)]
        parts = [
            torch.cat([torch.from_numpy(np.array(answer[port])) for answer in answers]) for port in compiled.outputs
        ]
        return parts[0], parts[1] if len(parts) > 1 else None

    return predict


def compute_answers(
    artifact: Artifact,
    photos: PhotoSet,
    config: AnswerConfig,
    *,
    cache: Path,
    progress: Progress = NULL_PROGRESS,
    max_seconds: float | None = None,
) -> Answers:
    """Return the teacher's answers, from the cache where they are, else computed now (and cached).

    Args:
        artifact: The teacher, format ``torch``.
        photos: Photos to crop.
        config: Which crops.
        cache: Folder that holds the caches.
        progress: Where to report.
        max_seconds: Answer no more crops than the teacher manages in so long, but ``_LEAST``. The first ones are of
            different photos. None: all.

    Raises:
        RunFolderError: The disk is full.
    """
    from optimize.steps import is_main_process, wait_for_all

    key = json.dumps([_SCHEMA, artifact.sha256, photos.fingerprint, vars(config)], sort_keys=True)
    folder = cache / f"answers-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    total = len(photos) * config.views
    if is_main_process():
        try:
            _compute(artifact, photos, config, folder, total, progress, max_seconds)
        except OSError as error:
            fix = "free disk space, or choose another cache folder"
            raise RunFolderError(explain(f"writing {folder}", expected="room", got=error, fix=fix)) from error
    wait_for_all()
    task = get_task(artifact.task)
    return Answers(folder, may_flip=task.augmentation.horizontal_flip and not task.draws)


def _done(folder: Path) -> tuple[int, float]:
    """Return how many answers the cache holds, 0 when a file of it was lost or cut, and the seconds that one takes."""
    if not (folder / "index.json").exists():
        return 0, math.inf
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    done = int(index["done"])
    for name, row in index["arrays"].items():
        path = folder / f"{name}.bin"
        if not path.exists() or path.stat().st_size < done * _row_bytes(row):
            return 0, math.inf
    return done, float(index["seconds"])


def _affordable(total: int, seconds: float, max_seconds: float | None) -> int:
    """Return how many of ``total`` crops are answered where each takes ``seconds``."""
    return total if max_seconds is None else min(total, max(int(max_seconds / seconds), _LEAST))


def _row_bytes(row: Any) -> int:
    return int(np.prod(row["shape"][1:])) * np.dtype(row["dtype"]).itemsize


def _compute(
    artifact: Artifact,
    photos: PhotoSet,
    config: AnswerConfig,
    folder: Path,
    total: int,
    progress: Progress,
    max_seconds: float | None,
) -> None:
    """Answer what is missing in ``folder``."""
    begin, seconds = _done(folder)
    if begin >= _affordable(total, seconds, max_seconds):
        return
    task = get_task(artifact.task)
    crops = PhotoCrops(
        photos,
        config.size,
        seed=config.seed,
        min_area=config.min_area,
        tone_jitter=config.tone_jitter,
        repeat=config.views,
        memory_mb=0 if config.views == 1 else 500,
        augmentation=task.augmentation,
    )
    first = to_float(torch.stack([crops[index % total] for index in range(min(_BATCH, total))]))
    feature = get_spec(artifact.model, task=artifact.task).feature if config.features else None
    inputs = task.inputs_of(first)
    runtime, predict = fastest_predict(artifact, inputs, feature=feature)
    made = get_spec(artifact.model, task=artifact.task).outputs[0]
    wanted = made.at(H=inputs.shape[2], W=inputs.shape[3]).shape[2:]
    arrays = _layout(predict(inputs[:1]), total, crops[0], wanted)
    inputs = _batch(predict, inputs)
    seconds = _seconds(predict, inputs)
    batch, count, stop = len(inputs), max(_affordable(total, seconds, max_seconds), begin), begin
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"runtime": runtime, "seed": config.seed, "arrays": arrays, "seconds": seconds}
    title = f"Teacher answers at {config.size}x{config.size} ({runtime})"
    try:
        with progress.track(title, total=count, completed=begin) as bar:
            for start in range(begin, count, batch):
                rgb = torch.stack([crops[i] for i in range(start, min(start + batch, count))])
                output, inner = predict(task.inputs_of(to_float(rgb)))
                answers = {"rgb": rgb, "output": output, "feature": inner}
                for name, row in arrays.items():
                    _write(folder / f"{name}.bin", row, start, answers[name])
                stop = start + len(rgb)
                bar.advance(len(rgb))
    finally:
        write_json(folder / "index.json", {**index, "done": stop})
    if count < total:
        progress.note(f"a slow teacher: it answered {count} of {total} crops; more where the training is longer")


def _write(path: Path, row: Any, start: int, values: Tensor | None) -> None:
    """Write rows from ``start`` on. Through a file, not a memory map, where a full disk would kill the process."""
    assert values is not None
    array = values.numpy()
    if array.dtype != row["dtype"]:
        array = array.clip(-6e4, 6e4).astype(row["dtype"])
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.seek(start * _row_bytes(row))
        stream.write(array.tobytes())


def _layout(
    answer: tuple[Tensor, Tensor | None], total: int, crop: Tensor, wanted: tuple[int | str, ...]
) -> dict[str, dict[str, Any]]:
    output, inner = answer
    if output.shape[2:] != wanted:
        fix = "say in the outputs of the task how large they are"
        got = f"{tuple(output.shape[2:])} for crops of {crop.shape[1]}"
        raise UnsupportedError(explain("teacher output", expected="x".join(map(str, wanted)), got=got, fix=fix))
    arrays: dict[str, dict[str, Any]] = {
        "rgb": {"dtype": str(crop.numpy().dtype), "shape": [total, *crop.shape]},
        "output": {"dtype": "float16", "shape": [total, *output.shape[1:]]},
    }
    if inner is not None:
        arrays["feature"] = {"dtype": "float16", "shape": [total, *inner.shape[1:]]}
    return arrays
