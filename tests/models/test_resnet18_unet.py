"""The teacher's architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.resnet18_unet import ResNet18Encoder, resnet18_unet


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return resnet18_unet(width=8).eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_output_has_the_size_of_the_input(net: nn.Module, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        out = net(torch.rand(2, 1, *size))
    assert out.shape == (2, 2, *size)
    assert torch.isfinite(out).all()


def test_channels_are_free() -> None:
    with torch.inference_mode():
        assert resnet18_unet(3, 1, width=8).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_encoder_features_halve_at_each_level() -> None:
    with torch.inference_mode():
        features = ResNet18Encoder(8).eval()(torch.rand(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (8, 32, 32),
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
        (64, 2, 2),
    ]


def test_upsampling_starts_without_checkerboard() -> None:
    weight = resnet18_unet(width=8).last_up.conv.weight
    first, *others = (weight[offset::4] for offset in range(4))
    assert all(torch.equal(first, other) for other in others)


def test_every_weight_gets_a_gradient() -> None:
    net = resnet18_unet(width=8)
    net(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_the_default_is_the_network_of_the_field_notes() -> None:
    millions = sum(p.numel() for p in resnet18_unet().parameters()) / 1e6
    assert 13.5 < millions < 15


def test_the_feature_of_the_registry_exists(net: nn.Module) -> None:
    from models import get_spec

    feature = get_spec("resnet18_unet").feature
    assert feature is not None
    assert isinstance(net.get_submodule(feature), nn.Module)
