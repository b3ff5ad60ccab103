"""Narrow strided 1x1 convolutions: the same numbers, and gradients that stay inside of their memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from optimize.strided import slice_strided


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 1, 2),
        nn.Conv2d(3, 8, 1, (1, 2), bias=False),
        nn.Conv2d(32, 16, 1, 2, groups=4, padding="valid"),
    ],
    ids=["square", "one side", "groups"],
)
def test_values_and_gradients_are_those_of_the_layer(layer: nn.Conv2d) -> None:
    """As stored in training, with channels last: without the slice this ends the process, or is wrong."""
    picture = torch.rand(4, layer.in_channels, 64, 63)
    reference = copy.deepcopy(layer).double()
    wanted = reference(picture.double())
    wanted.square().sum().backward()
    net = nn.Sequential(copy.deepcopy(layer)).to(memory_format=torch.channels_last)
    slice_strided(net)
    slice_strided(net)
    for _ in range(3):
        net.zero_grad()
        out = net(picture.contiguous(memory_format=torch.channels_last).requires_grad_())
        out.square().sum().backward()
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[0].weight.grad.double(), reference.weight.grad, rtol=1e-4, atol=1e-3)
    assert net[0].stride == (1, 1)
    torch.testing.assert_close(net[0](input=picture).double(), wanted, rtol=1e-4, atol=1e-5)


def test_other_layers_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(16, 8, 1, 2), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, 2, 1))
    slice_strided(net)
    assert [layer.stride for layer in net] == [(2, 2), (2, 2), (1, 1), (2, 2)]
    assert not any(layer._forward_pre_hooks for layer in net)
