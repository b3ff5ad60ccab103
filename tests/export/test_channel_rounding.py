"""What ONNX Runtime rounds behind a convolution: channels of their own range, last norms, transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from export.channel_rounding import fill_levels
from export.qdq_lowering import lower_qdq
from export.quantization import Quantization
from models.artifact import save_tensors

SIDE = 16


def graph(steps: Sequence[Any], weights: dict[str, np.ndarray[Any, Any]], out: str) -> Any:
    """A graph from ``input`` (1, 4, 16, 16) to ``out``."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, None, None]) for name in ("input", out)]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    parts = helper.make_graph(list(steps), "g", ends[:1], ends[1:], constants)
    return helper.make_model(parts, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def conv(name: str, source: str, kind: str = "Conv", **attributes: Any) -> Any:
    return helper.make_node(kind, [source, f"{name}.weight"], [name], name=name, **attributes)


def norm(name: str, source: str) -> Any:
    return helper.make_node("InstanceNormalization", [source, "scale", "shift"], [name], name=name)


def filters(seed: int, strength: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(seed).standard_normal((4, 4, 1, 1))
    return drawn * np.asarray(strength).reshape(4, 1, 1, 1)


CONSTANTS = {"scale": np.ones(4), "shift": np.zeros(4)}


def record(folder: Path) -> Quantization:
    path = folder / "calibration.safetensors"
    save_tensors({"input": torch.rand(6, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}, path)
    return Quantization(calibration=path, samples=6)


def answer(model: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def error(model: Any, folder: Path, layers: Sequence[str]) -> tuple[float, Any]:
    """Root mean square of what INT8 costs, over that of the output; and the lowered graph."""
    items = record(folder)
    lowered = lower_qdq(model, items, "onnxruntime", {name: name for name in layers})
    x = items.inputs()[:1]
    wanted = answer(model, x)
    return float(np.sqrt(np.square(answer(lowered, x) - wanted).mean() / np.square(wanted).mean())), lowered


def scaled(model: Any) -> set[str]:
    """Return the convolutions whose channels have a scale each."""
    return {name.partition(".")[0] for node in model.graph.node for name in node.input if ".channel_scale" in name}


def test_a_norm_behind_a_convolution_gets_its_weak_channels_as_they_are(tmp_path: Path) -> None:
    steps = [conv("a", "input"), norm("n", "a"), conv("b", "n")]
    weights = {"a.weight": filters(1, (1, 1, 1, 0.004)), "b.weight": filters(2), **CONSTANTS}
    lost, lowered = error(graph(steps, weights, "b"), tmp_path, ["a", "b"])
    assert lost < 0.02  # 0.3 with one scale for all channels: the weak one is nothing but a few levels then
    back = next(node for node in lowered.graph.node if "a.channel_scale" in node.input)
    assert back.op_type == "DequantizeLinear"
    assert [item.i for item in back.attribute] == [1]


@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_what_an_integer_operator_may_read_keeps_one_scale(tmp_path: Path, kind: str) -> None:
    """A product or a sum between two roundings runs on integers, which know no scale a channel."""
    steps = [
        conv("a", "input"),
        conv("s", "input"),
        helper.make_node(kind, ["a", "s"], ["m"], name="m"),
        conv("b", "m"),
    ]
    steps += [norm("n", "a"), helper.make_node("Add", ["b", "n"], ["sum"], name="sum"), conv("c", "sum")]
    weights = {f"{name}.weight": filters(seed) for seed, name in enumerate("asbc")}
    lost, lowered = error(graph(steps, {**weights, **CONSTANTS}, "c"), tmp_path, list("asbc"))
    assert lost < 0.03
    assert scaled(lowered) == {"c"}  # the output


def test_one_scale_is_enough_where_no_norm_reads(tmp_path: Path) -> None:
    gate = [helper.make_node("Sigmoid", ["a"], ["s"], name="s"), helper.make_node("Mul", ["a", "s"], ["m"], name="m")]
    weights = {"a.weight": filters(1), "b.weight": filters(2)}
    lost, lowered = error(graph([conv("a", "input"), *gate, conv("b", "m")], weights, "b"), tmp_path, ["a", "b"])
    assert lost < 0.03
    assert scaled(lowered) == {"b"}  # the output


def test_a_norm_that_is_written_out_counts(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["a", "axes"], ["mean"], name="mean", keepdims=1)
    steps = [conv("a", "input"), mean, helper.make_node("Sub", ["a", "mean"], ["n"], name="n"), conv("b", "n")]
    model = graph(steps, {"a.weight": filters(1), "b.weight": filters(2)}, "b")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    lost, lowered = error(model, tmp_path, ["a", "b"])
    assert lost < 0.03
    assert "a" in scaled(lowered)


def test_filters_that_two_layers_share_are_not_rescaled() -> None:
    steps = [conv("a", "input"), norm("n", "a"), helper.make_node("Conv", ["n", "a.weight"], ["c"], name="c")]
    model = graph(steps, {"a.weight": filters(1), **CONSTANTS}, "c")
    ranges = {name: ([-1.0] * 4, [1.0] * 4) for name in "ac"}
    assert not fill_levels(model, ranges, ("a", "c"))
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), filters(1).astype(np.float32))


def test_a_last_convolution_before_a_norm_stays_float(tmp_path: Path) -> None:
    last = [conv("a", "input"), helper.make_node("Relu", ["a"], ["r"], name="r"), conv("b", "r"), norm("n", "b")]
    model = graph(last, {"a.weight": filters(1), "b.weight": filters(2), **CONSTANTS}, "n")
    _, lowered = error(model, tmp_path, ["a", "b"])
    assert next(node for node in lowered.graph.node if node.name == "b").input[1] == "b.weight"
    assert next(node for node in lowered.graph.node if node.name == "a").input[1] != "a.weight"


def test_a_transposed_convolution_keeps_its_weights_in_8_bits_and_rounds_nothing_else(tmp_path: Path) -> None:
    steps = [conv("a", "input"), norm("n", "a"), conv("up", "n", "ConvTranspose", strides=[2, 2]), norm("m", "up")]
    steps.append(conv("b", "m"))
    weights = {"a.weight": filters(1), "up.weight": filters(2), "b.weight": filters(3), **CONSTANTS}
    lost, lowered = error(graph(steps, weights, "b"), tmp_path, ["a", "up", "b"])
    assert lost < 0.02
    up = next(node for node in lowered.graph.node if node.name == "up")
    makers = {name: node for node in lowered.graph.node for name in node.output}
    assert makers[up.input[0]].op_type == "InstanceNormalization"
    stored = {item.name: item for item in lowered.graph.initializer}
    assert stored[makers[up.input[1]].input[0]].data_type == TensorProto.INT8
    assert "up.weight" not in stored
