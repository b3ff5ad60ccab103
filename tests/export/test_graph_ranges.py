"""The smallest and largest value of every tensor of a graph, in no more memory than the graph takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from export.graph_ranges import tensor_extremes

CHAIN = """
import resource
import numpy as np
from onnx import TensorProto, helper
from export.graph_ranges import tensor_extremes

SIDE, LENGTH = 512, 60
names = ["x", *(f"t{i}" for i in range(LENGTH))]
nodes = [helper.make_node("Mul", [one, "half"], [other]) for one, other in zip(names, names[1:])]
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, SIDE, SIDE]) for name in (names[0], names[-1])]
half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [half])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
feeds = [{"x": np.ones((1, 8, SIDE, SIDE), np.float32)}]
tensor_extremes(model, [])  # what importing the runtime takes does not count
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = tensor_extremes(model, feeds)
assert found["t3"] == ((0.0625,), (0.0625,)), found["t3"]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture
def graph() -> Any:
    from onnx import TensorProto, helper

    def value(name: str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, [1, 2, 3])

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [-2.0])
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
    ]
    made = helper.make_graph(nodes, "g", [value("x")], [value("y")], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_extremes_of_every_float_tensor_of_each_run(graph: Any) -> None:
    runs = [np.linspace(0.0, 1.2, 6, dtype=np.float32).reshape(1, 2, 3) * scale for scale in (1, 3)]
    before = graph.SerializeToString()
    found = tensor_extremes(graph, [{"x": run} for run in runs])
    assert found.keys() == {"x", "scaled", "y"}  # neither the weight nor what is no float
    assert np.allclose(found["x"], [[0.0, 0.0], [1.2, 3.6]])
    assert np.allclose(found["scaled"], [[-2.4, -7.2], [0.0, 0.0]])
    assert np.allclose(found["y"], [[-2.0, -7.0], [0.0, 0.0]])
    assert graph.SerializeToString() == before
    assert tensor_extremes(graph, []) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_tensors_are_not_kept_until_the_end() -> None:
    """Sixty tensors of 8 MB: 480 MB if each waited for its extremes until the end of the run."""
    done = subprocess.run([sys.executable, "-c", CHAIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 250
