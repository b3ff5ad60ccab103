"""Simulated INT8: rounding worked by hand, one layer at a time, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.artifact import Artifact, load_network
from models.errors import UnsupportedError
from optimize.simulation import SimulatedInt8, activation_scale, quantize_weight


class Small(nn.Module):
    """Two convolutions, a linear layer, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.idle = nn.Conv2d(3, 3, 1)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.up(torch.relu(self.norm(self.first(x)))))


@pytest.fixture
def simulated() -> SimulatedInt8:
    return SimulatedInt8(Small().eval(), torch.rand(5, 1, 8, 8))


def test_activation_scale_by_hand() -> None:
    assert activation_scale(0.0, 255.0) == (1.0, 0)
    assert activation_scale(-1.0, 1.55) == (pytest.approx(0.01), 100)
    assert activation_scale(2.0, 5.1) == (pytest.approx(0.02), 0), "zero must be exact, so the range reaches it"
    assert activation_scale(0.0, 0.0)[0] > 0


def test_weights_have_a_scale_an_output_channel() -> None:
    layer = nn.Conv2d(1, 2, 1, bias=False)
    layer.weight.data = torch.tensor([1.27, -0.0127]).view(2, 1, 1, 1)
    assert torch.allclose(quantize_weight(layer), layer.weight)
    layer = nn.Conv2d(2, 1, 1, bias=False)
    layer.weight.data = torch.tensor([1.27, 0.012]).view(1, 2, 1, 1)
    assert quantize_weight(layer).flatten().tolist() == pytest.approx([1.27, 0.01])
    up = nn.ConvTranspose2d(1, 2, 1, bias=False)
    up.weight.data = torch.tensor([1.27, -0.0127]).view(1, 2, 1, 1)
    assert torch.allclose(quantize_weight(up), up.weight)


def test_only_called_layers_count_and_macs_are_right(simulated: SimulatedInt8) -> None:
    assert simulated.layers == ("first", "up", "mix")
    assert simulated.macs == {"first": 4 * 4 * 4 * 9, "up": 8 * 8 * 2 * 4, "mix": 2 * 8 * 8 * 8}
    low, high = simulated.ranges["first"]
    assert 0 <= low < high <= 1


def test_the_float_network_is_unchanged_before_inside_and_after(tiny_student: Artifact) -> None:
    net = load_network(tiny_student)
    x = torch.rand(2, 1, 32, 32)
    simulation = SimulatedInt8(net, x)
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(simulation(x), expected, atol=1e-5)
        weights = copy.deepcopy(simulation.state_dict())
        with simulation.quantized(simulation.layers) as quantized:
            error = float((quantized(x) - expected).abs().max())
            assert 1e-5 < error < 0.1
        assert all(torch.equal(value, weights[key]) for key, value in simulation.state_dict().items())
        assert torch.allclose(simulation(x), expected, atol=1e-5)


def test_one_layer_changes_less_than_all(tiny_student: Artifact) -> None:
    x = torch.rand(2, 1, 32, 32)
    simulation = SimulatedInt8(load_network(tiny_student), x)

    @torch.no_grad()
    def error(names: tuple[str, ...]) -> float:
        with simulation.quantized(names) as quantized:
            changed = quantized(x)
        return float((changed - simulation(x)).square().mean())

    assert error(()) == 0
    assert 0 < error(("head",)) < error(simulation.layers)


def test_values_outside_of_the_calibrated_range_are_counted(simulated: SimulatedInt8) -> None:
    inside, above = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 2.0)
    assert dict(simulated.outside(inside))["first"] == 0.0
    assert dict(simulated.outside(torch.cat([inside, above])))["first"] == 0.5


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"INT8: expected a network with conv.*, got none .*; fix: hold the weights in nn\.Conv2d",
    ):
        SimulatedInt8(nn.Sequential(nn.ReLU()), torch.rand(1, 1, 8, 8))
