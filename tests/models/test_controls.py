"""Run-time controls: packed behind the image, split for a graph, given to plain networks as channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.artifact import Artifact, load_network
from models.controls import ControlChannels, graph_feeds, pack, spread, unpack, with_controls
from models.errors import ConfigError
from models.registry import create_model, get_spec, get_task
from models.spec import Control, ModelSpec, TensorSpec


def test_pack_puts_one_plane_a_value_behind_the_image_and_unpack_undoes_it() -> None:
    image, values = torch.rand(2, 3, 4, 5), torch.tensor([[0.25, 7.0], [0.5, 9.0]])
    packed = pack(image, values)
    assert packed.shape == (2, 5, 4, 5)
    assert bool((packed[1, 4] == 9).all())
    back, first, second = unpack(packed, 2)
    assert torch.equal(back, image)
    assert first.tolist() == [0.25, 0.5]
    assert second.tolist() == [7.0, 9.0]
    assert torch.equal(pack(image, torch.ones(1, 1))[:, 3], torch.ones(2, 4, 5))
    assert spread(first).shape == (2, 1, 1, 1)


def test_pack_wants_a_row_of_values_an_image() -> None:
    with pytest.raises(ConfigError, match=r"control values: expected shape \(2, controls\), got \(3, 1\)"):
        pack(torch.rand(2, 3, 4, 4), torch.ones(3, 1))


def test_a_graph_gets_the_image_and_one_value_a_control() -> None:
    level, gain = TensorSpec("level", (1,)), TensorSpec("gain", (1,))
    packed = pack(torch.rand(1, 3, 4, 4), torch.tensor([[0.75]])).numpy()
    feeds = graph_feeds(packed, (TensorSpec("input", ("N", 3, "H", "W")), level, gain), {"gain": 2.0})
    assert feeds["input"].shape == (1, 3, 4, 4)
    assert feeds["level"].tolist() == [0.75]
    assert feeds["gain"].tolist() == [2.0]
    assert list(graph_feeds(packed, (TensorSpec("input", ("N", 3, "H", "W")),))) == ["input"]
    with pytest.raises(ConfigError, match="expected batch 1, got batch 2"):
        graph_feeds(np.zeros((2, 4, 4, 4), np.float32), (TensorSpec("input", ("N", 3, "H", "W")), level))


def test_the_row_lists_its_graph_inputs() -> None:
    knobs = (Control("level", "graph_input", 0, 2, 1), Control("mix", "weight_blend", 0, 1, 0))
    row = ModelSpec("a", "b", "c:d", inputs=(TensorSpec("input", ("N", 3, "H", "W")),), controls=knobs)
    assert [spec.name for spec in row.graph_inputs] == ["input", "level"]
    assert row.graph_inputs[1].shape == (1,)
    assert row.graph_inputs[1].value_range == (0, 2)
    assert row.packed_channels == 4


def test_a_side_may_be_a_multiple_of_the_input() -> None:
    spec = TensorSpec("output", ("N", 3, "2H", "2W"))
    assert spec.at(N=1, H=8, W=16).shape == (1, 3, 16, 32)
    assert spec.at().shape == ("N", 3, "2H", "2W")


def test_packed_and_separate_calls_agree(two_inputs: Artifact) -> None:
    net = load_network(two_inputs)
    packed, _ = get_task("two_inputs:Darken").prepare(torch.rand(1, 3, 16, 16))
    image, level = unpack(packed, 1)
    with torch.inference_mode():
        assert torch.equal(net(packed), net(image, level))
        assert not torch.allclose(net(image, level), net(image, level + 1))


def test_a_plain_network_sees_each_control_as_a_channel(two_inputs: Artifact) -> None:
    del two_inputs  # its folder is importable while it lives
    kwargs = {"in_channels": 4, "out_channels": 3, "reduction": 1, "widths": [8], "depths": [1]}
    net = create_model("chroma_unet", task="two_inputs:Darken", **kwargs)
    assert isinstance(net, ControlChannels)
    image, level = torch.rand(2, 3, 8, 8), torch.tensor([0.5])
    with torch.inference_mode():
        assert torch.equal(net(image, level), net(pack(image, level[:, None])))
        assert net.get_submodule("bottleneck") is net.net.get_submodule("bottleneck")
    with pytest.raises(AttributeError):
        net.get_submodule("nowhere")


def test_a_plain_network_takes_three_controls_at_most() -> None:
    knobs = tuple(Control(f"k{index}", "graph_input", 0, 1, 0) for index in range(4))
    with pytest.raises(ConfigError, match=r"expected at most 3, got 4; fix: give the network's forward"):
        with_controls(torch.nn.Conv2d(7, 3, 1), ModelSpec("a", "b", "c:d", controls=knobs))
    own = get_spec("chroma_unet")
    net = torch.nn.Identity()
    assert with_controls(net, own) is net
