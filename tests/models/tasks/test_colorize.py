"""The colorization task: photo -> network values -> photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import color as reference

from models import get_task
from models.errors import ConfigError
from models.tasks.colorize import Colorize


@pytest.fixture(scope="module")
def task() -> Colorize:
    task = get_task("colorize")
    assert isinstance(task, Colorize)
    return task


def test_prepare_is_the_stated_normalization(task: Colorize) -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    inputs, target = task.prepare(red)
    lab = reference.rgb2lab(np.array([[[1.0, 0.0, 0.0]]]))[0, 0]
    assert inputs.shape == (1, 1, 2, 2)
    assert target.shape == (1, 2, 2, 2)
    np.testing.assert_allclose(inputs[0, :, 0, 0], lab[:1] / 100, atol=1e-4)
    np.testing.assert_allclose(target[0, :, 0, 0], lab[1:] / 255, atol=1e-4)


def test_tensors_stay_in_the_stated_ranges(task: Colorize) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T.reshape(1, 3, 2, 4)
    for values, spec in zip(task.prepare(corners), (task.inputs[0], task.outputs[0]), strict=True):
        assert spec.value_range is not None
        low, high = spec.value_range
        assert low - 1e-4 <= float(values.min())
        assert float(values.max()) <= high + 1e-4
        assert values.shape[1] == spec.shape[1]
        assert str(values.dtype) == f"torch.{spec.dtype}"


def test_rendering_the_target_gives_the_photo(task: Colorize) -> None:
    rgb = torch.rand(2, 3, 16, 24)
    inputs, target = task.prepare(rgb)
    torch.testing.assert_close(task.render(inputs, target), rgb, rtol=0, atol=1e-4)


def test_rendering_the_baseline_gives_grey(task: Colorize) -> None:
    inputs, _ = task.prepare(torch.rand(1, 3, 8, 8))
    grey = task.render(inputs, task.baseline(inputs))
    assert float((grey.amax(1) - grey.amin(1)).max()) < 1e-3
    lightness = reference.rgb2lab(grey[0].permute(1, 2, 0).double().numpy())[..., 0]
    np.testing.assert_allclose(lightness, inputs[0, 0] * 100, atol=0.01)


def test_half_precision_is_rendered_in_float(task: Colorize) -> None:
    inputs, target = task.prepare(torch.rand(1, 3, 8, 8).half())
    assert inputs.dtype == torch.float32
    assert task.render(inputs.half(), target.half()).dtype == torch.float32


def test_loss_weight_grows_with_the_rarity_of_a_colour(task: Colorize) -> None:
    ab = [[0.0, -7.0, 22.0, 0.0, 0.0, -120.0], [0.0, 0.0, 0.0, -32.0, 25.0, 90.0]]  # grey, green, ..., beyond the cap
    target = torch.tensor(ab).view(1, 2, 1, 6) / 255
    wanted = torch.tensor([0.5, 1.0, 1.0, 2.5, 1.0, 4.0]).view(1, 1, 1, 6)
    torch.testing.assert_close(task.loss_weight(target), wanted)


def test_photos_out_of_range_are_refused(task: Colorize) -> None:
    with pytest.raises(ConfigError, match=r"rgb: expected values in \[0, 1\], got values from 0 to 255; fix: divide"):
        task.prepare(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
