"""Quality on held-out photos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.metrics import lpips
from models import get_task
from models.photos import PhotoSet
from models.tasks.base import Task
from optimize.evaluate import evaluate, load_photos, lpips_all, render_all


class Oracle(nn.Module):
    """Answers with ``strength`` times the true chroma of the photos, batch by batch."""

    def __init__(self, truth: Tensor, strength: float) -> None:
        super().__init__()
        self.truth, self.strength, self.place = truth, strength, 0

    def forward(self, input: Tensor) -> Tensor:
        answer = self.truth[self.place : self.place + len(input)] * self.strength
        self.place += len(input)
        return answer


@pytest.fixture
def task() -> Task:
    return get_task("colorize")


@pytest.fixture
def rgb(eval_photos: PhotoSet) -> Tensor:
    return load_photos(eval_photos, (64, 64))


def test_photos_become_their_centres(eval_photos: PhotoSet) -> None:
    rgb = load_photos(eval_photos, (40, 40))
    assert rgb.shape == (2, 3, 40, 40)
    assert 0 <= float(rgb.min()) < float(rgb.max()) <= 1
    assert load_photos(eval_photos, (40, 40), limit=1).shape[0] == 1
    assert load_photos(eval_photos, (40, 40), limit=9).shape[0] == 2
    assert load_photos(eval_photos, (32, 40)).shape == (2, 3, 32, 40)


def test_a_perfect_network(task: Task, rgb: Tensor, random_lpips: Path) -> None:
    scores = evaluate(Oracle(task.prepare(rgb)[1], 1.0), task, rgb, lpips_weights=random_lpips)
    assert scores["lpips"] == pytest.approx(0, abs=1e-5)
    assert scores["lpips_ratio"] == pytest.approx(0, abs=1e-3)
    assert scores["colourfulness_ratio"] == pytest.approx(1, abs=1e-3)
    assert scores["psnr_db"] > 60


def test_doing_nothing_scores_the_floor(task: Task, rgb: Tensor, random_lpips: Path) -> None:
    scores = evaluate(Oracle(task.prepare(rgb)[1], 0.0), task, rgb, lpips_weights=random_lpips)
    assert scores["lpips"] == pytest.approx(scores["lpips_do_nothing"])
    assert scores["lpips_ratio"] == pytest.approx(1)
    assert scores["lpips"] > 0
    assert scores["colourfulness_ratio"] == pytest.approx(0, abs=0.01)


def test_half_the_chroma_lies_between(task: Task, rgb: Tensor, random_lpips: Path) -> None:
    scores = evaluate(Oracle(task.prepare(rgb)[1], 0.5), task, rgb, lpips_weights=random_lpips)
    assert 0.3 < scores["colourfulness_ratio"] < 0.7
    assert 0 < scores["lpips"] < scores["lpips_do_nothing"]


def test_render_all_batches_and_restores_the_mode(task: Task, rgb: Tensor) -> None:
    truth = task.prepare(rgb)[1]
    net = Oracle(truth, 1.0).train()
    out = render_all(net, task, rgb, batch_size=1)
    assert net.training
    torch.testing.assert_close(out, render_all(Oracle(truth, 1.0).eval(), task, rgb), rtol=0, atol=0)
    torch.testing.assert_close(out, rgb, rtol=0, atol=1e-4)


def test_lpips_in_batches_is_lpips(rgb: Tensor, random_lpips: Path) -> None:
    other = rgb.flip(0)
    got = lpips_all(rgb, other, net="lite", weights=random_lpips, batch_size=1)
    torch.testing.assert_close(got, lpips(rgb, other, net="lite", weights=random_lpips))
