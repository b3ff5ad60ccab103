"""Sensitivity in LPIPS, and the search for the layers to keep in float."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.artifact import Artifact, load_network
from models.photos import PhotoSet, centre_crop, to_batch
from models.registry import get_task
from optimize.sensitivity import LayerSensitivity, Scorer, by_worth, choose_float_layers, score_layers
from optimize.simulation import SimulatedInt8

ORDER = ("a", "b", "c", "d", "e", "f")
SHARES = dict.fromkeys(ORDER, 0.1)


def row(layer: str, cost: float, share: float) -> LayerSensitivity:
    return LayerSensitivity(layer, 0.0, cost, share, 0.0, 1.0)


def test_every_layer_is_scored_and_int8_is_seen(
    tiny_student: Artifact, eval_photos: PhotoSet, random_lpips: Path
) -> None:
    task = get_task("colorize")
    rgb = to_batch([centre_crop(photo, 32, 32) for photo in eval_photos])
    simulation = SimulatedInt8(load_network(tiny_student), task.prepare(rgb)[0])
    scores = score_layers(Scorer(simulation, task, rgb, lpips_weights=random_lpips))
    assert [found.layer for found in scores] == list(simulation.layers)
    assert sum(found.macs_share for found in scores) == pytest.approx(1)
    assert all(found.lpips_to_float >= 0 for found in scores)
    assert max(found.lpips_to_float for found in scores) > 0
    assert scores[0].to_json()["precision"] == "int8"


def test_worth_is_lpips_for_time() -> None:
    scores = [row("large", 0.010, 0.9), row("small", 0.009, 0.05), row("harmless", 0.0, 0.05)]
    assert by_worth(scores) == ["small", "large", "harmless"]


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 6])
def test_the_fewest_layers_are_kept(needed: int) -> None:
    calls: list[int] = []

    def drop_of(kept: tuple[str, ...]) -> float:
        assert kept == ORDER[: len(kept)]
        calls.append(len(kept))
        return 0.01 - 0.001 * len(kept)

    choice = choose_float_layers(drop_of, ORDER, SHARES, aim=0.01 - 0.001 * needed + 1e-9, max_share=1.0)
    assert choice.layers == ORDER[:needed]
    assert choice.drop == pytest.approx(0.01 - 0.001 * needed)
    assert list(choice.tried) == [str(count) for count in sorted(calls)]
    assert len(calls) == len(set(calls)) <= 6


def test_the_share_in_float_is_bounded() -> None:
    choice = choose_float_layers(lambda kept: 1.0 - 0.1 * len(kept), ORDER, SHARES, aim=0.5, max_share=0.35)
    assert (choice.layers, choice.most) == (ORDER[:3], 3)
    assert choice.drop == pytest.approx(0.7), "the best that was tried is returned for the gate to judge"
    assert choice.tried == pytest.approx({"0": 1.0, "1": 0.9, "2": 0.8, "3": 0.7})


def test_nothing_helps() -> None:
    choice = choose_float_layers(lambda kept: 0.5 + 0.1 * len(kept), ORDER, SHARES, aim=0.1, max_share=1.0)
    assert (choice.layers, choice.drop) == ((), 0.5)


def test_what_is_left_out_in_training_only_is_no_noise(eval_photos: PhotoSet) -> None:
    """Also after a picture was rendered."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    rgb = to_batch([centre_crop(photo, 32, 32) for photo in eval_photos])
    scorer = Scorer(SimulatedInt8(net, rgb), get_task("image"), rgb)
    scorer.render(())
    assert scorer.noise(()) == 0.0


def test_no_search_with_gradients(tiny_student: Artifact, eval_photos: PhotoSet, random_lpips: Path) -> None:
    task = get_task("colorize")
    rgb = to_batch([centre_crop(photo, 32, 32) for photo in eval_photos])
    simulation = SimulatedInt8(load_network(tiny_student), task.prepare(rgb)[0])
    picture = Scorer(simulation, task, rgb, lpips_weights=random_lpips).render(simulation.layers)
    assert not picture.requires_grad
    assert torch.isfinite(picture).all()
