"""Folding BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from export.fuse import fold_batch_norm
from models.artifact import Artifact, load_network


def trained_norm(norm: nn.Module) -> nn.Module:
    """Give a norm statistics that are not the trivial ones."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 2.0)
    norm.weight.data.uniform_(0.5, 2.0)
    norm.bias.data.normal_()
    return norm


def norms(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, bias=True),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    ],
    ids=["conv", "conv-bias", "depthwise", "transposed", "transposed-grouped"],
)
def test_folded_layer_computes_the_same(conv: nn.Module) -> None:
    net = nn.Sequential(conv, trained_norm(nn.BatchNorm2d(conv.out_channels)), nn.ReLU()).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold_batch_norm(net)
    x = torch.randn(2, 4, 9, 9)
    assert norms(folded) == []
    assert torch.allclose(folded(x), net(x), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_module_names_stay_and_a_norm_without_convolution_stays(tiny_teacher: Artifact) -> None:
    net = load_network(tiny_teacher)
    folded = fold_batch_norm(net)
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in net.named_modules()]
    assert norms(folded) == [f"decoder.{index}.skip_norm" for index in range(4)]
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(folded(x), net(x), atol=1e-5)


class Shared(nn.Module):
    """One convolution called twice, and one whose result is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = trained_norm(nn.BatchNorm2d(4))
        self.split = nn.Conv2d(4, 4, 1)
        self.norm2 = trained_norm(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(self.conv(x)))
        z = self.split(y)
        return self.norm2(z) + z


def test_shared_layers_are_left_alone() -> None:
    net = Shared().eval()
    folded = fold_batch_norm(net)
    assert norms(folded) == ["norm", "norm2"]
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(folded(x), net(x))


class Untraceable(nn.Module):
    """Looks at its values, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), trained_norm(nn.BatchNorm2d(5)))
        self.loose = trained_norm(nn.BatchNorm2d(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.loose(y) if y.sum() > 0 else self.loose(-y)


def test_network_that_cannot_be_traced_folds_its_sequences() -> None:
    net = Untraceable().eval()
    folded = fold_batch_norm(net)
    assert norms(folded) == ["loose"]
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(folded(x), net(x), atol=1e-5)


def test_a_network_that_keeps_values_is_not_left_with_those_of_the_trace() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.count = nn.Conv2d(3, 3, 1), trained_norm(nn.BatchNorm2d(3)), None

        def forward(self, x: Tensor) -> Tensor:
            if self.count is None:
                self.count = x.shape[0]
            return self.norm(self.conv(x)) if self.count > 0 else x

    net, x = Keeps().eval(), torch.rand(2, 3, 4, 4)
    assert torch.allclose(fold_batch_norm(net)(x), net(x), atol=1e-5)
