"""Importance, estimated cost, rounding, and which units go."""

from __future__ import annotations

import pytest
import torch
from own_networks import Overwriting
from torch import Tensor, nn

import models
from models.errors import UnsupportedError
from optimize.channel_groups import ChannelGroup, map_channels, remove_channels
from optimize.channel_importance import LayerCosts, score
from optimize.channel_selection import Rounding, choose


def group(units: int, fixed: int = 0, name: str = "layer") -> ChannelGroup:
    return ChannelGroup(name, (name,), {}, units, fixed)


def _net() -> nn.Sequential:
    """Two hidden layers; channel k of the first is scaled so that a higher one matters more."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
    ).eval()
    scale = torch.arange(1.0, 9.0)
    with torch.no_grad():
        net[0].weight.copy_(torch.ones_like(net[0].weight) * scale.flip(0).view(8, 1, 1, 1))
        net[1].weight.copy_(scale)
        net[3].weight.copy_(torch.rand(6, 8, 1, 1) * scale.view(1, 8, 1, 1))
    return net


def test_magnitude_is_the_mean_over_the_layers_of_a_group() -> None:
    net = _net()
    first = map_channels(net, [torch.rand(1, 3, 8, 8)]).groups[0]
    scores, unscored = score(net, [first], "magnitude")
    made = net[0].weight.pow(2).sum((1, 2, 3))
    read = net[3].weight.pow(2).sum((0, 2, 3))
    expected = (made + net[1].weight.pow(2) + read) / 3  # torch-pruning: squared L2 norms
    torch.testing.assert_close(scores[first], (expected / expected.sum()).detach())
    assert unscored == {}


def test_magnitude_of_shuffled_channels_adds_up_their_pixels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1)).eval()
    [only] = map_channels(net, [torch.rand(1, 3, 8, 8)]).groups
    assert only.units == 4
    scores, _ = score(net, [only], "magnitude")
    made = net[0].weight.pow(2).sum((1, 2, 3)).view(4, 4).sum(1)
    expected = (made + net[2].weight.pow(2).sum((0, 2, 3))) / 2
    torch.testing.assert_close(scores[only], (expected / expected.sum()).detach())


def test_bn_scale_is_gamma_and_skips_layers_without_a_norm() -> None:
    net = _net()
    groups = map_channels(net, [torch.rand(1, 3, 8, 8)]).groups
    scores, unscored = score(net, groups, "bn_scale")
    torch.testing.assert_close(scores[groups[0]], torch.arange(1.0, 9.0) / 36)
    assert unscored == {"3": "no BatchNorm scales these channels"}
    message = "importance bn_scale: expected layers that it scores, got none; fix: use --importance magnitude"
    with pytest.raises(UnsupportedError, match=message):
        score(net, groups[1:], "bn_scale")


def test_taylor_is_weight_times_gradient_summed_over_batches() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)).eval()
    [only] = map_channels(net, [torch.rand(1, 3, 4, 4)]).groups
    batches = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)]

    def loss(batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    scores, _ = score(net, [only], "taylor", losses=[lambda _, batch=batch: loss(batch) for batch in batches])
    expected = torch.zeros(4)
    for batch in batches:
        net.zero_grad()
        loss(batch).backward()
        made = (net[0].weight * net[0].weight.grad).abs().sum((1, 2, 3))
        read = (net[1].weight * net[1].weight.grad).abs().sum((0, 2, 3))
        expected += ((made + read) / 2).detach()
    torch.testing.assert_close(scores[only], expected)
    with pytest.raises(UnsupportedError, match="importance taylor: expected photos, got none; fix: pass --data"):
        score(net, [only], "taylor")
    with pytest.raises(UnsupportedError, match=r"expected a network with gradients, got an answer that no"):
        score(net, [only], "taylor", losses=[lambda m: m(torch.rand(1, 3, 8, 8)).detach().mean()])


def test_taylor_of_a_network_that_writes_over_what_its_backward_needs() -> None:
    x, (net, other) = torch.rand(2, 3, 4, 4), (Overwriting(in_place=flag).eval() for flag in (True, False))
    net.load_state_dict(other.state_dict())
    groups = map_channels(other, [x]).groups
    found, expected = (score(one, groups, "taylor", losses=[lambda m: m(x).square().mean()])[0] for one in (net, other))
    assert len(found) == len(groups) > 0
    for group in groups:
        torch.testing.assert_close(found[group], expected[group])


def test_bare_parameters_are_scored_as_layers_are() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(3, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(nn.functional.conv2d(x, self.first), self.last)

    bare, layers = Bare().eval(), nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)).eval()
    layers.load_state_dict({"0.weight": bare.first, "1.weight": bare.last})
    x, found = torch.rand(1, 3, 4, 4), []
    for net in (bare, layers):
        [only] = map_channels(net, [x]).groups
        losses = [lambda net: net(x).square().mean()]
        found.append([score(net, [only], kind, losses=losses)[0][only] for kind in ("magnitude", "taylor")])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert LayerCosts(bare, [x]).speedup({}) == 1.0


def test_taylor_leaves_gradients_and_flags_as_they_were() -> None:
    net = _net()
    net[0].weight.requires_grad_(False)
    groups = map_channels(net, [torch.rand(1, 3, 8, 8)]).groups
    score(net, groups, "taylor", losses=[lambda m: m(torch.rand(1, 3, 8, 8)).mean()])
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("rounding", "of", "expected"),
    [
        (Rounding(8, 0.8), group(32), [8, 16, 24, 32]),
        (Rounding(8, 0.5), group(32), [16, 24, 32]),
        (Rounding(8, 0.8), group(20), [8, 16, 20]),  # the full width is always allowed ...
        (Rounding(8, 0.8), group(32, fixed=1), [7, 15, 23, 31]),  # ... unless one channel less makes 33 to 32
        (Rounding(16, 0.8), group(16, fixed=3), [13]),
        (Rounding(16, 0.8), group(12, fixed=8), [8, 12]),
        (Rounding(None, 0.8), group(256), list(range(64, 257, 16))),
        (Rounding(None, 0.8), group(32), [16, 32]),
        (Rounding(None, 0.8), group(24, fixed=1), [7, 15, 23]),
        (Rounding(None, 0.8), group(12), [4, 8, 12]),
        (Rounding(None, 0.8), group(3), [1, 2, 3]),
        (Rounding(1, 0.5), group(3), [2, 3]),
    ],
)
def test_allowed_widths(rounding: Rounding, of: ChannelGroup, expected: list[int]) -> None:
    assert rounding.widths(of) == expected


def test_nearest_width() -> None:
    rounding = Rounding(8, 0.8)
    assert [rounding.nearest(group(32), wanted) for wanted in (32, 29, 27.9, 20, 3)] == [32, 32, 24, 16, 8]


def test_uniform_takes_the_same_share_of_the_least_important() -> None:
    first, second = group(8, name="a"), group(16, name="b")
    scores = {first: torch.arange(8.0), second: torch.arange(16.0).flip(0)}
    removal = choose(scores, 0.5, scope="uniform", rounding=Rounding(2, 0.8))
    assert removal[first] == [0, 1, 2, 3]
    assert removal[second] == list(range(8, 16))


def test_global_takes_more_where_it_matters_less_and_where_it_saves_more() -> None:
    light, heavy = group(32, name="a"), group(32, name="b")
    flat = {light: torch.full((32,), 1.0), heavy: torch.full((32,), 1.0)}
    rounding = Rounding(1, 0.9)
    even = {k: len(v) for k, v in choose(flat, 0.25, scope="global", rounding=rounding).items()}
    assert even == {light: 8, heavy: 8}
    weighed = choose(flat, 0.25, scope="global", rounding=rounding, unit_ms={light: 1.0, heavy: 3.0})
    assert {k: len(v) for k, v in weighed.items()} == {light: 4, heavy: 12}
    dull = {light: torch.full((32,), 0.1), heavy: torch.full((32,), 1.0)}
    scored = choose(dull, 0.25, scope="global", rounding=rounding, unit_ms={light: 1.0, heavy: 1.0})
    assert len(scored[light]) > 3 * len(scored[heavy])
    unweighed = choose(
        flat, 0.25, scope="global", rounding=rounding, unit_ms={light: 1.0, heavy: 3.0}, latency_weight=0.0
    )
    assert {k: len(v) for k, v in unweighed.items()} == even


def test_nothing_goes_at_ratio_zero_and_no_group_is_emptied() -> None:
    only = group(32)
    scores = {only: torch.rand(32)}
    assert choose(scores, 0.0, scope="global", rounding=Rounding()) == {only: []}
    assert len(choose(scores, 1.0, scope="global", rounding=Rounding(8, 0.75))[only]) == 24


@pytest.mark.parametrize("round_to", [4, 8])
def test_round_to_holds_for_every_layer_that_reads(round_to: int) -> None:
    net = models.create_model("resnet18_unet", width=32).eval()
    groups = [g for g in map_channels(net, [torch.rand(1, 1, 32, 32)]).groups if g.name != "stem"]
    scores, _ = score(net, groups, "magnitude")
    small = remove_channels(net, choose(scores, 0.3, scope="global", rounding=Rounding(round_to, 0.8)))
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d) and name not in ("stem", "encoder.conv1", "head"):
            assert module.in_channels % round_to == 0, name
    assert small(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_layer_costs_count_multiply_adds_and_traffic() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 4, 3, 1, 1, groups=4))
    costs = LayerCosts(net, [torch.rand(1, 3, 16, 16)])
    times = costs.layer_ms({})
    assert times["0"] == pytest.approx(64 * 9 * 3 * 8 / 1e8 + 4 * (256 * 3 + 64 * 8) / 1e7)
    assert times["1"] == pytest.approx(64 * 4 * 8 * 4 / 1e8 + 4 * (64 * 8 + 256 * 4) / 1e7)
    assert times["2"] == pytest.approx(256 * 9 * 4 / 1e8 + 4 * (256 * 4 + 256 * 4) / 1e7)


def test_estimated_speedup_is_that_of_the_pruned_network() -> None:
    net = models.create_model("resnet18_unet", width=16).eval()
    x = [torch.rand(1, 1, 64, 64)]
    groups = map_channels(net, x).groups
    removal = {g: list(range(g.units // 2)) for g in groups}
    costs, small = LayerCosts(net, x), LayerCosts(remove_channels(net, removal), x)
    expected = sum(costs.layer_ms({}).values()) / sum(small.layer_ms({}).values())
    assert costs.speedup(removal) == pytest.approx(expected)
    assert costs.speedup({}) == 1.0
    by_name = {g.name: costs.unit_ms(g) for g in groups}
    assert by_name["refine.0.0"] > 4 * by_name["encoder.layer4.0.conv1"]
