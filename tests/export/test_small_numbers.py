"""Small numbers that a network adds below a line are in the file: a black pixel is no reason for NaN."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_networks import save_own
from torch import Tensor, nn

from export.golden import random_photo
from export.parity import parity
from export.registry import get_target
from models.spec import Precision


class Normalized(nn.Module):
    """Divides by norms that are 0 where a picture is black."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y / (y.abs().sum(1, keepdim=True) + 1e-12) + y.square() / (y.square().sum(1, keepdim=True) + 1e-9)


@pytest.mark.parametrize(
    ("target", "module"),
    [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", "tensorrt_rtx"), ("coreml", "coremltools")],
)
def test_black_pixels_stay_numbers(target: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    row, source = get_target(target), save_own(Normalized, tmp_path, monkeypatch)
    photo = random_photo((32, 32), seed=0)
    photo[..., :16] = 0
    assert bool(torch.isfinite(Normalized()(photo)).all())
    made = row.load().export(source, tmp_path / f"n{row.suffix}", precision=Precision.FP32, input_size=(32, 32))
    assert parity(source, made, [photo], threads=1).passed
