"""Cost, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cost import cost
from models.errors import ConfigError, InputSizeError


def test_a_convolution() -> None:
    counted = cost(nn.Conv2d(3, 8, 3, padding=1, bias=True), (1, 3, 4, 5))
    assert counted.params_m == pytest.approx((8 * 3 * 9 + 8) / 1e6)
    assert counted.gmacs == pytest.approx(4 * 5 * 8 * 3 * 9 / 1e9)
    assert counted.not_counted == ()


def test_groups_and_strides() -> None:
    counted = cost(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), (2, 8, 6, 6))
    assert counted.params_m == pytest.approx(8 * 9 / 1e6)
    assert counted.gmacs == pytest.approx(2 * 3 * 3 * 8 * 9 / 1e9)


def test_a_transposed_convolution() -> None:
    counted = cost(nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (1, 4, 5, 5))
    assert counted.gmacs == pytest.approx(5 * 5 * 4 * 6 * 4 / 1e9)


class Functional(nn.Module):
    """Matrix product, linear layer and an upsampling without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        mixed = functional.linear(flat, self.weight) @ torch.ones(7, 4)
        image = mixed.transpose(1, 2).reshape(x.shape)
        return functional.interpolate(image, scale_factor=2.0, mode="nearest") + 1


def test_functional_calls_count_and_the_rest_is_listed() -> None:
    counted = cost(Functional(), (1, 4, 3, 3))
    assert counted.params_m == pytest.approx(28 / 1e6)
    assert counted.gmacs == pytest.approx((9 * 4 * 7 + 9 * 7 * 4) / 1e9)
    assert counted.not_counted == ("add (1 calls)", "upsample_nearest2d (1 calls)")


def test_the_network_stays_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = net[1].running_mean.clone()
    counted = cost(net, (1, 1, 4, 4))
    assert net.training
    assert torch.equal(net[1].running_mean, before)
    assert counted.params_m == pytest.approx(8 / 1e6)
    assert counted.not_counted == ("native_batch_norm (1 calls)",)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="expected N, C, H, W, all positive"):
        cost(nn.Conv2d(1, 1, 1), (1, 0, 4, 4))
    with pytest.raises(InputSizeError, match=r"got \(1, 2, 4, 4\).*; fix: pass the channels"):
        cost(nn.Conv2d(1, 1, 1), (1, 2, 4, 4))
