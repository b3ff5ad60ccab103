"""Fitted INT8: strange photos, channels that nothing reads, and biases that undo the shift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optimize.range_fitting import fit, input_energy
from optimize.simulation import SimulatedInt8


class Spiking(nn.Module):
    """Squares its input on the way: a photo of tenfold values drives the last layer to a hundredfold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.first(x)) ** 2)
        return result


def photos(count: int, *, seed: int) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def spoiled(count: int) -> Tensor:
    """Usual photos and one of tenfold values."""
    usual = photos(count, seed=1)
    return torch.cat([usual, 10 * usual[:1]])


@torch.no_grad()
def errors(simulation: SimulatedInt8, x: Tensor, *, symmetric: bool = False) -> Tensor:
    with simulation.quantized(simulation.layers, symmetric=symmetric) as net:
        rounded = net(x)
    found: Tensor = rounded - simulation(x)
    return found


def test_one_spiking_photo_in_the_calibration_costs_the_others_nothing() -> None:
    net, held_out = Spiking().eval(), photos(4, seed=2)
    clean, simulation = SimulatedInt8(net, photos(19, seed=1)), SimulatedInt8(net, spoiled(19))
    fit(clean, photos(19, seed=1))
    fit(simulation, spoiled(19))
    best, found = errors(clean, held_out).square().mean(), errors(simulation, held_out).square().mean()
    assert found < 1.5 * best
    seen = simulation.observed["last"]
    simulation.ranges["last"] = (float(seen[:, 0].min()), float(seen[:, 1].max()))  # min-max
    assert errors(simulation, held_out).square().mean() > 50 * best
    assert simulation.ranges["last"][1] > 50 * clean.ranges["last"][1]


def test_a_few_bright_photos_do_not_decide_for_the_others() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(1, 4, 1)).eval()
    x = photos(16, seed=1)
    x[0] *= 3  # not so strange that it does not count
    typical, fitted = SimulatedInt8(net, x), SimulatedInt8(net, x)
    fit(fitted, x)
    assert fitted.ranges["0"][1] < 0.8 * typical.ranges["0"][1]
    assert errors(fitted, x[1:]).square().mean() < 0.8 * errors(typical, x[1:]).square().mean()


def test_a_channel_that_nothing_reads_has_no_say() -> None:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(2, 4, 1)).eval()
    x = torch.rand(8, 2, 16, 16)
    x[:, 1] *= 1.3
    read = SimulatedInt8(net, x)
    fit(read, x)
    net[0].weight.data[:, 1] = 0
    unread = SimulatedInt8(net, x)
    fit(unread, x)
    assert unread.ranges["0"][1] < 0.9 * read.ranges["0"][1]


def test_corrections_undo_the_mean_error() -> None:
    net, x = Spiking().eval(), photos(16, seed=1)
    simulation = SimulatedInt8(net, x)
    fit(simulation, x)
    assert {name: tuple(value.shape) for name, value in simulation.corrections.items()} == {"first": (8,), "last": (2,)}
    held_out = photos(8, seed=2)
    corrected = errors(simulation, held_out).mean(dim=(0, 2, 3)).abs().max()
    simulation.corrections = {}
    assert corrected < 0.5 * errors(simulation, held_out).mean(dim=(0, 2, 3)).abs().max()


def test_the_network_keeps_its_weights_and_biases() -> None:
    net, x = Spiking().eval(), photos(4, seed=1)
    simulation = SimulatedInt8(net, x)
    before = {name: value.clone() for name, value in simulation.state_dict().items()}
    fit(simulation, x)
    errors(simulation, x)
    assert all(torch.equal(value, before[name]) for name, value in simulation.state_dict().items())


def test_symmetric_rounding_is_coarser_where_nothing_is_negative() -> None:
    net, x = Spiking().eval(), photos(8, seed=1)
    simulation = SimulatedInt8(net, x)
    assert errors(simulation, x, symmetric=True).square().mean() > 2 * errors(simulation, x).square().mean()


@pytest.mark.parametrize(
    ("layer", "energy"),
    [
        (nn.Conv2d(2, 1, 1), [1.0, 4.0]),
        (nn.ConvTranspose2d(2, 1, 1), [1.0, 4.0]),
        (nn.Linear(2, 1), [1.0, 4.0]),
        (nn.Conv2d(2, 2, 1, groups=2), [1.0, 4.0]),
    ],
)
def test_the_energy_of_weights_by_hand(layer: nn.Module, energy: list[float]) -> None:
    layer.weight.data = torch.tensor([1.0, 2.0]).reshape(layer.weight.shape)  # type: ignore[operator]
    assert input_energy(layer).tolist() == energy


def test_a_linear_layer_on_one_vector_a_photo_is_fitted() -> None:
    class Squeeze(nn.Module):
        """Scales channels by what their means say (squeeze and excitation with linear layers)."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * self.up(self.down(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None]

    torch.manual_seed(0)
    inputs = torch.rand(6, 3, 8, 8)
    simulation = SimulatedInt8(Squeeze().eval(), inputs)
    fit(simulation, inputs)
    assert {"conv", "down", "up"} <= set(simulation.ranges)
    low, high = simulation.ranges["down"]
    assert low < high
