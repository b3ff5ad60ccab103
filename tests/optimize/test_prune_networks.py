"""Pruning the networks of the registry: gates in pairs, depthwise, norms, channel gates and attention heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_networks import TINY_NETWORKS
from torch import Tensor, nn

import models
from models.artifact import Artifact
from optimize.channel_groups import ChannelMap, map_channels, mask_channels, remove_channels

Maker = Callable[[str], tuple[nn.Module, tuple[int, int]]]

#: Groups that must be found: first layer -> (units, another layer that loses them too, whether a norm mixes them).
EXPECTED: dict[str, dict[str, tuple[int, str, bool]]] = {
    "unet": {"up1.up": (16, "up1.up", False)},
    "nafnet_w32": {
        "encoders.0.0.conv1": (8, "encoders.0.0.sca.1", False),
        "encoders.0.0.conv4": (8, "encoders.0.0.conv4", False),
        "intro": (8, "ups.1.0", True),
    },
    "unet_convnext": {"encoder.stages.0.0.pwconv1": (32, "encoder.stages.0.0.pwconv1", True)},
    "unet_efficientnet_b4": {
        "encoder.features.2.0.block.0.0": (48, "encoder.features.2.0.block.2.fc2", False),
        "encoder.features.2.0.block.2.fc1": (2, "encoder.features.2.0.block.2.fc1", False),
    },
    "restormer_lite": {
        "encoder_level2.0.attn.qkv": (8, "encoder_level2.0.attn.qkv", True),
        "encoder_level2.0.ffn.project_in": (42, "encoder_level2.0.ffn.project_in", False),
    },
    "hdrnet": {"coefficients.global_.fc3": (32, "coefficients.local.conv2", False)},
    "scunet": {
        "m_down1.0.trans_block.msa.embedding_layer": (4, "m_down1.0.trans_block.msa.embedding_layer", False),
        "m_head.0": (16, "m_up1.0", False),
    },
    "swinir": {
        "layers.0.residual_group.blocks.1.attn.qkv": (6, "layers.0.residual_group.blocks.1.attn.qkv", False),
        "conv_first": (12, "layers.0.residual_group.blocks.0.attn.proj", True),
    },
    "pix2pix": {"model.model.0": (4, "model.model.0", False)},
}


def traced(tiny_network: Maker, name: str) -> tuple[nn.Module, Tensor, ChannelMap]:
    net, size = tiny_network(name)
    photo = torch.rand(1, 1 if name == "unet" else 3, *size)
    return net, photo, map_channels(net, [photo])


@pytest.mark.parametrize("name", TINY_NETWORKS)
def test_pruning_is_masking_and_reloads(
    name: str, tiny_network: Maker, tiny_artifact: Callable[[str], Artifact], tmp_path: Path
) -> None:
    net, photo, channels = traced(tiny_network, name)
    exact = {group: [0, group.units - 1] for group in channels.groups if not group.mixed and group.units > 4}
    assert exact
    small, masked = remove_channels(net, exact).eval(), mask_channels(net, exact).eval()
    with torch.inference_mode():
        answer, reference, whole = small(photo), masked(photo), net(photo)
    torch.testing.assert_close(answer, reference, rtol=0, atol=1e-4)
    assert float((reference - whole).abs().max()) > 1e-4
    every = {group: [0] for group in channels.groups}
    smaller = remove_channels(net, every).eval()
    spec = models.get_spec(name)
    kwargs = tiny_artifact(name).model_kwargs
    saved = models.save_network(
        smaller, tmp_path / "pruned.safetensors", model=name, task=spec.task, model_kwargs=kwargs
    )
    loaded = models.load_network(saved)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(photo), smaller(photo), rtol=0, atol=0)
    count = [sum(parameter.numel() for parameter in part.parameters()) for part in (loaded, net)]
    assert count[0] < count[1]


@pytest.mark.parametrize("name", TINY_NETWORKS)
def test_groups_are_those_of_the_architecture(name: str, tiny_network: Maker) -> None:
    _, _, channels = traced(tiny_network, name)
    found = {group.name: group for group in channels.groups}
    for layer, (units, other, mixed) in EXPECTED[name].items():
        group = found[layer]
        assert group.units == units
        assert other in group.producers
        assert bool(group.mixed) == mixed


def test_gates_lose_both_halves(tiny_network: Maker) -> None:
    net, _, channels = traced(tiny_network, "nafnet_w32")
    group = next(group for group in channels.groups if group.name == "encoders.0.0.conv1")
    assert group.indices(("encoders.0.0.conv1.weight", 0), [3]).tolist() == [3, 11]
    assert group.indices(("encoders.0.0.conv2.weight", 0), [3]).tolist() == [3, 11]
    assert group.indices(("encoders.0.0.sca.1.weight", 0), [3]).tolist() == [3]
    small = remove_channels(net, {group: [3, 5]})
    block = small.encoders[0][0]
    assert block.conv2.groups == block.conv2.in_channels == 12
    assert block.sca[1].in_channels == block.conv3.in_channels == 6


def test_heads_lose_the_same_channel_of_queries_keys_and_values(tiny_network: Maker) -> None:
    _, _, channels = traced(tiny_network, "swinir")
    layer = "layers.0.residual_group.blocks.0.attn"
    group = next(group for group in channels.groups if group.name == f"{layer}.qkv")
    assert group.indices((f"{layer}.qkv.weight", 0), [1]).tolist() == [1, 7, 13, 19, 25, 31]
    assert group.indices((f"{layer}.proj.weight", 1), [1]).tolist() == [1, 7]


def test_what_stays_says_why(tiny_network: Maker) -> None:
    _, _, channels = traced(tiny_network, "hdrnet")
    assert channels.kept == {
        "coefficients.prediction.conv1": "its channels all depend on each other",
        "guide.channel_mixing": "has one channel",
    }
    for name in ("unet", "nafnet_w32"):
        _, _, channels = traced(tiny_network, name)
        assert all("the network's output" in why for why in channels.kept.values())


def test_a_network_that_is_zero_is_woken_for_the_check() -> None:
    """A map network starts at zero, where any wrong group would pass."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)
            nn.init.zeros_(self.last.weight)

        def forward(self, input: Tensor) -> Tensor:
            x = self.first(input)
            return self.last(x * (x.shape[1] / 8))

    net = Zero()
    channels = map_channels(net, [torch.rand(1, 3, 4, 4)])
    assert channels.kept["first"] == "removing a channel changes what the others compute"
    assert not net.last.weight.any()
