"""Quality of many contestants on the same photos, streamed: every photo is loaded once and shown to all of them."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import metrics
from benchmarks.subject import Subject
from models.errors import DataError, ExportError, PareError, explain, unforeseen
from models.photos import PhotoSet, centre_crop, to_batch
from models.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from models.tasks.base import Metric, Task

TRUTH_METRICS: Mapping[str, str] = {
    "psnr_db": "psnr",
    "ssim": "ssim",
    "ms_ssim": "ms_ssim",
    "delta_e": "delta_e_2000",
}
BASELINE = "do-nothing"
NO_TRUTH = "the task has no ground truth; quality is measured against what the teacher renders"
_OUTLIER = 1.2


@dataclass(frozen=True)
class Photos:
    """Photos at one size, loaded on use.

    Attributes:
        names: One a photo.
        height: Pixels.
        width: Pixels.
        fingerprint: Which photos.
        source: A PhotoSet, or an array (N, H, W, 3) uint8.
    """

    names: tuple[str, ...]
    height: int
    width: int
    fingerprint: str
    source: Any

    @classmethod
    def of(cls, photos: PhotoSet | NDArray[np.uint8] | Tensor, size: tuple[int, int], *, limit: int | None) -> Photos:
        """Take a PhotoSet, an array (N, H, W, 3) uint8, or a tensor (N, 3, H, W) in [0, 1].

        Raises:
            DataError: No photo, or an array of another shape or type.
        """
        if isinstance(photos, PhotoSet):
            chosen = photos if limit is None or limit >= len(photos) else photos.sample(limit)
            return cls(tuple(chosen.names), *size, chosen.fingerprint, chosen)
        if isinstance(photos, Tensor):
            photos = (photos.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        if photos.ndim != 4 or photos.shape[-1] != 3 or photos.dtype != np.uint8 or not len(photos):
            got, fix = f"{photos.dtype} {photos.shape}", "pass a PhotoSet, or stack RGB photos"
            raise DataError(explain("photos", expected="uint8 (N, H, W, 3), N >= 1", got=got, fix=fix))
        photos = photos[:limit]
        digest = hashlib.sha256(np.ascontiguousarray(photos).tobytes()).hexdigest()[:16]
        return cls(tuple(f"photo {index}" for index in range(len(photos))), *size, digest, photos)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return photo ``index`` as (height, width, 3) uint8, resized to cover and cut at the centre."""
        rgb = self.source.load(index) if isinstance(self.source, PhotoSet) else self.source[index]
        if rgb.shape[:2] != (self.height, self.width):
            rgb = centre_crop(rgb, self.height, self.width)
        return rgb


@dataclass
class Scores:
    """Values of one contestant, one entry a photo.

    Attributes:
        values: Metric -> one value a photo.
        infer_ms: Time of one call for each photo (the best of three where it stands out); compares photos only.
        missing: Metric -> why it could not be computed.
        error: What stopped it, or None.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    infer_ms: list[float] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    error: BaseException | None = None

    def add(self, name: str, values: Tensor) -> None:
        """Append one value a photo."""
        self.values.setdefault(name, []).extend(values.double().cpu().tolist())

    @property
    def distances(self) -> list[float]:
        """LPIPS to the ground truth of each photo; where the task has none, to what the teacher renders."""
        return self.values.get("lpips") or self.values.get("lpips_vs_teacher", [])

    def mean(self, name: str) -> float | None:
        """Return the mean over photos, or None where it was not computed or is not finite."""
        values = self.values.get(name, [])
        if not values or self.error is not None:
            return None
        mean = float(np.mean(values))
        return mean if np.isfinite(mean) else None


class Judge:
    """Scores pictures with one LPIPS net.

    Args:
        lpips_net: ``lite``, ``squeeze``, ``alex`` or ``vgg``.
        lpips_weights: Where the official weights are.
        own: Metrics of the task's own, by name.
    """

    def __init__(
        self, lpips_net: str = "lite", lpips_weights: Path | None = None, own: Mapping[str, Metric] | None = None
    ) -> None:
        self.net, self.weights, self.own = lpips_net, lpips_weights, dict(own or {})

    def distance(self, preds: Tensor, target: Tensor) -> Tensor:
        """LPIPS (N,) of RGB (N, 3, H, W) in [0, 1]."""
        return metrics.lpips(preds, target, net=self.net, weights=self.weights)

    def score(self, scores: Scores, preds: Tensor, truth: Tensor | None, teacher: Tensor | None) -> None:
        """Add the values of pictures (N, 3, H, W) to ``scores``; without a truth, all are to the teacher's picture."""
        if truth is None:
            scores.missing["lpips"] = NO_TRUTH
        else:
            scores.add("lpips", self.distance(preds, truth))
        if teacher is not None:
            scores.add("lpips_vs_teacher", self.distance(preds, teacher))
        truth = teacher if truth is None else truth
        if truth is None:
            return
        for column, name in TRUTH_METRICS.items():
            if column in scores.missing:
                continue
            try:
                scores.add(column, getattr(metrics, name)(preds, truth))
            except PareError as error:  # MS-SSIM of small photos
                scores.missing[column] = str(error).removeprefix(f"{name}: ")
        for name, metric in self.own.items():
            try:
                scores.add(name, metric(preds, truth))
            except Exception as error:  # code of the user's may raise anything
                scores.missing[name] = unforeseen(error)
        for column, image in (("colourfulness", preds), ("colourfulness_of_truth", truth)):
            scores.add(column, (image.amax(dim=1) - image.amin(dim=1)).mean(dim=(1, 2)))


@torch.no_grad()
def evaluate(
    contestants: Mapping[str, Subject],
    task: Task,
    photos: Photos,
    judge: Judge,
    *,
    teacher: str | None,
    progress: Progress = NULL_PROGRESS,
) -> dict[str, Scores]:
    """Show every photo to every contestant and to the do-nothing baseline.

    Args:
        contestants: By name.
        task: Makes inputs and renders outputs; its target, rendered, is the ground truth where it has one.
        photos: What they are judged on.
        judge: Scores.
        teacher: Which contestant is the teacher; None: nothing is compared with a teacher.
        progress: Where to report.

    Returns:
        Name -> scores, ``BASELINE`` among them. A contestant that raised has ``error`` and no means.
    """
    scores = {name: Scores() for name in (*contestants, BASELINE)}
    order: Sequence[str] = sorted(contestants, key=lambda name: name != teacher)
    with progress.track("Measuring quality", total=len(photos) * len(scores)) as bar:
        for index in range(len(photos)):
            photo = to_batch([photos.load(index)])
            inputs, target = task.prepare(photo)
            truth = task.truth(inputs, target) if task.has_truth(photo) else None
            reference: Tensor | None = None
            for name in order:
                picture = _try(scores[name], task, photo, inputs, contestants[name])
                if picture is not None:
                    reference = picture if name == teacher else reference
                    judge.score(scores[name], picture, truth, reference)
                bar.advance()
            judge.score(scores[BASELINE], task.render(inputs, task.baseline(inputs)), truth, reference)
            bar.advance()
    return scores


def _try(scores: Scores, task: Task, photo: Tensor, inputs: Tensor, subject: Subject) -> Tensor | None:
    """Render one photo; None where this contestant fails or has failed, which is written down."""
    if scores.error is not None:
        return None
    try:
        picture, spent = subject.render(task, photo, inputs)
        if not bool(torch.isfinite(picture).all()):
            fix = "export it in a higher precision: FP16 overflows, or its INT8 ranges are wrong"
            raise ExportError(explain("output", expected="finite pixels", got="NaN or infinity", fix=fix))
    except Exception as error:  # a third-party runtime may raise anything; the others go on
        scores.error = error
        return None
    scores.infer_ms.append(_without_outlier(scores.infer_ms, spent, lambda: subject.render(task, photo, inputs)[1]))
    return picture


def _without_outlier(known: Sequence[float], spent: float, again: Callable[[], float]) -> float:
    """Call again, at most twice, when a call took much longer than those before: the photo, or the machine?"""
    for _ in range(2):
        if not known or spent < _OUTLIER * statistics.median(known):
            break
        spent = min(spent, again())
    return spent
