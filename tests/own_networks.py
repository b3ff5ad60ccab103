"""Networks of a user's own: their factory in a module that lives as long as the test."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.parity import check_parity
from export.registry import get_target, list_targets
from models.artifact import Artifact, save_network
from models.errors import MissingExtraError
from models.spec import Precision

_MODULE = "own_networks_of_a_test"


class Fitted(nn.Module):
    """A colour mapping that is fitted inside: its equations lose what FP32 rounds many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        terms = torch.cat([torch.ones_like(x[:, :1]), x, x * x, x * x.roll(1, 1)], 1).flatten(2)
        gram = terms @ terms.transpose(1, 2) + 0.01 * torch.eye(10)
        fit = torch.linalg.solve(gram, terms @ self.wanted(x).flatten(2).transpose(1, 2))
        return (fit.transpose(1, 2) @ terms).reshape(x.shape)


class Overwriting(nn.Module):
    """Computes a part of its channels over the values that its backward needs, as PLKSR does when it ships.

    Args:
        in_place: Over them; else beside them, the same numbers.
    """

    def __init__(self, *, in_place: bool = True) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.in_place:
            y[:, :4] = self.part(y[:, :4])
        else:
            y = torch.cat([self.part(y[:, :4]), y[:, 4:]], 1)
        return self.last(y)  # type: ignore[no-any-return]


class Descending(nn.Module):
    """Takes a step down a learned potential, as gradient-step denoisers do: its forward computes a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(self.potential(x).square().sum(), x, create_graph=True)
        return x - slope


def save_own(
    build: Callable[[], nn.Module], folder: Path, monkeypatch: pytest.MonkeyPatch, *, task: str = "image"
) -> Artifact:
    """Save in ``folder`` what ``build`` returns, in eval mode, weights of seed 0, as ``module:make`` of ``task``."""
    module = types.ModuleType(_MODULE)
    module.make = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, _MODULE, module)
    torch.manual_seed(0)
    return save_network(build().eval(), folder / "own.safetensors", model=f"{_MODULE}:make", task=task)


#: Every target once.
IN_FP32 = tuple((name, Precision.FP32) for name in list_targets())


def check_in_targets(
    source: Artifact,
    folder: Path,
    jobs: Sequence[tuple[str, Precision]] = IN_FP32,
    *,
    input_size: tuple[int, int] = (32, 32),
) -> None:
    """Export ``source`` to each target and precision of ``jobs`` and check parity.

    In one test, so that PyTorch's exporter, which takes longest, goes through it once for the three targets that read
    ONNX. Where a converter is not installed, the test skips behind the others.
    """
    absent = []
    for target, precision in jobs:
        row = get_target(target)
        path = folder / f"{target}-{precision}{row.suffix}"
        try:
            made = row.load().export(source, path, precision=precision, input_size=input_size)
        except MissingExtraError as error:
            absent.append(str(error))
        else:
            assert check_parity(source, made, threads=1).passed, (target, precision)
    if absent:
        pytest.skip("; ".join(absent))
