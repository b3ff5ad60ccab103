"""Groups of channels: a pruned network must compute what the network computes in which those channels are zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from models.errors import UnsupportedError
from optimize.channel_groups import map_channels, mask_channels, remove_channels, widths
from optimize.prune import PruneConfig
from optimize.pruner import analyse, prepare


class Net(nn.Module):
    """A network from layers and a forward function."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, input: Tensor) -> Tensor:
        return self.run(self, input)


class LayerNorm2d(nn.Module):
    """NAFNet's norm over channels, with bare parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


class ChannelAttention(nn.Module):
    """Restormer's attention: heads over channels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, 1, 1, groups=3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        parts = self.depthwise(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(n, self.heads, -1, h * w) for part in parts)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        mixed = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.out(mixed.reshape(n, -1, h, w))


def conv(read: int, made: int, kernel: int = 1, **options: int) -> nn.Conv2d:
    return nn.Conv2d(read, made, kernel, padding=kernel // 2, **options)


def _shuffle_by_view(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    y = y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
    return net.d(y)


def _gate(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x)
    first, second = net.b(y).chunk(2, dim=1)
    return net.d(y + net.c(first * second))


def _film(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x)
    scale, shift = net.fc(y.mean((2, 3))).chunk(2, dim=1)
    return net.d(y * scale[:, :, None, None] + shift[:, :, None, None])


def _window_attention(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    q, k, v = net.qkv(y).reshape(-1, 16, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
    y = net.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, c))
    y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return net.d(y.permute(0, 3, 1, 2))


def _multihead(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x)
    tokens = y.flatten(2).transpose(1, 2)
    tokens = tokens + net.attention(tokens, tokens, tokens, need_weights=False)[0]
    return net.d(tokens.transpose(1, 2).reshape(y.shape[0], -1, *y.shape[2:]))


def _convnext(net: nn.Module, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.norm(net.depthwise(y).permute(0, 2, 3, 1))
    return net.d(y + net.p2(functional.gelu(net.p1(z))).permute(0, 3, 1, 2))


def _sorted_tokens(net: nn.Module, x: Tensor) -> Tensor:
    """Attention that looks at its neighbours in an order that the picture decides."""
    tokens = net.a(x).flatten(2).transpose(1, 2)
    order = x.mean(1).flatten(1).argsort(1)
    tokens = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    back = tokens.cumsum(1).gather(1, order.argsort(1).unsqueeze(-1).expand_as(tokens))
    return net.d(back.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


def _matched_distributions(net: nn.Module, x: Tensor) -> Tensor:
    """Style transfer by exact feature distributions: the order of one picture, the values of another."""
    content, style = net.a(x).flatten(2), net.b(x.flip(1)).flatten(2)
    places = content.sort()[1].argsort(-1)
    best = content.topk(3, dim=2)[0].mean(2, keepdim=True)
    return net.d((style.sort()[0].gather(-1, places) + best).unflatten(2, x.shape[2:]))


# name -> network, {group: units}; the masked comparison is exact
EXACT: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "shuffle, then a concatenation": (
        lambda: Net(
            lambda m, x: m.d(torch.cat([functional.pixel_shuffle(m.norm(m.b(m.a(x))), 2), m.c(x)], 1)),
            a=conv(3, 8, 3, stride=2),
            b=conv(8, 24),
            norm=nn.BatchNorm2d(24),
            c=conv(3, 8),
            d=conv(14, 3),
        ),
        {"a": 8, "b": 6, "c": 8},
    ),
    "a concatenation that starts with the input": (
        lambda: Net(lambda m, x: m.d(torch.cat([x, m.a(x).relu()], 1)), a=conv(3, 8, 3), d=conv(11, 3)),
        {"a": 8},
    ),
    "unshuffle and shuffle": (
        lambda: Net(
            lambda m, x: functional.pixel_shuffle(m.d(functional.pixel_unshuffle(m.a(x), 2)), 2),
            a=conv(3, 6),
            d=conv(24, 12),
        ),
        {"a": 6},
    ),
    "shuffle written as view and permute": (lambda: Net(_shuffle_by_view, a=conv(3, 32), d=conv(8, 3)), {"a": 8}),
    "a simple gate": (lambda: Net(_gate, a=conv(3, 8), b=conv(8, 12), c=conv(6, 8), d=conv(8, 3)), {"a": 8, "b": 6}),
    "FiLM": (lambda: Net(_film, a=conv(3, 8), fc=nn.Linear(8, 16), d=conv(8, 3)), {"a": 8}),
    "depthwise": (
        lambda: nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 16, 3, groups=8), nn.BatchNorm2d(16), conv(16, 3)),
        {"0": 8},
    ),
    "grouped": (lambda: nn.Sequential(conv(3, 16), conv(16, 24, 3, groups=4), conv(24, 3)), {"0": 4, "1": 6}),
    "transposed": (
        lambda: nn.Sequential(
            conv(3, 16), nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), conv(8, 3)
        ),
        {"0": 16, "1": 8},
    ),
    "flattened into a linear layer": (
        lambda: nn.Sequential(conv(3, 8, 3, stride=4), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4)),
        {"0": 8, "2": 16},
    ),
    "a global residual": (lambda: Net(lambda m, x: x + m.d(m.a(x).relu()), a=conv(3, 8), d=conv(8, 3)), {"a": 8}),
    "instance norm": (lambda: nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True), conv(8, 3)), {"0": 8}),
    "a gated linear unit": (lambda: nn.Sequential(conv(3, 16), nn.GLU(1), conv(8, 3)), {"0": 8}),
    "matched distributions": (lambda: Net(_matched_distributions, a=conv(3, 8), b=conv(3, 8), d=conv(8, 3)), {"a": 8}),
    "tokens in another order": (lambda: Net(_sorted_tokens, a=conv(3, 8), d=conv(8, 3)), {"a": 8}),
    "nothing on both sides": (
        lambda: Net(
            lambda m, x: m.d(torch.cat([(y := m.a(x))[:, :0], y.relu(), y[:, 8:]], 1)), a=conv(3, 8), d=conv(8, 3)
        ),
        {"a": 8},
    ),
    "a layer used twice": (
        lambda: Net(lambda m, x: m.d(m.b(m.b(m.a(x)).relu())), a=conv(3, 8), b=conv(8, 8), d=conv(8, 3)),
        {"a": 8},
    ),
}
# something computes over the channels: the pruned network must run, have the sizes, and reload
MIXED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "a norm of bare parameters": (lambda: nn.Sequential(conv(3, 8), LayerNorm2d(8), conv(8, 3)), {"0": 8}),
    "attention by the largest channel": (
        lambda: Net(lambda m, x: m.d((y := m.a(x)) * y.max(1, keepdim=True)[0].sigmoid()), a=conv(3, 8), d=conv(8, 3)),
        {"a": 8},
    ),
    "group norm": (lambda: nn.Sequential(conv(3, 16), nn.GroupNorm(4, 16), conv(16, 3)), {"0": 4}),
    "weight normalization": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 8)), conv(8, 3)),
        {"0.parametrizations.weight": 8},
    ),
    "ConvNeXt": (
        lambda: Net(
            _convnext,
            a=conv(3, 8),
            depthwise=conv(8, 8, 7, groups=8),
            norm=nn.LayerNorm(8),
            p1=nn.Linear(8, 32),
            p2=nn.Linear(32, 8),
            d=conv(8, 3),
        ),
        {"a": 8, "p1": 32},
    ),
    "attention over channels": (
        lambda: nn.Sequential(conv(3, 16), ChannelAttention(16, 4), conv(16, 3)),
        {"0": 16, "1.qkv": 4, "1.out": 16},
    ),
    "attention in windows": (
        lambda: Net(_window_attention, a=conv(3, 16), qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16), d=conv(16, 3)),
        {"a": 4},
    ),
    "torch's attention": (
        lambda: Net(_multihead, a=conv(3, 16), attention=nn.MultiheadAttention(16, 4, batch_first=True), d=conv(16, 3)),
        {"a": 4},
    ),
}


def _shake(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("name", EXACT)
def test_pruned_network_equals_the_masked_one(name: str) -> None:
    make, expected = EXACT[name]
    net, x = _shake(make()), torch.rand(2, 3, 16, 16)
    channels = map_channels(net, [torch.rand(1, 3, 16, 16)])
    assert {group.name: group.units for group in channels.groups} == expected
    removal = {group: list(range(0, group.units, 2)) for group in channels.groups}
    small, masked = remove_channels(net, removal).eval(), mask_channels(net, removal)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-6)
    assert not torch.allclose(small(x), net(x), atol=1e-4)


@pytest.mark.parametrize("name", MIXED)
def test_channels_under_a_norm_or_attention_go_together(name: str) -> None:
    make, expected = MIXED[name]
    net, x = make().eval(), torch.rand(2, 3, 16, 16)
    channels = map_channels(net, [x[:1]])
    assert {group.name: group.units for group in channels.groups} == expected
    assert any(group.mixed for group in channels.groups)
    removal = {group: list(range(group.units // 2)) for group in channels.groups}
    small = remove_channels(net, removal).eval()
    assert small(x).shape == net(x).shape
    assert torch.isfinite(small(x)).all()
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [("resnet18_unet", {"width": 8}), ("chroma_unet", {"reduction": 2, "widths": [8, 16, 24], "depths": [1, 2, 1]})],
)
def test_our_models_prune_exactly_to_the_last_layer(model: str, kwargs: dict[str, object]) -> None:
    net = _shake(models.create_model(model, **kwargs))
    channels = map_channels(net, [torch.rand(1, 1, 32, 32)])
    assert dict(channels.kept) == {"head": "is the network's output"}
    generator = torch.Generator().manual_seed(1)
    removal = {
        group: torch.randperm(group.units, generator=generator)[: group.units // 2].tolist()
        for group in channels.groups
    }
    small, masked, x = remove_channels(net, removal).eval(), mask_channels(net, removal), torch.rand(2, 1, 64, 64)
    scale = float(masked(x).detach().abs().max())
    torch.testing.assert_close(small(x) / scale, masked(x) / scale, rtol=0, atol=1e-5)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and name != "head"]
    before, after = widths(net, layers), widths(small, layers)
    assert all(after[name] == before[name] - before[name] // 2 for name in layers)


def test_groups_agree_with_torch_pruning_where_it_works() -> None:
    """A plain residual network without pixel shuffle: the same layers are coupled."""
    import torch_pruning as tp

    net = models.create_model("resnet18_unet", width=8).encoder
    x = torch.rand(1, 3, 64, 64)
    mine = {frozenset(group.producers) for group in map_channels(net, [x]).groups}
    graph = tp.DependencyGraph().build_dependency(net, [x])
    names = {module: name for name, module in net.named_modules()}
    theirs = set()
    for group in graph.get_all_groups():
        made = {d.target.module for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)}
        theirs.add(frozenset(names[module] for module in made if isinstance(module, nn.Conv2d)))
    outputs = {"conv1", "layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"}  # of the encoder
    assert mine == {group for group in theirs if not group & outputs}
    assert len(mine) == 8


def test_what_cannot_be_pruned_is_named_with_the_reason() -> None:
    net = Net(
        lambda m, x: (
            m.d(m.b(m.a(x)[:, 2:7]).view(-1, 8, 16, 16))
            + m.f(m.e(x).flip(1))
            + m.h(m.g(x).gather(1, torch.tensor([2, 0, 1, 3]).view(1, 4, 1, 1).expand(1, 4, 16, 16)))
            + m.j(m.i(x).sort(1)[0])
        ),
        a=conv(3, 8),
        b=conv(5, 8),
        d=conv(8, 3),
        e=conv(3, 4),
        f=conv(4, 3),
        g=conv(3, 4),
        h=conv(4, 3),
        i=conv(3, 4),
        j=conv(4, 3),
        unused=conv(3, 3),
    )
    channels = map_channels(net.eval(), [torch.rand(1, 3, 16, 16)])
    assert channels.groups == ()
    assert "is sliced at fixed places" in channels.kept["a"]
    assert "does not run without one of its channels: shape '[-1, 8, 16, 16]' is invalid" in channels.kept["b"]
    assert channels.kept["e"] == "is flipped or rolled along its channels (in the network)"
    assert channels.kept["g"] == "is gathered from places of its own (in the network)"
    assert channels.kept["i"] == "is sorted along its channels (in the network)"
    assert {channels.kept[name] for name in "dfhj"} == {"is the network's output"}
    assert "does not run in a forward pass" in channels.kept["unused"]


def test_layers_that_make_no_channels_of_their_own_say_why_they_stay() -> None:
    net = Net(
        lambda m, x: m.d(m.norm(m.a(m.deep(x)) + m.b(x))),
        deep=conv(3, 3, 3, groups=3),
        a=conv(3, 8),
        b=conv(3, 8),
        norm=nn.GroupNorm(8, 8),
        d=conv(8, 3),
    )
    kept = map_channels(net.eval(), [torch.rand(1, 3, 16, 16)]).kept
    assert kept["deep"] == "meets a tensor whose channels are fixed (in deep)"
    assert kept["a"] == kept["b"] == "its channels all depend on each other"


def test_a_layer_of_one_channel_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1)).eval()
    channels = map_channels(net, [torch.rand(1, 3, 16, 16)])
    assert channels.kept == {"0": "has one channel", "1": "is the network's output"}


def test_an_operation_that_mixes_channels_in_secret_is_found_by_the_numbers() -> None:
    net = Net(lambda m, x: m.d(m.a(x).logcumsumexp(1)), a=conv(3, 8), d=conv(8, 3)).eval()
    channels = map_channels(net, [torch.rand(1, 3, 16, 16)])
    assert channels.kept["a"] == "removing a channel changes what the others compute"


def test_a_buffer_that_is_not_saved_keeps_the_channels_that_it_meets() -> None:
    """It cannot be resized when the network is loaded again."""
    net = Net(
        lambda m, x: m.d(functional.conv2d(m.b(m.a(x)), m.blur, groups=8)), a=conv(3, 8), b=conv(8, 8), d=conv(8, 3)
    )
    net.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)
    channels = map_channels(net.eval(), [torch.rand(1, 3, 16, 16)])
    assert [group.name for group in channels.groups] == ["a"]
    assert channels.kept["b"] == "meets a filter whose channels are fixed (in the network)"


def test_weights_that_two_layers_share_are_pruned_once() -> None:
    net = Net(
        lambda m, x: m.d(m.up(m.down(m.a(x)).relu())),
        a=conv(3, 8),
        down=conv(8, 16, 2, stride=2, bias=False),
        up=nn.ConvTranspose2d(16, 8, 2, 2, bias=False),
        d=conv(8, 3),
    )
    net.up.weight = net.down.weight
    x = torch.rand(1, 3, 16, 16)
    channels = map_channels(net.eval(), [x])
    assert {group.name: group.units for group in channels.groups} == {"a": 8, "down": 16}
    assert dict(channels.kept) == {"d": "is the network's output"}
    removal = {group: [0, 3] for group in channels.groups}
    small = remove_channels(net, removal)
    assert small.up.weight.shape == (14, 6, 2, 2)
    torch.testing.assert_close(small(x), mask_channels(net, removal)(x), rtol=0, atol=1e-6)


def test_ignored_layers_keep_their_channels() -> None:
    net = nn.Sequential(conv(3, 8), conv(8, 8), nn.Sequential(conv(8, 8), conv(8, 8)), conv(8, 3)).eval()
    channels = map_channels(net, [torch.rand(1, 3, 8, 8)], ignore=["0", "2"])
    assert [group.name for group in channels.groups] == ["1"]
    assert channels.kept["2.1"] == "goes together with 2.1, which is to be ignored"
    with pytest.raises(UnsupportedError, match=r"layers to ignore: expected layers of the network, got \['9'\]"):
        map_channels(net, [torch.rand(1, 3, 8, 8)], ignore=["9"])


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    map_channels(net, [torch.rand(1, 3, 8, 8)])
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net[0]._forward_hooks


def test_a_network_that_does_not_run_on_the_input_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"tracing for pruning: expected a forward pass, got .*; fix: check the"):
        map_channels(conv(4, 8), [torch.rand(1, 3, 8, 8)])

    def picky(net: nn.Module, x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(
        UnsupportedError, match="tracing for pruning: expected a forward pass, got ZeroDivisionError at "
    ):
        map_channels(Net(picky, a=conv(3, 8)), [torch.rand(1, 3, 8, 8)])


def test_a_network_of_one_size_is_traced_at_that() -> None:
    def picky(net: nn.Module, x: Tensor) -> Tensor:
        assert x.shape[2:] == (48, 96)
        return net.b(net.a(x))  # type: ignore[no-any-return]

    net, spec = Net(picky, a=conv(3, 8), b=conv(8, 3)).eval(), models.get_spec("torch.nn:Identity", task="image")
    config = PruneConfig(pruning_ratio=0.5, round_to=1, importance="magnitude")
    assert prepare(net, spec, config, input_size=(48, 96)).widths(0.5) == (4,)
    with pytest.raises(UnsupportedError, match="tracing for pruning: expected a forward pass, got assert"):
        analyse(net, spec, config)
