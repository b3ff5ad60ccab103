"""SID U-Net: the published names, and (of its student too) the amplification and twice the size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models.controls import pack
from models.raw_unet import raw_unet
from models.registry import create_model
from models.sid_unet import sid_unet

RECORDED = Path(__file__).parent / "state_dicts" / "sid_unet.json"


def test_names_and_shapes_are_the_published_ones() -> None:
    content = json.loads(RECORDED.read_text())
    with torch.device("meta"):
        net = sid_unet(**content["kwargs"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == content["tensors"]


@pytest.mark.parametrize("make", [lambda: sid_unet(width=4), lambda: raw_unet(1, (8, 16), (0, 1))], ids=["sid", "raw"])
def test_it_sees_amplified_values_of_at_most_one_and_gives_twice_the_size(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    raw = torch.rand(1, 4, 16, 32) * 0.01
    with torch.inference_mode():
        output = net(raw, torch.tensor([50.0]))
        assert output.shape == (1, 3, 32, 64)
        assert torch.allclose(output, net(raw * 50, torch.tensor([1.0])), atol=1e-6)
        assert torch.equal(net(raw, torch.tensor([1e6])), net(torch.ones_like(raw), torch.tensor([1.0])))
        assert torch.equal(output, net(pack(raw, torch.tensor([[50.0]]))))


def test_the_small_variant_is_8_to_256() -> None:
    net = create_model("sid_unet_8")
    assert net.conv1_1.out_channels == 8
    assert net.conv5_2.out_channels == 256
    assert net.upv6.in_channels == 256
    assert net.conv6_1.in_channels == 128
