"""Resizes as products with constants: the numbers of PyTorch, and packages of Core ML that compute them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from export.parity import parity
from export.registry import get_target
from export.resizes import ConstantResizes
from models.artifact import save_network
from models.registry import create_model
from models.spec import Precision

CASES: list[dict[str, Any]] = [
    {"scale_factor": 2, "mode": "bicubic"},
    {"scale_factor": 0.4, "mode": "bicubic", "align_corners": False},
    {"scale_factor": 1.7, "mode": "bicubic", "recompute_scale_factor": True},
    {"size": (24, 9), "mode": "bicubic", "align_corners": True},
    {"size": (1, 31), "mode": "bicubic", "align_corners": True},
    {"size": (7, 30), "mode": "bicubic", "antialias": True},
    {"scale_factor": (0.3, 2.0), "mode": "bilinear", "antialias": True},
    {"size": (5, 6), "mode": "bilinear", "antialias": True, "align_corners": True},
    {"scale_factor": 1.5, "mode": "nearest-exact"},
    {"size": 7, "mode": "nearest-exact"},
    {"size": (50, 27), "mode": "nearest-exact"},
]


def checked(x: Tensor, given: dict[str, Any]) -> str:
    """Check the numbers of a resize of ``x`` against PyTorch's, and return the graph of its trace."""
    wanted = functional.interpolate(x, **given)
    with ConstantResizes():
        found = functional.interpolate(x, **given)
        graph = torch.jit.trace(lambda values: functional.interpolate(values, **given), x).graph
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return str(graph)


@pytest.mark.parametrize("given", CASES, ids=str)
def test_the_numbers_are_those_of_pytorch(given: dict[str, Any]) -> None:
    graph = checked(torch.randn(2, 3, 13, 17), given)
    assert "interpolate" not in graph
    assert "upsample" not in graph


VOLUMES: list[dict[str, Any]] = [
    {"scale_factor": 2, "mode": "nearest"},
    {"scale_factor": (2.0, 1.0, 0.7), "mode": "nearest-exact"},
    {"size": (7, 9, 20), "mode": "trilinear"},
    {"size": 7, "mode": "trilinear", "align_corners": True},
    {"scale_factor": 1.7, "mode": "trilinear"},
    {"size": (2, 5, 6), "mode": "area"},
]


@pytest.mark.parametrize("given", VOLUMES, ids=str)
def test_volumes_are_resized_as_pictures(given: dict[str, Any]) -> None:
    assert "3d" not in checked(torch.randn(2, 3, 4, 10, 12), given)


@pytest.mark.parametrize("given", [{"mode": "nearest"}, {"mode": "bilinear"}, {"mode": "area"}], ids=str)
def test_what_every_engine_has_stays_a_resize(given: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 8, 8)
    with ConstantResizes():
        graph = torch.jit.trace(lambda picture: functional.interpolate(picture, size=(16, 16), **given), x).graph
    assert "matmul" not in str(graph)


FACTORY = """
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bicubic")
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        small = functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        small = functional.interpolate(small[:, :, None], size=(2, 16, 32), mode="trilinear").mean(2)
        exact = functional.interpolate(small, scale_factor=2, mode="nearest-exact")
        return self.last(self.up(self.down(x))) + exact
"""


def test_core_ml_takes_them(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    (tmp_path / "net.py").write_text(FACTORY)
    name = f"{tmp_path / 'net.py'}:Net"
    network = save_network(create_model(name, task="image"), tmp_path / "a.safetensors", model=name, task="image")
    export = get_target("coreml").load().export
    made = export(network, tmp_path / "a.mlpackage", precision=Precision.FP32, input_size=(32, 64))
    assert parity(network, made, threads=1).passed
    found = {item["operator"]: item["rewrite"] for item in made.metadata["screens"]["slow"]}
    assert found == {"bicubic, exact or antialiased resize": "applied"}
