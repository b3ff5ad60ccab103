"""Tensors of more than five dimensions: Core ML packages hold none, and compute the same numbers."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_networks import save_own
from torch import Tensor, nn
from torch.nn import functional as F

from export.coreml_quirks import repaired_converter
from export.coreml_ranks import pipeline
from export.mil.evaluate import Evaluator
from export.mil.program import load_model
from export.mil.proto import quiet_coremltools
from export.parity import check_parity
from export.registry import get_target
from export.to_coreml import trace
from models.spec import Precision

pytest.importorskip("coremltools")


class Wide(nn.Module):
    """What networks do with windows, patches and heads, each an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.norm, self.mix = nn.Parameter(torch.rand(2, 1, 1, 4, 3)), nn.LayerNorm((4, 6)), nn.Linear(6, 5)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        p = x.reshape(1, 2, 3, 4, 2, 6).permute(0, 1, 2, 4, 3, 5)  # 1, 2, 3, 2, 4, 6
        half = p[..., :3] * self.gain
        y = [half + half.mean((1, 3), keepdim=True), p.mean((1, 3, 5)), p.sum(2).amax(0), p.amin((1, 2, 3, 4, 5))]
        y += [p * p.mean(2, keepdim=True) + p.amax((1, 3, 5), keepdim=True), p.softmax(2), torch.tanh(p) ** 2]
        y += [torch.matmul(p, p.transpose(-1, -2)), torch.matmul(p, x[0, 0, :6, :5]), torch.matmul(p, p[:, :1].mT)]
        y += [self.norm(p), self.mix(p), p.norm(dim=(1, 5)), torch.where(p > 0.5, p, half[..., :1])]
        y += [torch.cat([p, p * 2], 3), torch.stack([p, -p], 2), torch.stack(p.unbind(4), -1), p.chunk(2, 3)[1]]
        y += [p.flip(2, 4), p.roll((1, 2), (3, 5)), p[:, 1, 1:, :, ::2, -3:], p.repeat(1, 2, 1, 1, 2, 1), p.argmax(5)]
        y += [p.expand(3, 2, 3, 2, 4, 6), p[..., self.order, :], F.pad(p, (1, 2, 0, 1)), p.cumsum(2), p.sort(4)[0]]
        y += [x.unfold(2, 4, 2).unfold(3, 6, 3).mean(-1), torch.einsum("bcxyhw,bdxyhw->bcdxy", p, p), p.unsqueeze(3)]
        rows, deep = self.order.view(4, 1, 1, 1, 1, 1), p[0, 0, :, :, 0]  # 3, 2, 6
        y += [p[0, 0, 0, 0][rows, self.order % 3], deep[rows % 3, self.order % 2, x.argmax(-1)[0, 0, :4, None] % 6]]
        return tuple(value.reshape(-1, value.shape[-1]).float() for value in y)


class Moves(nn.Module):
    """Seven sides in every order of a choice."""

    orders = tuple(permutations(range(7)))[::613]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        wide = x.reshape(2, 3, 2, 2, 2, 2, 3)
        return tuple(wide.permute(*order).reshape(12, 24) for order in self.orders)


def convert(net: nn.Module, folder: Path, x: Tensor) -> Path:
    """Convert a module with several outputs (y0, y1, ...) and save it."""
    import coremltools as ct

    with torch.no_grad():
        count = len(net.eval()(x))
    with quiet_coremltools(), repaired_converter():
        model: Any = ct.convert(
            trace(net, (x,)),
            inputs=[ct.TensorType(name="x", shape=x.shape, dtype=np.float32)],
            outputs=[ct.TensorType(name=f"y{i}", dtype=np.float32) for i in range(count)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=pipeline(),
            skip_model_load=True,
        )
        model.save(str(folder / "wide.mlpackage"))
    return folder / "wide.mlpackage"


@pytest.mark.parametrize("kind", [Wide, Moves])
def test_wide_tensors_are_lowered(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = kind(), torch.rand(1, 2, 12, 12)
    program = load_model(convert(net, tmp_path, x))
    results = Evaluator(program)({"x": x})
    with torch.no_grad():
        for index, expected in enumerate(net(x)):
            torch.testing.assert_close(results[f"y{index}"], expected, atol=1e-5, rtol=1e-4, msg=f"output {index}")
    steps = [item.type for item in program.main.operations if item.type == "transpose"]
    if kind is Moves:
        assert len(steps) <= 2 * len(Moves.orders)


class Patches(nn.Module):
    """A layer in the middle that works on patches, as FFT feed-forward networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.filter = nn.Parameter(torch.rand(3, 1, 1, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cells = self.conv(x).reshape(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
        cells = torch.fft.irfft2(torch.fft.rfft2(cells) * self.filter, s=(8, 8))
        return cells.permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_network_on_patches_keeps_its_layers_apart(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_own(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Patches()), tmp_path, monkeypatch)
    options = {"keep_fp32": "1"} if precision is Precision.FP16 else None
    made = (
        get_target("coreml")
        .load()
        .export(source, tmp_path / "n.mlpackage", precision=precision, input_size=(32, 32), options=options)
    )
    assert check_parity(source, made, threads=1).passed
    products = [item for item in load_model(made.path).main.operations if item.type == "matmul"]
    assert products
    assert all(item.outputs[0].dtype == torch.float32 for item in products)
