"""A task without a ground truth takes the teacher's answers for the target, in every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.artifact import save_network
from models.errors import ConfigError
from models.registry import create_model, get_task
from models.spec import TensorSpec
from models.tasks.image import Image
from optimize.evaluate import evaluate
from optimize.taught import check_truth, lacks_truth, taught


class Brighter(nn.Module):
    """Adds a tenth; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.add = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.add


def test_the_teacher_answers_what_has_no_truth_and_nothing_else() -> None:
    teacher = Brighter()
    task = taught(get_task("image"), teacher)
    rgb = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8
    inputs, target = task.prepare(rgb)
    assert torch.equal(inputs, rgb)
    assert torch.allclose(target, rgb + 0.1)
    assert not target.requires_grad
    assert teacher.calls == 1
    assert torch.equal(task.app_input(rgb), rgb)
    task.prepare(torch.cat([rgb, rgb], 1))
    assert teacher.calls == 1
    assert lacks_truth(task)
    assert not lacks_truth(get_task("colorize"))
    assert get_task("image").prepare(rgb)[1] is not target


def test_quality_is_the_distance_to_the_teacher() -> None:
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.8
    task = taught(get_task("image"), Brighter())
    same = evaluate(Brighter(), task, rgb)
    other = evaluate(nn.Identity(), task, rgb)
    assert same["lpips"] == pytest.approx(0, abs=1e-5)
    assert other["psnr_db"] == pytest.approx(20, abs=0.01)  # a tenth everywhere
    assert other["lpips"] == pytest.approx(other["lpips_do_nothing"])


def test_there_is_nothing_to_train_a_teacher_on_without_a_truth() -> None:
    with pytest.raises(ConfigError, match="training of task image: expected a ground truth, got photos alone"):
        check_truth(get_task("image"), torch.rand(1, 3, 8, 8))
    check_truth(get_task("image"), torch.rand(1, 6, 8, 8))


def test_an_image_student_gives_a_larger_picture() -> None:
    net = create_model("image_unet", widths=[4, 8], depths=[0, 1], upscale=2)
    rgb = torch.rand(1, 3, 32, 64)
    assert net(rgb).shape == (1, 3, 64, 128)
    net.head.weight.data.zero_()
    larger = nn.functional.interpolate(rgb, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(net(rgb), larger)
    with pytest.raises(ConfigError, match="upscale: expected 1 or more, got 0"):
        create_model("image_unet", upscale=0)


def test_a_task_of_larger_pictures_enlarges_to_do_nothing() -> None:
    class Double(Image):
        outputs = (TensorSpec("output", ("N", 3, "2H", "2W"), value_range=(0.0, 1.0)),)

    rgb = torch.rand(1, 3, 8, 16)
    assert Double().baseline(rgb).shape == (1, 3, 16, 32)
    assert Image().baseline(rgb) is rgb
    assert [TensorSpec("x", ("N", 3, *sides)).upscale for sides in (("H", "W"), ("4H", "4W"), (64, 64))] == [1, 4, 1]


def test_an_image_student_saves_and_reloads(tmp_path: Path) -> None:
    kwargs = {"widths": [4, 8], "depths": [0, 1], "reduction": 2}
    net = create_model("image_unet", **kwargs)
    saved = save_network(net, tmp_path / "s.safetensors", model="image_unet", task="image", model_kwargs=kwargs)
    rgb = torch.rand(1, 3, 32, 32)
    assert saved.model == "image_unet"
    assert net(rgb).shape == rgb.shape
    net.head.weight.data.zero_()
    net.head.bias.data.zero_()
    assert torch.equal(net(rgb), rgb)  # residual: predicting nothing changes nothing
    assert not create_model("image_unet", in_channels=1, out_channels=2, **kwargs).residual
    with pytest.raises(ConfigError, match="residual: expected as many channels in as out, got 1 in and 2 out"):
        create_model("image_unet", in_channels=1, out_channels=2, residual=True, **kwargs)
