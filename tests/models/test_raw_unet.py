"""The student of raw: it starts as a bilinear demosaicing, and black has a slope; amplification: test_sid_unet.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d

from models import color
from models.raw_unet import bilinear_demosaic, raw_unet
from models.registry import create_model, get_spec, get_task

TINY: dict[str, Any] = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}


def test_the_first_weights_demosaic_bilinearly() -> None:
    """Ramps come out as they are, and a single green pixel as four halves around it, in each colour its gain."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    ramps = torch.stack([rows + 2 * columns, 3 * rows - columns, columns - rows / 2])[None] / 100
    shown = demosaic(color.rgb_to_bayer(ramps), gains=(2.0, 1.0, 0.5))
    wanted = ramps * torch.tensor([2.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert torch.allclose(shown[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2], atol=1e-6)
    one = torch.zeros(1, 4, 3, 3)
    one[0, 1, 1, 1] = 1
    green = demosaic(one)[0, 1]
    assert green[2, 3] == 1
    assert [float(green[2 + y, 3 + x]) for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))] == [0.25] * 4
    assert float(green.sum()) == 2


def demosaic(packed: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Apply the first weights."""
    return torch.pixel_shuffle(torch.conv2d(packed, bilinear_demosaic(**kwargs), padding=1), 2)


def test_a_new_network_is_near_doing_nothing(photo: torch.Tensor) -> None:
    """Without what its U-Net adds, over the noise; a square root is not quite the curve of sRGB."""
    task = get_task("low_light")
    net = create_model("raw_unet")
    torch.nn.init.zeros_(net.head.weight)
    net.eval()
    for ratio in (20.0, 300.0):
        inputs, _ = task.prepare_at(photo, [ratio])
        with torch.no_grad():
            output = task.render(inputs, net(inputs))
        assert avg_pool2d(output - task.baseline(inputs), 8).abs().mean() < 0.06


def test_black_has_a_finite_slope() -> None:
    net = raw_unet(**TINY)
    raw = torch.zeros(2, 5, 16, 16, requires_grad=True)
    net(raw).square().sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_it_is_the_student_of_the_original() -> None:
    assert get_spec("sid_unet").student == "raw_unet"
    assert get_spec("raw_unet").controls == get_spec("sid_unet").controls


@pytest.fixture
def photo() -> torch.Tensor:
    """A smooth picture (1, 3, 128, 128), colours apart."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 128), indexing="ij")
    return torch.stack([rows, columns, 1 - rows])[None]
