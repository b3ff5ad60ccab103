"""Muon: orthogonal steps for weights, AdamW's for everything else."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from optimize.muon import Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(16, 144), (64, 64), (150, 576), (256, 64), (128, 1152)], ids=str)
def test_singular_values_of_each_block_are_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
    turned = orthogonal(matrix)
    rows = turned if shape[0] <= shape[1] else turned.T
    assert turned.shape == matrix.shape
    for block in rows.chunk(-(-rows.shape[0] // 64)):
        values = torch.linalg.svdvals(block)
        assert float(values.median()) > 0.6
        assert float(values.max()) < 1.3
    assert float((turned * matrix).sum()) > 0


def test_what_is_made_orthogonal() -> None:
    assert is_matrix(nn.Conv2d(3, 16, 3).weight)
    assert is_matrix(nn.Linear(16, 64).weight)
    assert is_matrix(nn.ConvTranspose2d(32, 16, 2, 2).weight)
    for small in (nn.Conv2d(64, 3, 3).weight, nn.Conv2d(32, 32, 3, groups=32).weight, nn.Conv2d(16, 16, 3).bias):
        assert small is not None
        assert not is_matrix(small)


def test_all_else_takes_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1))
    theirs = copy.deepcopy(ours)
    optimizers = [
        Muon(ours.parameters(), lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1),
    ]
    for step in range(5):
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_step_of_a_weight_is_as_large_in_every_direction() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = Muon(layer.parameters(), lr=1e-3, weight_decay=0.0)
    (layer.weight.flatten(1) * torch.logspace(0, -2, 32)[:, None] * torch.randn(32, 288)).sum().backward()
    optimizer.step()
    moved = (layer.weight.detach() - before).flatten(1)
    assert float(moved.square().mean().sqrt()) == pytest.approx(4e-4, rel=0.3)
    rows = moved.norm(dim=1)
    assert float(rows.max() / rows.min()) < 2.5  # of the gradient it is 100


def test_it_is_faster_than_adamw_on_plain_convolutions() -> None:
    """Sharpening back a blurred picture with four convolutions without norms."""

    def loss_after(kind: type[torch.optim.Optimizer]) -> float:
        torch.manual_seed(0)
        widths = (3, 16, 16, 16)
        layers = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3, 1, 1), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Conv2d(16, 3, 3, 1, 1))
        optimizer = kind(net.parameters(), lr=2e-3)  # type: ignore[call-arg]
        for step in range(60):
            x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            loss = functional.l1_loss(net(functional.avg_pool2d(x, 3, 1, 1)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert loss_after(Muon) < loss_after(torch.optim.AdamW)
