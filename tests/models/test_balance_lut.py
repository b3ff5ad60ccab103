"""The student of colour balance: its slicing against the look-up tables of ``models.cube``."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.balance_lut import balance_lut
from models.cube import Cube
from models.layers import resize_bilinear


def _net(nodes: int = 4, std: float = 0.1) -> torch.nn.Module:
    torch.manual_seed(0)
    net = balance_lut(widths=(4, 8), basis=4, nodes=nodes, thumbnail=16)
    torch.nn.init.normal_(net.tables.weight, std=std)
    return net.eval()


def test_the_graph_applies_the_table_that_it_predicts() -> None:
    net = _net(nodes=5)
    rgb = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tables, out = net.table(rgb), net(rgb)
    assert tables.shape == (2, 3, 5, 5, 5)
    for photo, table, got in zip(rgb, tables, out, strict=True):
        wanted = Cube(table).apply(photo[None], interpolation="trilinear").clamp(0, 1)
        torch.testing.assert_close(got[None], wanted, atol=1e-5, rtol=0)
    assert float((out - rgb).abs().max()) > 0.01


def test_without_its_tables_it_is_the_identity() -> None:
    rgb = torch.rand(1, 3, 33, 17)
    with torch.no_grad():
        torch.testing.assert_close(_net(std=0.0)(rgb), rgb, atol=1e-5, rtol=0)


def test_the_table_does_not_depend_on_the_size_of_a_smooth_photo() -> None:
    net = _net()
    small = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    large = functional.interpolate(small, size=(96, 128), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(net.table(large), net.table(small), atol=2e-3, rtol=0)


def test_resizing_is_that_of_interpolate() -> None:
    x = torch.rand(2, 3, 15, 40, generator=torch.Generator().manual_seed(2))
    for size in ((8, 8), (15, 40), (31, 64)):
        wanted = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize_bilinear(x, size), wanted)
