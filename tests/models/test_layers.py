"""Shared blocks, and layers that take the shape of stored weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import CheckpointError
from models.layers import ConvNormAct, PixelShuffleUpsample, icnr_, resize_to, upsample_bilinear


def loads(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Resize and load strictly: every tensor of ``state`` has its place."""
    resize_to(net, state)
    net.load_state_dict(state)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (4, 5)])
def test_conv_norm_act_shape(stride: int, kernel: int) -> None:
    out = ConvNormAct(3, 5, stride=stride, kernel_size=kernel)(torch.randn(2, 3, 16, 24))
    assert out.shape == (2, 5, 16 // stride, 24 // stride)
    assert out.min() >= 0


def test_pixel_shuffle_upsample_starts_as_nearest_upsampling() -> None:
    block = PixelShuffleUpsample(4, 6).eval()
    icnr_(block.conv.weight, block.scale)
    out = block(torch.randn(1, 4, 5, 7))
    assert out.shape == (1, 6, 10, 14)
    coarse = out[:, :, ::2, ::2]
    torch.testing.assert_close(out, functional.interpolate(coarse, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_upsample_bilinear_is_that_of_torch(scale: int) -> None:
    x = torch.randn(2, 3, 5, 9)
    want = functional.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_bilinear(x, scale), want, rtol=0, atol=1e-5)


def test_upsample_bilinear_has_gradients() -> None:
    x = torch.randn(1, 1, 3, 3, requires_grad=True)
    upsample_bilinear(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.sum().item() == pytest.approx(36, rel=1e-5)


class Everything(nn.Module):
    """One layer of each kind that can be resized."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.grouped = nn.Conv2d(channels, channels, 1, groups=2)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.layer_norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.grouped(self.depthwise(self.norm(self.conv(x)))))
        return self.linear(self.layer_norm(y.mean(dim=(2, 3))))


def test_every_kind_of_layer_takes_the_stored_shape() -> None:
    small, large = Everything(4).eval(), Everything(8).eval()
    loads(large, small.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(large(x), small(x))
    assert (large.conv.out_channels, large.norm.num_features, large.linear.in_features) == (4, 4, 4)
    assert (large.depthwise.groups, large.depthwise.in_channels) == (4, 4)
    assert (large.grouped.groups, large.grouped.in_channels, large.up.out_channels) == (2, 4, 4)
    assert large.layer_norm.normalized_shape == (4,)
    assert [tuple(p.shape) for p in large.parameters()] == [tuple(p.shape) for p in small.parameters()]


def test_resized_layers_train() -> None:
    net = Everything(8)
    loads(net, Everything(4).state_dict())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in net.parameters())


def test_equal_shapes_stay_as_they_are() -> None:
    net = Everything(4)
    before = {name: id(tensor) for name, tensor in net.named_parameters()}
    resize_to(net, Everything(4).state_dict())
    assert {name: id(tensor) for name, tensor in net.named_parameters()} == before


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (4, 3, 5, 5)),  # another kernel
        (nn.Conv2d(3, 4, 3), (4, 3)),  # another kind of layer
        (nn.Linear(3, 4), (5, 3)),  # pruning never adds
        (nn.Linear(3, 4), (0, 3)),
    ],
)
def test_a_shape_that_cannot_be_a_pruned_one_is_refused(layer: nn.Module, shape: tuple[int, ...]) -> None:
    message = r"weights '0\.weight': expected shape \(4, 3.* or a pruned one, got .*; fix: load it with the"
    with pytest.raises(CheckpointError, match=message):
        resize_to(nn.Sequential(layer), {"0.weight": torch.zeros(shape)})
