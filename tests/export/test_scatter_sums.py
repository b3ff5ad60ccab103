"""Sums by scatter as products, for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper
from own_networks import save_own
from torch import Tensor, nn

from export.parity import parity
from export.registry import get_target
from export.scatter_sums import write_scatter_sums
from models.spec import Precision


def scattering(data: list[int | str], count: int, axis: int, kind: int, reduction: str = "add") -> ModelProto:
    """Network of one ScatterElements."""
    index = [*data]
    index[axis] = count
    kinds = {"d": (kind, data), "i": (TensorProto.INT64, index), "u": (kind, index)}
    ends = [helper.make_tensor_value_info(name, *value) for name, value in kinds.items()]
    node = helper.make_node("ScatterElements", ["d", "i", "u"], ["y"], name="s", axis=axis, reduction=reduction)
    graph = helper.make_graph([node], "g", ends, [helper.make_tensor_value_info("y", kind, data)])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def answer(model: ModelProto, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_the_sums_are_the_same(axis: int, kind: int) -> None:
    sides: list[int | str] = [5, 6, 7]
    model, rng = scattering(sides, 40, axis, kind), np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    index = [5, 6, 7]
    index[axis] = 40
    feeds = {"d": rng.integers(0, 9, sides).astype(dtype), "u": rng.integers(0, 9, index).astype(dtype)}
    feeds["i"] = rng.integers(0, sides[axis], index)
    expected = answer(model, feeds)
    assert write_scatter_sums(model) == 1
    assert "ScatterElements" not in {node.op_type for node in model.graph.node}
    np.testing.assert_array_equal(answer(model, feeds), expected)


@pytest.mark.parametrize(
    ("sides", "count", "reduction"), [(["n", 4], 3, "add"), ([9000, 9000], 10, "add"), ([4, 4], 3, "none")]
)
def test_others_stay(sides: list[int | str], count: int, reduction: str) -> None:
    model = scattering(sides, count, 1, TensorProto.FLOAT, reduction)
    before = model.SerializeToString()
    assert write_scatter_sums(model) == 0
    assert model.SerializeToString() == before


class Counting(nn.Module):
    """Brightens by the share of a picture's pixels that are as bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = (x.mean(1, keepdim=True).flatten(1).clamp(0, 1) * 7.99).long()
        counts = torch.zeros(len(x), 8).scatter_add(1, levels, torch.ones_like(levels).float())
        share = counts.gather(1, levels).view(len(x), 1, *x.shape[2:]) / levels.shape[1]
        return self.conv(torch.cat([x, share], 1))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_network_that_counts_is_built(precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    row, source = get_target("tensorrt"), save_own(Counting, tmp_path, monkeypatch)
    made = row.load().export(source, tmp_path / "a.engine", precision=precision, input_size=(64, 64))
    assert parity(source, made, threads=1).rms is not None
    if precision is Precision.FP32:  # near a step, a level is another one in half precision
        assert parity(source, made, threads=1).passed
