"""The task of a user's own network: RGB in, RGB out, no ground truth but in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import ConfigError
from models.registry import get_spec, get_task


def test_photos_have_no_truth_and_pairs_do() -> None:
    task = get_task("image")
    rgb = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs, target = task.prepare(rgb)
    assert torch.equal(inputs, rgb)
    assert torch.equal(target, task.baseline(inputs))
    assert not task.has_truth(rgb)
    pair = torch.cat([rgb, 1 - rgb], dim=1)
    inputs, target = task.prepare(pair)
    assert task.has_truth(pair)
    assert torch.equal(inputs, rgb)
    assert torch.equal(task.truth(inputs, target), 1 - rgb)


def test_rendering_clips_and_other_ranges_are_refused() -> None:
    task = get_task("image")
    outputs = torch.tensor([-0.5, 0.25, 2.0]).view(1, 3, 1, 1)
    assert task.render(outputs, outputs).flatten().tolist() == [0.0, 0.25, 1.0]
    with pytest.raises(ConfigError, match=r"rgb: expected values in \[0, 1\], got values from 0 to 255"):
        task.prepare(torch.tensor([0.0, 255.0, 3.0]).view(1, 3, 1, 1))


def test_the_task_names_the_student_of_a_network_that_names_none() -> None:
    assert get_spec("torch.nn:Identity", task="image").student == "image_unet"
    assert get_spec("torch.nn:Identity", task="colorize").student == "chroma_unet"
    assert get_spec("image_unet").role == "student"


def test_the_task_file_of_the_documentation_does_what_it_says() -> None:
    text = (Path(__file__).parents[3] / "docs" / "your-own-network.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # the example of the page
    task = names["Signed"]()
    rgb = torch.rand(1, 3, 8, 8)
    inputs, _ = task.prepare(rgb)
    assert torch.allclose(inputs, rgb * 2 - 1)
    assert torch.allclose(task.render(inputs, inputs), rgb, atol=1e-6)
    assert not task.has_truth(rgb)
