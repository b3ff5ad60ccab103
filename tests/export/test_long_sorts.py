"""Sorts of more values than TensorRT takes at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.long_sorts import MOST, split_long_sorts
from export.parity import parity
from export.registry import get_target
from models.artifact import save_network
from models.registry import create_model
from models.spec import Precision


def sorting(shape: list[int | str], kept: int, kind: int = TensorProto.FLOAT, **given: int) -> ModelProto:
    """Network of one TopK."""
    ends = [helper.make_tensor_value_info("x", kind, shape)]
    ends += [
        helper.make_tensor_value_info(name, value, None) for name, value in (("v", kind), ("i", TensorProto.INT64))
    ]
    constants = [numpy_helper.from_array(np.array([kept]), "k")]
    nodes = [helper.make_node("TopK", ["x", "k"], ["v", "i"], name="sort", **given)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def answers(model: ModelProto, x: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {"x": x})
    return found


@pytest.mark.parametrize(
    ("shape", "kept", "given"),
    [
        ([1, 4096], 4096, {"largest": 0}),  # no remainder
        ([2, 3, 4099], 4000, {}),  # a prime number
        ([2, 6000, 3], 6000, {"axis": 1}),  # an odd number of blocks
        ([8000], 8000, {"axis": 0, "largest": 0}),
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_the_order_is_the_same(shape: list[int | str], kept: int, given: dict[str, int], kind: int) -> None:
    """Of equal values too: each is there several times."""
    model = sorting(shape, kept, kind, **given)
    x = np.random.default_rng(0).integers(-300, 300, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    expected = answers(model, x)
    assert split_long_sorts(model) == 1
    sizes = [numpy_helper.to_array(item).max() for item in model.graph.initializer if item.name in lengths(model)]
    assert max(sizes) <= MOST
    for one, other in zip(answers(model, x), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def lengths(model: ModelProto) -> set[str]:
    return {node.input[1] for node in model.graph.node if node.op_type == "TopK"}


@pytest.mark.parametrize(("shape", "kept"), [([1, 9000], MOST), (["n", 9000], 9000)])
def test_what_fits_or_has_no_fixed_shape_stays(shape: list[int | str], kept: int) -> None:
    model = sorting(shape, kept)
    before = model.SerializeToString()
    assert split_long_sorts(model) == 0
    assert model.SerializeToString() == before


FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
    def forward(self, x):
        y = self.first(x).flatten(2)
        ranks = torch.argsort(torch.argsort(y.mean(1)))
        return self.last((y * (ranks[:, None] / ranks.shape[-1])).view(len(x), 4, *x.shape[2:]))
"""


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_network_that_sorts_its_pixels_is_built(precision: Precision, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "net.py").write_text(FACTORY)
    name = f"{tmp_path / 'net.py'}:Net"
    network = save_network(create_model(name, task="image"), tmp_path / "net.safetensors", model=name, task="image")
    row = get_target("tensorrt").load()
    made = row.export(network, tmp_path / "a.engine", precision=precision, input_size=(64, 64))
    if precision is Precision.FP32:  # near values change places in half precision
        assert parity(network, made, threads=1).passed
    import onnx

    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "a.engine.onnx").graph.node)
    assert kinds["TopK"] > 2
