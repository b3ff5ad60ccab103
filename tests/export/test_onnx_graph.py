"""The last touch on ONNX graphs."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from export.onnx_graph import share_constants  # noqa: E402

TABLE = np.random.default_rng(0).uniform(size=(1, 1024)).astype(np.float32)


def model_of(*constants: np.ndarray, inner: int | None = None, given: tuple[str, ...] = ()) -> object:
    """``x`` plus each constant ``cN``; the one numbered ``inner`` in both branches of an If.

    Constants in ``given`` are outputs too.
    """
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes, last = [], "x"
    for index in range(len(constants)):
        add = [last, f"c{index}"]
        if index == inner:
            branches = [
                make.make_graph(
                    [make.make_node("Add", add, [f"{branch}_y"])],
                    branch,
                    [],
                    [make.make_tensor_value_info(f"{branch}_y", kind, [1, 1024])],
                )
                for branch in ("then", "else")
            ]
            given_branches = dict(zip(("then_branch", "else_branch"), branches, strict=True))
            nodes.append(make.make_node("If", ["yes"], [f"y{index}"], **given_branches))
        else:
            nodes.append(make.make_node("Add", add, [f"y{index}"]))
        last = f"y{index}"
    tables = [onnx.numpy_helper.from_array(value, f"c{index}") for index, value in enumerate(constants)]
    tables.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    inputs = [make.make_tensor_value_info("x", kind, [1, 1024])]
    outputs = [make.make_tensor_value_info(name, kind, [1, 1024]) for name in (last, *given)]
    graph = make.make_graph(nodes, "graph", inputs, outputs, tables)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)


def names(model: object) -> set[str]:
    return {item.name for item in model.graph.initializer} - {"yes"}


def run(model: object) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(None, {"x": np.ones((1, 1024), np.float32)})
    return answers


@pytest.mark.parametrize("inner", [None, 0, 2])
def test_equal_constants_are_written_once(inner: int | None) -> None:
    model = model_of(TABLE, 2 * TABLE, TABLE, TABLE, inner=inner)
    before, size = run(model), model.ByteSize()
    share_constants(model)
    assert names(model) == {"c0", "c1"}
    assert model.ByteSize() < 0.6 * size
    assert np.array_equal(run(model)[0], before[0])


def test_small_ones_and_outputs_stay() -> None:
    small = np.ones((1, 1), np.float32)
    model = model_of(small, small, TABLE, TABLE, given=("c3",))
    before = run(model)
    share_constants(model)
    assert names(model) == {"c0", "c1", "c2", "c3"}
    assert all(np.array_equal(*pair) for pair in zip(run(model), before, strict=True))


def test_the_same_bytes_of_another_shape_or_kind_are_no_twins() -> None:
    model = model_of(TABLE, TABLE.reshape(1, 1, 1024)[0])
    model.graph.initializer[1].dims[:] = [1024]
    share_constants(model)
    assert names(model) == {"c0", "c1"}
