"""Crops that a teacher and its student take: as asked for, larger, or those of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.artifact import Artifact, save_network
from models.errors import UnsupportedError
from models.registry import create_model
from models.spec import TensorSpec
from optimize.crop_sizes import check_student, fitting, refusal
from optimize.loop import FitConfig, Phase
from optimize.stage import StageContext

NETWORKS = """
import torch
from torch import nn


class Picky(nn.Module):
    allowed = ()

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        assert x.shape[2] in self.allowed, f"{x.shape[2]} pixels"
        return self.conv(x)


class Any(Picky):
    allowed = range(999)


class Coarse(Picky):
    allowed = (64, 96, 128)


class One(Picky):
    allowed = (80,)
"""
FIT = FitConfig(phases=(Phase(40, 1, 4), Phase(64, 2, 6)))


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[[str], Artifact]:
    """A function that saves a teacher of the class of that name."""
    path = tmp_path / "picky.py"
    path.write_text(NETWORKS, encoding="utf-8")

    def make(name: str) -> Artifact:
        model = f"{path}:{name}"
        net = create_model(model, task="image")
        return save_network(net, tmp_path / f"{name}.safetensors", model=model, task="image")

    return make


@pytest.mark.parametrize(("name", "expected"), [("Any", [40, 64]), ("Coarse", [64, 64]), ("One", [80, 80])])
def test_crops_are_what_the_teacher_takes(
    teacher: Callable[[str], Artifact], context: StageContext, name: str, expected: list[int]
) -> None:
    found = fitting(FIT, teacher(name), nn.Identity(), replace(context, input_size=(80, 80)))
    assert [phase.size for phase in found.phases] == expected
    assert [(phase.epochs, phase.batch_size) for phase in found.phases] == [(1, 4), (2, 6)]


def test_without_a_common_size_it_is_said_who_refuses(
    teacher: Callable[[str], Artifact], context: StageContext
) -> None:
    with pytest.raises(UnsupportedError, match=r"crops of 40x40: expected an answer, got the teacher: 40 pixels; fix"):
        fitting(FIT, teacher("One"), nn.Identity(), context)
    with pytest.raises(UnsupportedError, match=r"got the student: output \(1, 12, 20, 20\) in place of \(1, 3, 40, 40"):
        fitting(FIT, teacher("Any"), nn.PixelUnshuffle(2), context)


def test_a_student_that_cannot_stand_in_is_refused_before_it_learns(
    teacher: Callable[[str], Artifact], context: StageContext
) -> None:
    made = teacher("Any")
    check_student(nn.Identity(), "same", made, context)
    message = (
        r"student down: expected an answer at 64x64, got output \(1, 3, 32, 32\) in place of \(1, 3, 64, 64\); fix"
    )
    with pytest.raises(UnsupportedError, match=message):
        check_student(nn.AvgPool2d(2), "down", made, context)
    wide = replace(context, input_size=(32, 60))
    with pytest.raises(
        UnsupportedError, match="student image_unet: expected an answer at 32x60, got The size of tensor"
    ):
        check_student(create_model("image_unet", widths=[4, 4, 4], depths=[0, 0, 0]), "image_unet", made, wide)


def test_a_network_is_left_in_the_mode_that_it_was_in() -> None:
    net, made = nn.Dropout(0.5).train(), TensorSpec("output", ("N", 3, "H", "W"))
    assert refusal(net, torch.rand(1, 3, 8, 8), made) is None
    assert net.training

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    said = refusal(Broken(), torch.rand(1, 3, 8, 8), made)
    assert said is not None
    assert said.startswith("ZeroDivisionError at test_crop_sizes.py:")
