"""Which module computes is known inside of every forward pass, also after one that failed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.running_module import RunningModule


class Reporting(nn.Module):
    """Writes down which module is said to compute, before and after its children."""

    def __init__(self, *children: nn.Module, fails: bool = False) -> None:
        super().__init__()
        self.inner = nn.ModuleList(children)
        self.fails = fails
        self.seen: list[str] = []
        self.running: RunningModule | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Pass ``x`` of any shape through the children."""
        if self.running is not None:
            self.seen.append(self.running.name)
        for child in self.inner:
            x = child(x)
        if self.running is not None:
            self.seen.append(self.running.name)
        if self.fails:
            raise ValueError("fails")
        return x


def test_names_the_innermost_module() -> None:
    leaf = Reporting()
    net = Reporting(nn.Identity(), leaf)
    running = net.running = leaf.running = RunningModule(net)
    net(torch.zeros(1))
    assert leaf.seen == ["inner.1", "inner.1"]
    assert net.seen == ["", ""]
    assert running.name == ""


def test_recovers_from_a_pass_that_fails() -> None:
    leaf = Reporting(fails=True)
    net = Reporting(leaf)
    running = RunningModule(net)
    with pytest.raises(ValueError, match="fails"):
        net(torch.zeros(1))
    assert running.name == ""


def test_close_removes_the_hooks() -> None:
    leaf = Reporting()
    net = Reporting(leaf)
    leaf.running = RunningModule(net)
    leaf.running.close()
    net(torch.zeros(1))
    assert leaf.seen == ["", ""]
