"""Writes into tensors and views of them: the same numbers in the trace, no function of the trace writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from own_networks import check_in_targets, save_own
from torch import Tensor, nn
from torch.nn import functional as F

from export.origins import Constants
from export.picked import Picked
from export.portable import Portable
from export.writes import Writes


def _normalized(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0].sub_(0.4).div_(0.2)
    x[:, 1:2].clamp_(0, 1)
    x[:, 3:, ::2] *= 2
    return x


def _wavelet(x: Tensor) -> Tensor:
    """The inverse Haar transform as most networks write it."""
    low, *high = (part / 2 for part in x.chunk(4, 1))
    batch, channels, height, width = low.shape
    h = torch.zeros([batch, channels, height * 2, width * 2]).float()
    h[:, :, 0::2, 0::2] = low - high[0] - high[1] + high[2]
    h[:, :, 1::2, 0::2] = low - high[0] + high[1] - high[2]
    h[:, :, 0::2, 1::2] = low + high[0] - high[1] - high[2]
    h[:, :, 1::2, 1::2] = low + high[0] + high[1] + high[2]
    return F.pixel_unshuffle(h, 2)


def _turned(x: Tensor) -> Tensor:
    y = x * 2
    last = y.permute(0, 2, 3, 1)
    last[..., :2] = last[..., 2:4] + 1
    flat = y.view(y.shape[0], y.shape[1], -1)
    flat[:, 4] += flat[:, 5]
    return y + last.permute(0, 3, 1, 2)


def _siblings(x: Tensor) -> Tensor:
    y = x * 1
    first, second = y.chunk(2, 1)
    whole, row = y.flatten(1), y[:, 1, 2]
    F.relu(first, inplace=True)
    second.fill_(0.3)
    y[:, 1].mul_(3)
    return torch.cat([first, second], 1) + whole.view(x.shape) + row[:, None, None]


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [5, 0]] = y[:, [1, 3]] * 2
    y[..., torch.tensor([0, 4])] = 0.5
    y[0, 2] = torch.arange(6.0)
    y[:, -1, 1:3, -2:] = x[:, :1, 1:3, :2].squeeze(1)
    y[..., 1::3] = y[..., ::3]
    y[:, :, y.shape[2] // 2] = y[:, :, y.size(2) - 1, : y.shape[3]]
    y[:, 2:4].requires_grad_(False)
    return y


def _masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0.5] = 0.5
    y[x < -0.5] = x.mean()
    y[:, :2][y[:, :2] > 0.2] = 0
    return y


def _hue(x: Tensor) -> Tensor:
    """The hue of colours as most networks write it: how many values a mask picks depends on the picture."""
    red, green, blue = x[:, :3].sigmoid().unbind(1)
    value, least = x[:, :3].sigmoid().max(1)[0], x[:, :3].sigmoid().min(1)[0]
    hue = torch.zeros_like(value)
    hue[blue == value] = 4.0 + ((red - green) / (value - least + 0.1))[blue == value]
    hue[green == value] = 2.0 + ((blue - red) / (value - least + 0.1))[green == value]
    hue[red == value] = ((green - blue) / (value - least + 0.1))[red == value] % 6
    return x + hue[:, None]


def _whole(x: Tensor) -> Tensor:
    y = x.clone()
    y.lerp_(x.flip(1), 0.3).addcmul_(x, x, value=0.1)
    y.sub_(x.flip(2), alpha=0.5)
    torch.zeros_like(x).copy_(y)
    y[:, 0].zero_()
    y[:, 1].fill_(value=0.2)
    return y.fmod_(0.7) + x.clone().index_fill_(1, torch.tensor([1, 3]), 0.2)


def _loop(x: Tensor) -> Tensor:
    found = torch.empty_like(x)
    for channel in range(x.shape[1]):
        found[:, channel] = x[:, channel] * channel + (found[:, channel - 1] if channel else 0)
    return found


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__.strip("_"): function
    for function in (_normalized, _wavelet, _turned, _siblings, _put, _masked, _hue, _whole, _loop)
}


class Through(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("fixed", [True, False], ids=["constants", "all"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_trace_has_the_numbers_and_no_writes(name: str, fixed: bool) -> None:
    net, samples = Through(CASES[name]), torch.randn(2, 2, 8, 6, 6)
    constants = Constants(net, samples[:1])
    with torch.no_grad():
        if fixed:
            with constants, Portable(), Writes(constants):
                traced = torch.jit.trace(net, samples[0], check_trace=False)
        else:
            with Portable(), Writes():
                traced = torch.jit.trace(net, samples[0], check_trace=False)
        torch.testing.assert_close(traced(samples[1].clone()), net(samples[1].clone()))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    by_tensor = {"aten::copy_", "aten::index_put_"} if name == "put" and not fixed else set()  # of the input, perhaps
    assert {kind for kind in kinds if kind.endswith("_")} == by_tensor


class All(nn.Module):
    """The functions beside each other, behind a write into the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(8 * len(CASES), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(F.adaptive_avg_pool2d(x.sub_(0.4), 6)))
        found = [torch.tanh(function(y)) for function in CASES.values()]
        return F.interpolate(self.mix(torch.cat(found, 1)), size=x.shape[2:])


def test_every_target_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_targets(save_own(All, tmp_path, monkeypatch), tmp_path)


def test_what_is_picked_is_a_tensor_where_it_must_be() -> None:
    x = torch.randn(3, 4)
    mask = x > 0
    with Portable():
        found = x[mask]
        assert isinstance(found, Picked)
        assert isinstance(2 - found.abs() / 3, Picked)
        picked = [found.sum(), torch.cat([found, found * 2]), found[found > 1], found + torch.ones(int(mask.sum()))]
        picked += [torch.stack(list(found)), 2 ** found.tensor(), torch.maximum(found, x[mask] * 2).tensor()]
        assert (found.shape, len(found), found.dtype) == ((int(mask.sum()),), int(mask.sum()), torch.float32)
    plain = x[mask]
    expected = [plain.sum(), torch.cat([plain, plain * 2]), plain[plain > 1], plain + 1]
    for got, wanted in zip(picked, [*expected, plain, 2**plain, torch.maximum(plain, plain * 2)], strict=True):
        assert torch.equal(got.tensor() if isinstance(got, Picked) else got, wanted)
