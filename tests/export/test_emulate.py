"""Half precision computed in FP32."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.emulate import rounded  # noqa: E402


def half_graph(kind: str, weight: np.ndarray) -> object:
    """Cast to FP16, twice the operation with ``weight``, cast back."""
    cast = helper.make_node
    nodes = [
        cast("Cast", ["input"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node(kind, ["x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node(kind, ["r", "w"], ["z"]),
        cast("Cast", ["z"], ["output"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8]) for name in ("input", "output")]
    constant = numpy_helper.from_array(weight.astype(np.float16), "w")
    graph = helper.make_graph(nodes, "half", values[:1], values[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: object, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_every_result_is_rounded_as_numpy_rounds(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 1, 8, 8)).astype(np.float32) * 100, rng.normal(size=(1, 1, 8, 8)).astype(np.float32)
    step = np.multiply if kind == "Mul" else np.add
    half = w.astype(np.float16)
    expected = step(np.maximum(step(x.astype(np.float16), half), np.float16(0)), half)
    assert expected.dtype == np.float16
    assert np.array_equal(run(rounded(half_graph(kind, w)), x), expected.astype(np.float32))


def test_the_runtime_alone_would_not_round() -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    model = half_graph("Mul", np.full((1, 1, 1, 1), 0.3333, np.float32))
    graph = rounded(model)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Sub") == 6  # the input and both products; Relu gives no new values
    assert not any(item.data_type == TensorProto.FLOAT16 for item in graph.graph.initializer)
    assert np.array_equal(run(graph, x), run(graph, x).astype(np.float16).astype(np.float32))


def test_matrix_product_rounds_once_after_an_exact_sum() -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=(1, 1, 8, 8)).astype(np.float32) for _ in range(2))
    half = w.astype(np.float16).astype(np.float64)
    first = (x.astype(np.float16).astype(np.float64) @ half).astype(np.float16)
    expected = (np.maximum(first.astype(np.float64), 0) @ half).astype(np.float16)
    got = run(rounded(half_graph("MatMul", w)), x)
    # FP32 sums may fall on the other side of a rounding boundary: one unit in the last place.
    assert np.allclose(got, expected.astype(np.float32), rtol=2**-10, atol=2**-14)
    assert np.mean(got == expected.astype(np.float32)) > 0.9
