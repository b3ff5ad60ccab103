"""Tiles: weights, borders, seams, sizes, and the receptive field that the overlap comes from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.receptive_field import ReceptiveField, describe, field_of, overlap_for, receptive_field
from export.tiling import Tiling, choose_tiling, fades, measure_seams, run_tiled, starts
from models.artifact import save_network
from models.errors import ConfigError, ExportError
from models.registry import create_model
from models.spec import SizeRequirements

ONE_SIZE = """
from torch import nn


class OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        assert x.shape[2] == 96
        return self.conv(x)
"""


def local_net(depth: int = 3) -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(depth - 2):
        layers += [nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)).eval()


def call(net: nn.Module):
    def infer(tile: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(tile)).numpy()

    return infer


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((1, channels, height, width), dtype=np.float32)


@pytest.mark.parametrize(("length", "tile", "overlap", "stride"), [(300, 64, 16, 1), (96, 64, 32, 16), (65, 64, 8, 1)])
def test_weights_sum_to_one_everywhere_and_only_fade_inside(length, tile, overlap, stride) -> None:
    begins = starts(length, tile, overlap, stride)
    assert begins[0] == 0
    assert begins[-1] == length - tile
    assert all(a + tile - b >= overlap for a, b in pairwise(begins))
    assert all(begin % stride == 0 for begin in begins)
    weights = fades(length, tile, begins)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-12)
    assert weights.min() >= 0
    assert weights[0, 0] == 1
    assert weights[-1, -1] == 1


def test_the_fade_is_a_hann_window() -> None:
    begins = starts(96, 64, 32, 1)
    first = fades(96, 64, begins)[0]
    place = np.arange(32) + 0.5
    np.testing.assert_allclose(first[32:64], 0.5 + 0.5 * np.cos(np.pi * place / 32), atol=1e-12)


@pytest.mark.parametrize("size", [(96, 130), (64, 64), (70, 33)])
def test_a_pointwise_network_comes_out_exactly_borders_included(size: tuple[int, int]) -> None:
    image = photo(*size)
    out = run_tiled(image, lambda tile: tile * 2 - 1, Tiling((64, 64), 24, 8))
    assert out.shape == image.shape
    np.testing.assert_allclose(out, image * 2 - 1, rtol=0, atol=1e-6)


def test_enough_overlap_gives_the_untiled_answer() -> None:
    rows, columns = np.mgrid[0:150, 0:201].astype(np.float32) / 200
    net, image = local_net(), np.stack([rows, columns, rows * columns])[None]
    with torch.inference_mode():
        whole = net(torch.from_numpy(image)).numpy()
    tiled = run_tiled(image, call(net), Tiling((64, 64), 32))
    found = measure_seams(tiled, whole, Tiling((64, 64), 32))
    assert found.seam == pytest.approx(1, abs=0.02)
    assert found.mean_abs < 1e-3
    butted = run_tiled(image, call(net), Tiling((64, 64), 0))
    bad = measure_seams(butted, whole, Tiling((64, 64), 0))
    assert bad.seam > found.seam + 0.02
    assert bad.max_abs > 3 * found.max_abs
    np.testing.assert_allclose(tiled[..., 0, :], whole[..., 0, :], rtol=0, atol=0.02 * float(np.ptp(whole)))


def test_seams_worked_by_hand() -> None:
    """A ramp of step 1 with a jump of 4 at column 8, where the second tile begins."""
    untiled = np.tile(np.arange(16, dtype=np.float32), (16, 1))[None, None]
    tiled = untiled.copy()
    tiled[..., 8:] += 3
    found = measure_seams(tiled, untiled, Tiling((16, 8), 0))
    assert found.border_step == pytest.approx(4)
    assert found.interior_step == pytest.approx(14 * 16 / (14 * 16 + 15 * 16))
    assert found.seam == pytest.approx(4)
    assert (found.max_abs, found.mean_abs) == (3, 1.5)


def test_an_output_of_twice_the_size() -> None:
    image = photo(80, 50)
    out = run_tiled(image, lambda tile: tile.repeat(2, axis=2).repeat(2, axis=3), Tiling((32, 32), 8))
    np.testing.assert_allclose(out, image.repeat(2, axis=2).repeat(2, axis=3), rtol=0, atol=1e-6)


def test_an_output_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ExportError, match=r"output of a tile: expected \(1, C, 32, 32\).*got \(1, 3, 20, 32\)"):
        run_tiled(photo(32, 32), lambda tile: tile[:, :, :20], Tiling((32, 32), 8))


def test_tilings_are_checked_and_chosen_from_the_size_requirements() -> None:
    size = SizeRequirements(minimum=96, multiple_of=48)
    assert choose_tiling(size) == Tiling((528, 528), 64, 48)
    assert choose_tiling(size, overlap=150).tile == (624, 624)
    assert choose_tiling(size, tile=(96, 144)).overlap == 48
    with pytest.raises(ConfigError, match=r"an overlap of 0 to 32 \(half of a tile\), got 40; fix: use larger tiles"):
        Tiling((64, 64), 40)
    with pytest.raises(ConfigError, match=r"multiple of the stride, got tile 64x60, stride 16"):
        Tiling((64, 60), 8, 16)


@pytest.mark.parametrize("depth", [2, 5])
def test_the_reach_is_that_of_the_convolutions(depth: int) -> None:
    found = receptive_field(local_net(depth), 3, 64)
    assert found is not None
    assert found.reach == depth
    assert 0 < found.effective <= depth
    assert not found.is_whole


def test_global_networks_and_untrained_heads() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.mean(dim=(2, 3), keepdim=True)

    found = receptive_field(Mean(), 3, 32)
    assert found is not None
    assert found.is_whole
    net = local_net()
    nn.init.zeros_(net[-1].weight)
    assert receptive_field(net, 3, 32) is None


def test_a_network_of_one_size_has_no_field(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(ONE_SIZE, encoding="utf-8")
    model = f"{tmp_path / 'one.py'}:OneSize"
    net = create_model(model, task="image")
    assert field_of(save_network(net, tmp_path / "one.safetensors", model=model, task="image")) is None


def test_the_overlap_comes_from_the_field() -> None:
    field = ReceptiveField(reach=90, effective=50, measured_at=256, is_whole=False)
    assert overlap_for(None) == 64
    assert overlap_for(field) == 100
    said = describe(field, Tiling((128, 128), 64))
    assert "too small for the overlap of 100" in said["note"]
    assert said["tile"] == [128, 128]
    assert describe(field, Tiling((512, 512), 100))["note"] is None
    assert "not measured" in describe(None, Tiling((128, 128), 64))["note"]
