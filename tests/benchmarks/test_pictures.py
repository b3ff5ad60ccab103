"""Pictures: which photos are shown, and who looks alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.pictures import choose_photos, take_pictures
from benchmarks.quality import Photos
from benchmarks.subject import Subject
from models.registry import get_task


def test_the_worst_first_then_spread_to_the_best() -> None:
    chosen = choose_photos([0.3, 0.1, 0.5, 0.2, 0.4], 3)
    assert chosen == [(2, "worst photo"), (0, "better than 40%"), (1, "best photo")]


def test_fewer_photos_than_asked_for() -> None:
    assert choose_photos([0.3, 0.1], 5) == [(0, "worst photo"), (1, "best photo")]
    assert choose_photos([0.3], 4) == [(0, "worst photo")]
    assert choose_photos([0.1, 0.3], 1) == [(1, "worst photo")]


def constant(value: float) -> Subject:
    """A network that paints everything in one chroma."""
    return Subject(lambda inputs: np.full((1, 2, *inputs.shape[2:]), value, np.float32))


def test_tiles_from_input_to_truth_and_look_alikes_once(photos: np.ndarray[Any, Any]) -> None:
    task = get_task("colorize")
    shown = Photos.of(photos, (64, 64), limit=None)
    contestants = {
        "t": ("Teacher", constant(0.0), [0.1, 0.2, 0.3]),
        "a": ("Same", constant(0.0005), [0.1, 0.2, 0.3]),
        "b": ("Other", constant(0.1), [0.4, 0.5, 0.6]),
    }
    (picture,) = take_pictures(contestants, task, shown, [(1, "worst photo")], judged_by="Other")
    assert picture.photo == "photo 1"
    assert picture.why == "worst photo of Other"
    assert [tile.label for tile in picture.tiles] == ["Input", "Teacher", "Other", "Ground truth"]
    assert [tile.lpips for tile in picture.tiles] == [None, 0.2, 0.5, None]
    assert picture.tiles[1].also == ("Same",)
    grey = picture.tiles[0].image.astype(int)
    assert np.abs(grey - grey.mean(-1, keepdims=True)).max() <= 1
    assert np.abs(picture.tiles[-1].image.astype(int) - photos[1]).max() <= 1
    assert torch.is_grad_enabled()


def test_doing_nothing_is_shown_where_it_is_not_the_input(photos: np.ndarray[Any, Any]) -> None:
    task = get_task("low_light")
    shown = Photos.of(photos, (64, 64), limit=1)
    contestants = {"t": ("Teacher", Subject(lambda inputs: np.full((1, 3, 64, 64), 0.5, np.float32)), [0.1])}
    (picture,) = take_pictures(contestants, task, shown, [(0, "worst photo")], judged_by="Teacher")
    assert [tile.label for tile in picture.tiles] == ["Input", "Do nothing", "Teacher", "Ground truth"]
    assert picture.tiles[0].image.mean() < 0.7 * picture.tiles[1].image.mean()
