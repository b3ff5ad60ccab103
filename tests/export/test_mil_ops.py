"""Each MIL operation against an independent computation: coremltools' own value inference, or numpy by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from export.mil.call import Call
from export.mil.evaluate import OPERATIONS, _merge
from export.mil.program import Operation, Output
from models.errors import ConfigError, UnsupportedError

pytest.importorskip("coremltools")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
Y = RNG.normal(size=(2, 1, 4, 5)).astype(np.float32) + 3
POSITIVE = np.abs(X) + 0.1


def _value(item: Any) -> Any:
    if isinstance(item, str):
        return item
    array = np.asarray(item)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array.copy())


def evaluate(kind: str, **inputs: Any) -> Any:
    """Run one operation of the evaluator on numpy values; a tuple is a MIL tuple."""
    given = {
        key: tuple(_value(item) for item in value) if isinstance(value, tuple) else (_value(value),)
        for key, value in inputs.items()
    }
    call = Call(Operation(kind, "op", given, (Output("y", None),)), lambda item: item, lambda _, value: value)
    result = OPERATIONS[kind](call)
    return result.numpy() if isinstance(result, torch.Tensor) else [part.numpy() for part in result]


def inferred(kind: str, **inputs: Any) -> Any:
    """What coremltools itself computes for an operation on constants."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, types

    with Function({"unused": mb.placeholder(shape=(1,), dtype=types.fp32)}, opset_version=_ios17()):
        result = getattr(mb, kind)(**inputs)
        return [part.val for part in result] if isinstance(result, (list, tuple)) else result.val


def _ios17() -> Any:
    import coremltools

    return coremltools.target.iOS17


CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {"x": X}) for name in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round")],
    *[(name, {"x": X}) for name in ("sign", "sin", "sinh", "square", "tan", "tanh", "relu", "relu6", "sigmoid")],
    *[(name, {"x": X}) for name in ("softplus", "softsign", "identity")],
    *[(name, {"x": np.clip(X, -0.9, 0.9)}) for name in ("acos", "asin", "atanh")],
    *[(name, {"x": POSITIVE}) for name in ("sqrt", "log", "rsqrt", "inverse")],
    *[(name, {"x": X, "y": Y}) for name in ("add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum")],
    *[(name, {"x": X, "y": Y}) for name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")],
    ("pow", {"x": POSITIVE, "y": Y}),
    ("logical_not", {"x": X > 0}),
    *[(name, {"x": X > 0, "y": Y > 3}) for name in ("logical_and", "logical_or", "logical_xor")],
    ("select", {"cond": X > 0, "a": X, "b": 2 * X}),
    ("cast", {"x": X * 10, "dtype": "int32"}),
    ("clip", {"x": X, "alpha": np.float32(-0.3), "beta": np.float32(0.7)}),
    ("threshold", {"x": X, "alpha": np.float32(0.2)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.1)}),
    ("elu", {"x": X, "alpha": np.float32(0.5)}),
    ("clamped_relu", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.9)}),
    ("linear_activation", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.9)}),
    ("scaled_tanh", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.9)}),
    ("sigmoid_hard", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.5)}),
    ("thresholded_relu", {"x": X.copy(), "alpha": np.float32(0.3)}),
    ("prelu", {"x": X, "alpha": np.array([0.1, 0.2, 0.3], np.float32)}),
    ("softplus_parametric", {"x": X, "alpha": np.ones(3, np.float32) * 2, "beta": np.ones(3, np.float32) / 2}),
    *[("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    ("softmax", {"x": X, "axis": 1}),
    ("l2_norm", {"x": X, "epsilon": np.float32(1e-3)}),
    ("layer_norm", {"x": X, "axes": [1, 3], "gamma": X[0, :, 0], "beta": X[1, :, 0], "epsilon": np.float32(1e-3)}),
    *[(f"reduce_{name}", {"x": X, "axes": [1, -1], "keep_dims": True}) for name in ("sum", "mean", "max", "min")],
    *[(f"reduce_{name}", {"x": X, "axes": [0, 2]}) for name in ("sum", "l1_norm", "l2_norm", "sum_square", "prod")],
    ("reduce_log_sum", {"x": POSITIVE, "axes": [1]}),
    ("reduce_log_sum_exp", {"x": X, "axes": [1]}),
    ("reduce_argmax", {"x": X, "axis": 2}),
    ("reduce_argmin", {"x": X, "axis": -1, "keep_dims": True}),
    ("linear", {"x": X, "weight": X[0, 0], "bias": X[0, 0, :, 0]}),
    ("matmul", {"x": X, "y": Y, "transpose_y": True}),
    ("matmul", {"x": X, "y": Y, "transpose_x": True}),
    ("reshape", {"x": X, "shape": [3, -1, 2]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("squeeze", {"x": Y, "axes": [1]}),
    ("transpose", {"x": X, "perm": [0, -1, 1, 2]}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("reverse", {"x": X, "axes": [1, 3]}),
    ("tile", {"x": X, "reps": [1, 2, 1, 3]}),
    ("band_part", {"x": X, "lower": 1, "upper": 0}),
    ("cumsum", {"x": X, "axis": 2, "reverse": True}),
    ("argsort", {"x": X, "axis": 1}),
    ("argsort", {"x": X, "axis": 3, "ascending": True}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 0, -4], "end": [2, 3, 4, -1], "stride": [1, 1, 2, 1]}),
    (
        "slice_by_index",
        {
            "x": X,
            "begin": [1, 0, 3, 2],
            "end": [0, 2, 0, 0],
            "stride": [1, 1, -1, 2],
            "begin_mask": [False, False, False, False],
            "end_mask": [False, True, False, True],
            "squeeze_mask": [True, False, False, False],
        },
    ),
    ("slice_by_size", {"x": X, "begin": [0, 1, 1, -3], "size": [2, 2, 3, 2]}),
    ("concat", {"values": (X, Y), "axis": 1}),
    ("stack", {"values": (X, 2 * X), "axis": 1}),
    ("split", {"x": X, "axis": 1, "split_sizes": [1, 2]}),
    ("split", {"x": X, "axis": 2, "num_splits": 2}),
    ("pad", {"x": X, "pad": [1, 2, 0, 3], "mode": "constant", "constant_val": np.float32(2)}),
    ("pad", {"x": X, "pad": [3, 2, 1, 4], "mode": "reflect", "constant_val": np.float32(0)}),
    ("pad", {"x": X, "pad": [3, 2, 1, 4], "mode": "replicate", "constant_val": np.float32(0)}),
    ("fill", {"shape": [2, 3], "value": np.float32(4)}),
    ("range_1d", {"start": 2, "end": 11, "step": 3}),
    ("non_zero", {"x": (X > 1).astype(np.float32)}),
    ("gather", {"x": X, "indices": [2, 0, -1], "axis": 1}),
    ("gather", {"x": X, "indices": [[0, 1], [1, 1]], "axis": 2}),
    ("gather_along_axis", {"x": X, "indices": np.argsort(X, axis=2).astype(np.int32), "axis": 2}),
    ("quantize", {"input": X, "scale": np.float32(0.02), "zero_point": np.uint8(120), "output_dtype": "uint8"}),
    ("quantize", {"input": X, "scale": np.array([0.01, 0.02, 0.03], np.float32), "axis": 1, "output_dtype": "int8"}),
]


@pytest.mark.parametrize(("kind", "inputs"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_operation_computes_what_coremltools_infers(kind: str, inputs: dict[str, Any]) -> None:
    given = {key: np.asarray(value) if isinstance(value, list) else value for key, value in inputs.items()}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    expected = inferred(kind, **lists)
    got = evaluate(kind, **given)
    pairs = zip(got, expected, strict=True) if isinstance(expected, list) else [(got, expected)]
    for mine, theirs in pairs:
        assert mine.shape == np.shape(theirs)
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "mode", ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS"]
)
def test_resize_samples_where_the_reference_lists(mode: str) -> None:
    ramp = np.array([[[[0.0, 1.0]]]], np.float32)  # the value is the position
    listed = {
        "UNALIGN_CORNERS": [0.0, 0.1, 0.5, 0.9, 1.0],
        "STRICT_ALIGN_CORNERS": [0.0, 0.25, 0.5, 0.75, 1.0],
        "ALIGN_CORNERS": [0.0, 0.25, 0.5, 0.75, 1.0],
        "DEFAULT": [0.0, 0.4, 0.8, 1.0, 1.0],
        "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    }[mode]
    got = evaluate("resize_bilinear", x=ramp, target_size_height=1, target_size_width=5, sampling_mode=mode)
    np.testing.assert_allclose(got[0, 0, 0], listed, atol=1e-6)
    shape = np.array([0, 0, 5], np.int32)
    got = evaluate("resize", x=ramp, shape=shape, resized_dims=2, interpolation_mode="LINEAR", sampling_mode=mode)
    np.testing.assert_allclose(got[0, 0, 0], listed, atol=1e-6)


def test_depth_and_space_keep_tensorflow_order() -> None:
    x = np.arange(2 * 8 * 3 * 4, dtype=np.float32).reshape(2, 8, 3, 4)
    wide = evaluate("depth_to_space", x=x, block_size=2)
    assert wide.shape == (2, 2, 6, 8)
    assert wide[1, 1, 5, 2] == x[1, (1 * 2 + 0) * 2 + 1, 2, 1]  # channel = (row * block + column) * depth + c
    np.testing.assert_array_equal(evaluate("space_to_depth", x=wide, block_size=2), x)
    batches = evaluate("space_to_batch", x=x, block_shape=[1, 2], paddings=np.array([[0, 0], [1, 1]]))
    assert batches.shape == (4, 8, 3, 3)
    back = evaluate("batch_to_space", x=batches, block_shape=[1, 2], crops=np.array([[0, 0], [1, 1]]))
    np.testing.assert_array_equal(back, x)


def test_scatter_writes_and_combines() -> None:
    data = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    updates = np.array([[5, 6, 7], [8, 9, 10]], np.float32)
    got = evaluate("scatter", data=data, indices=[1, 0], updates=updates, axis=0, mode="add")
    np.testing.assert_array_equal(got, [[9, 11, 13], [9, 11, 13]])  # the example of the reference
    got = evaluate("scatter_nd", data=data, indices=[[0, 1], [1, 2]], updates=[9.0, 8.0], mode="update")
    np.testing.assert_array_equal(got, [[1, 9, 3], [4, 5, 8]])
    got = evaluate("scatter_along_axis", data=data, indices=[[2], [0]], updates=[[2.0], [2.0]], axis=1, mode="mul")
    np.testing.assert_array_equal(got, [[1, 2, 6], [8, 5, 6]])
    np.testing.assert_array_equal(evaluate("gather_nd", x=data, indices=[[0, 1], [1, -1]]), [2, 6])


def test_compressed_weights_unpack() -> None:
    indices = np.array([0b01101100, 0b00000011], np.uint8)  # the example of the reference: 00 11 10 01 | 11
    lut = np.array([10, 20, 30, 40], np.float32)
    got = evaluate("constexpr_lut_to_dense", indices=indices, lut=lut, shape=np.array([5], np.uint32).astype(np.int64))
    np.testing.assert_array_equal(got, [10, 40, 30, 20, 40])
    mask = np.array([0b00001100], np.uint8)
    got = evaluate("constexpr_sparse_to_dense", nonzero_data=np.array([7, 8], np.float32), mask=mask, shape=[5])
    np.testing.assert_array_equal(got, [0, 0, 7, 8, 0])
    data = np.array([[2, 4, 6, 8]], np.int8)
    scale = np.array([[0.5, 2]], np.float32)
    got = evaluate("constexpr_blockwise_shift_scale", data=data, scale=scale, offset=np.array([[1, 2]], np.int8))
    np.testing.assert_array_equal(got, [[0.5, 1.5, 8, 12]])


def test_quantized_values_come_back() -> None:
    levels = np.array([[0, 120, 255]], np.uint8)
    got = evaluate("dequantize", input=levels, scale=np.float32(0.5), zero_point=np.uint8(120))
    np.testing.assert_array_equal(got, [[-60, 0, 67.5]])
    weight = np.array([[1, -2], [3, 4]], np.int8)
    scales = np.array([0.5, 2], np.float32)
    got = evaluate("constexpr_affine_dequantize", quantized_data=weight, scale=scales, zero_point=np.int8(0), axis=0)
    np.testing.assert_array_equal(got, [[0.5, -1], [6, 8]])
    halves = evaluate(
        "quantize", input=np.array([0.5, 1.5, 2.5, 300], np.float32), scale=np.float32(1), output_dtype="uint8"
    )
    np.testing.assert_array_equal(halves, [0, 2, 2, 255])  # halves to even, saturated


def test_attention_masks() -> None:
    query, key, value = (RNG.normal(size=(1, 2, 4, 3)).astype(np.float32) for _ in range(3))
    mask = np.tril(np.ones((4, 4), bool))
    got = evaluate("scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=mask)
    score = np.where(mask, query @ key.swapaxes(-1, -2) / np.sqrt(3), -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    np.testing.assert_allclose(got, weight / weight.sum(-1, keepdims=True) @ value, atol=1e-5)
    np.testing.assert_allclose(got[..., 0, :], value[..., 0, :], atol=1e-6)  # the first sees itself only


@pytest.mark.parametrize("padding", ["constant", "border", "reflection", "symmetric"])
def test_resample_pads_as_the_reference_draws(padding: str) -> None:
    row = np.array([[[[1, 2, 3]]]], np.float32)
    positions = np.array([-3, -2, -1, 0, 1, 2, 3, 4, 5], np.float32)
    grid = np.stack([positions, np.zeros_like(positions)], axis=-1)[None, None]
    got = evaluate(
        "resample",
        x=row,
        coordinates=grid,
        sampling_mode="bilinear",
        padding_mode=padding,
        padding_value=np.float32(9),
        coordinates_mode="unnormalized",
        align_corners=True,
    )
    drawn = {
        "constant": [9, 9, 9, 1, 2, 3, 9, 9, 9],
        "border": [1, 1, 1, 1, 2, 3, 3, 3, 3],
        "reflection": [2, 3, 2, 1, 2, 3, 2, 1, 2],
        "symmetric": [3, 2, 1, 1, 2, 3, 3, 2, 1],
    }[padding]
    np.testing.assert_allclose(got[0, 0, 0], drawn, atol=1e-5)


def test_an_unknown_variant_names_the_operation() -> None:
    with pytest.raises(UnsupportedError, match=r"MIL operation 'conv' .*expected valid, custom.*got pad_type 'magic'"):
        evaluate("conv", x=X, weight=np.ones((1, 3, 1, 1), np.float32), pad_type="magic")


def test_tables_hold_each_operation_once() -> None:
    with pytest.raises(ConfigError, match=r"each once, got 'conv' twice"):
        _merge({"conv": OPERATIONS["conv"]}, {"conv": OPERATIONS["conv"]})
