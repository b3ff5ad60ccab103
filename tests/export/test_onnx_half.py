"""FP16 graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from models.artifact import Artifact
from models.errors import UsageError
from models.spec import Precision, SizeRequirements, TensorSpec

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.contract import Contract, contract_of  # noqa: E402
from export.onnx_half import to_half  # noqa: E402
from export.to_onnx import float_onnx  # noqa: E402

Exporter = Callable[..., Artifact]
SPEC = TensorSpec("input", (1, 1, 4, 4), value_range=(0.0, 1.0))
CONTRACT = Contract("m", "colorize", Precision.FP16, (SPEC,), (SPEC,), SizeRequirements(), (4, 4), False)


def chain(*nodes: tuple[str, float]) -> object:
    """A graph of elementwise operations with a constant each: ("Mul", 3.0), ..."""
    made, constants, last = [], [], "input"
    for index, (kind, value) in enumerate(nodes):
        out = "output" if index == len(nodes) - 1 else f"t{index}"
        constants.append(numpy_helper.from_array(np.float32([[[[value]]]]), f"c{index}"))
        made.append(helper.make_node(kind, [last, f"c{index}"], [out], name=f"n{index}"))
        last = out
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("input", "output")]
    graph = helper.make_graph(made, "chain", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: object, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def test_weights_are_half_and_the_boundary_is_single(exported: Exporter) -> None:
    made = exported("onnx", Precision.FP16)
    model = onnx.load(made.path)
    types = Counter(item.data_type for item in model.graph.initializer if item.name.endswith((".weight", ".bias")))
    assert set(types) == {TensorProto.FLOAT16}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 2
    assert made.path.stat().st_size < 0.7 * exported("onnx").path.stat().st_size
    assert made.metadata["kept_fp32"] == {}


def test_what_would_overflow_stays_in_single_without_a_detour() -> None:
    model = chain(("Mul", 0.5), ("Mul", 1e4), ("Mul", 100.0), ("Mul", 1e-6), ("Mul", 0.25))
    half, kept = to_half(model, CONTRACT)
    assert kept == {"n2": "range", "n3": "range"}  # one writes 500000, the other reads it
    x = np.full((1, 1, 4, 4), 0.75, np.float32)
    assert np.allclose(run(half, x), run(model, x), rtol=2e-3)
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    produced = {node.output[0]: node for node in half.graph.node}
    assert not [node for node in casts if node.input[0] in produced and produced[node.input[0]].op_type == "Cast"]


def test_two_kept_nodes_may_read_one_tensor(tiny_student: Artifact) -> None:
    model = float_onnx(tiny_student, input_size=(64, 64))
    contract = contract_of(tiny_student, precision=Precision.FP16, input_size=(64, 64), dynamic=False)
    half, kept = to_half(model, contract, keep=("encoder.0", "encoder.1", "head"))
    assert {"head", "encoder.0.0.conv1.0"} <= set(kept)
    singles = [i.name for i in half.graph.initializer if i.data_type == TensorProto.FLOAT and ".weight" in i.name]
    assert sorted(singles) == sorted(f"{name}.weight" for name in kept)
    x = np.random.default_rng(0).random((1, 1, 64, 64), np.float32)
    assert np.allclose(run(half, x), run(model, x), atol=2e-3)


def test_operators_that_sum_or_exponentiate_stay_in_single() -> None:
    half, kept = to_half(chain(("Mul", 0.5), ("Pow", 2.0)), CONTRACT)
    assert kept == {"n1": "Pow"}
    x = np.full((1, 1, 4, 4), 0.5, np.float32)
    assert np.allclose(run(half, x), 0.0625, rtol=1e-3)


def test_layer_that_does_not_exist_is_refused(tiny_student: Artifact) -> None:
    model = float_onnx(tiny_student, input_size=(64, 64))
    contract = contract_of(tiny_student, precision=Precision.FP16, input_size=(64, 64), dynamic=False)
    with pytest.raises(UsageError, match=r"keep_fp32: expected stem\.0 \| .*, got 'hed'; fix: use the name"):
        to_half(model, contract, keep=("hed",))
