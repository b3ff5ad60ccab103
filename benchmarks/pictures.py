"""Photos side by side: input, teacher, every artifact that looks different, ground truth where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality import Photos
from benchmarks.subject import Subject, to_uint8
from models.photos import to_batch
from models.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from models.tasks.base import Task

# Two pictures are shown as one when no pixel differs by more than this, of 255: nobody can see it.
_SAME_STEPS = 3
#: Label of what the task's do-nothing baseline renders, shown where it is not the input.
DO_NOTHING = "Do nothing"


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Attributes:
        label: Who made it, for people.
        image: (H, W, 3) uint8.
        lpips: To the ground truth, or to the teacher where there is none; None for the input and the truth.
        also: Labels of those whose pictures cannot be told from this one by eye, on any photo of the report.
    """

    label: str
    image: NDArray[np.uint8]
    lpips: float | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One photo as everybody renders it.

    Attributes:
        photo: Name.
        why: Why this photo is shown.
        tiles: Input first, then doing nothing where that is another picture, ground truth last where there is one.
    """

    photo: str
    why: str
    tiles: tuple[Tile, ...]


def choose_photos(lpips: Sequence[float], count: int) -> list[tuple[int, str]]:
    """Choose the worst photo, then others spread from the best to the worst.

    Args:
        lpips: One value a photo, of the artifact that matters most.
        count: How many.

    Returns:
        Index and reason of each, worst first; fewer than ``count`` where there are fewer photos.
    """
    order = sorted(range(len(lpips)), key=lambda index: lpips[index], reverse=True)
    if len(order) <= 1 or count <= 1:
        return [(index, "worst photo") for index in order[:count]]
    count = min(count, len(order))
    places = [round(step * (len(order) - 1) / (count - 1)) for step in range(count)]
    words = {0: "worst photo", len(order) - 1: "best photo"}
    return [(order[place], words.get(place, f"better than {100 * place // len(order)}%")) for place in places]


@torch.no_grad()
def take_pictures(
    contestants: Mapping[str, tuple[str, Subject, Sequence[float]]],
    task: Task,
    photos: Photos,
    chosen: Sequence[tuple[int, str]],
    *,
    judged_by: str,
    progress: Progress = NULL_PROGRESS,
) -> tuple[Picture, ...]:
    """Render the chosen photos once more with every contestant.

    Args:
        contestants: Name -> label, engine, LPIPS of each photo.
        task: Makes inputs and renders outputs.
        photos: All photos.
        chosen: Index and reason of those that are shown.
        judged_by: Label of the artifact whose LPIPS chose them.
        progress: Where to report.
    """
    shown: list[tuple[int, str, list[Tile], NDArray[np.uint8] | None, dict[str, NDArray[np.uint8]]]] = []
    with progress.track("Taking pictures", total=len(chosen) * len(contestants)) as bar:
        for index, why in chosen:
            photo = to_batch([photos.load(index)])
            inputs, target = task.prepare(photo)
            seen = Tile("Input", to_uint8(task.shown_input(inputs)))
            idle = Tile(DO_NOTHING, to_uint8(task.render(inputs, task.baseline(inputs))))
            truth = to_uint8(task.truth(inputs, target)) if task.has_truth(photo) else None
            images = {}
            for name, (_, subject, _) in contestants.items():
                images[name] = to_uint8(subject.render(task, photo, inputs)[0])
                bar.advance()
            shown.append((index, f"{why} of {judged_by}", [seen, idle], truth, images))
    groups = _look_alikes(list(contestants), [images for *_, images in shown])
    idle_is_input = all(_gap(seen.image, idle.image) <= _SAME_STEPS for _, _, (seen, idle), _, _ in shown)
    pictures = []
    for index, why, given, truth, images in shown:
        tiles = given[:1] if idle_is_input else list(given)
        for name, others in groups.items():
            label, _, lpips = contestants[name]
            also = tuple(contestants[other][0] for other in others)
            tiles.append(Tile(label, images[name], lpips[index], also))
        if truth is not None:
            tiles.append(Tile("Ground truth", truth))
        pictures.append(Picture(photos.names[index], why, tuple(tiles)))
    return tuple(pictures)


def _look_alikes(names: list[str], photos: list[dict[str, NDArray[np.uint8]]]) -> dict[str, list[str]]:
    """Group names whose images differ by no more than ``_SAME_STEPS`` on every photo: first of a group -> the rest."""
    groups: dict[str, list[str]] = {}
    for name in names:
        for first in groups:
            if all(_gap(images[first], images[name]) <= _SAME_STEPS for images in photos):
                groups[first].append(name)
                break
        else:
            groups[name] = []
    return groups


def _gap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """Return the largest difference of two pictures, of 255."""
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())
