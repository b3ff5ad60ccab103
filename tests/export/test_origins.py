"""What comes from neither input nor weights is a constant of the trace, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_networks import save_own
from torch import Tensor, nn

from export.origins import CannotFold, Constants
from export.parity import check_parity
from export.registry import get_target
from models.spec import Precision


class Built(nn.Module):
    """Masks, grids and sums that are made on the way, and written into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("tile", torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        count = torch.zeros(h, w)
        count += 1
        y = self.conv(x * count)
        count += 1
        y = y + count * x
        parts = torch.zeros_like(x)
        parts[:, 0] = x[:, 1]
        parts[:, 1] += 0.5
        parts[:, 2] = self.tile.repeat(h // 4, w // 4)
        mask = torch.ones(h, w, dtype=torch.bool).triu(3)
        mask[2:5] = False
        rows = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[0].float() / h
        nearest = (y[:, :, None] - y[:, None]).square().sum((3, 4)).argmin(1, keepdim=True)
        chosen = torch.zeros(1, 3, 3).scatter_(1, nearest, 1)
        y.masked_fill_(mask[None, 1:2], 0.1)
        return y + parts.masked_fill(mask, 0.2) * torch.sin(rows) + chosen.mean() + torch.eye(h, w)


class Through(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(1, 3, x.shape[2], x.shape[3])
        part = whole[:, 1]
        part.copy_(x[:, 0])
        return whole + x


@pytest.mark.parametrize("net", [Built, Through])
def test_networks_that_build_their_masks_convert(
    net: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coremltools")
    source = save_own(net, tmp_path, monkeypatch)
    made = (
        get_target("coreml")
        .load()
        .export(source, tmp_path / "n.mlpackage", precision=Precision.FP32, input_size=(32, 64))
    )
    assert check_parity(source, made, threads=1).passed


def test_the_trace_holds_constants_and_follows_what_is_written() -> None:
    net, x, other = Built().eval(), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    with torch.no_grad(), Constants(net, (x,)):
        traced = torch.jit.trace(net, (x,), check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), net(other))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not kinds & {"aten::arange", "aten::triu", "aten::meshgrid", "aten::sin", "aten::eye", "aten::fill_"}
    assert "aten::repeat" in kinds  # of a buffer


def test_random_numbers_are_no_constants() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(3, 1, 1) * 2

    x = torch.rand(1, 3, 4, 4)
    with torch.no_grad(), Constants(Noisy(), (x,)):
        traced = torch.jit.trace(Noisy(), (x,), check_trace=False)
    assert "aten::randn" in str(traced.graph)


def test_what_is_written_through_a_view_of_a_constant_is_told() -> None:
    x = torch.rand(1, 3, 4, 4)
    with torch.no_grad(), Constants(Through(), (x,)), pytest.raises(CannotFold):
        torch.jit.trace(Through(), (x,), check_trace=False)
