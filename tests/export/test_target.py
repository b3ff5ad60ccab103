"""Targets, and the check of tensors at the boundary of a runner."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from export.target import CheckedRunner, Target, Tolerance, check_feeds, timed_load
from models.errors import ConfigError, InputSizeError, UnsupportedError, UsageError
from models.spec import Precision, SizeRequirements, TensorSpec

OPEN = TensorSpec("input", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="cielab-l/100")
FIXED = TensorSpec("input", (1, 1, 32, 64), value_range=(0.0, 1.0))
SIZE = SizeRequirements(minimum=32, multiple_of=32)
TARGET = Target(
    name="here",
    suffix=".here",
    precisions=(Precision.FP32,),
    devices=("cpu",),
    extra="",
    tolerance={Precision.FP32: Tolerance(0.1, 0.02)},
    module="export.torch_runner",
    options={"speed": "how fast"},
)


class Doubling(CheckedRunner):
    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {"output": feeds["input"] * 2}


def runner(*inputs: TensorSpec) -> Doubling:
    return Doubling(inputs=inputs, outputs=(OPEN,), size=SIZE, device="cpu", runtime="none")


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("feeds", "error", "text"),
    [
        ({}, UsageError, r"input names: expected \['input'\], got \[\]; fix: pass {'input': array}"),
        ({"x": zeros(1, 1, 32, 32)}, UsageError, r"expected \['input'\], got \['x'\]"),
        ({"input": [1.0]}, UsageError, "expected a numpy array of float32, got list; fix: array.astype"),
        ({"input": np.zeros((1, 1, 32, 32))}, UsageError, r"got float64; fix: array.astype\(np.float32\)"),
        ({"input": zeros(1, 32, 32)}, UsageError, r"expected shape \(N, 1, H, W\), got .* add the batch axis"),
        ({"input": zeros(32, 32)}, UsageError, "stack arrays as N, C, H, W"),
        ({"input": zeros(1, 3, 32, 32)}, InputSizeError, r"expected shape \(N, 1, H, W\), got \(1, 3, 32, 32\)"),
        ({"input": zeros(1, 1, 40, 32)}, InputSizeError, "multiple of 32, got 40x32; fix: .* 64x32"),
        ({"input": zeros(1, 1, 32, 32) + 255}, UsageError, r"expected values in \[0, 1\], got values from 255 to 255"),
        ({"input": zeros(1, 1, 32, 32) + np.nan}, UsageError, "got values from nan to nan"),
    ],
)
def test_bad_feeds_are_refused(feeds: dict[str, NDArray[np.float32]], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_feeds(feeds, (OPEN,), SIZE)


def test_fixed_shape_must_be_met_and_open_one_not() -> None:
    with pytest.raises(InputSizeError, match=r"expected shape \(1, 1, 32, 64\), got \(1, 1, 64, 64\); .*--dynamic"):
        check_feeds({"input": zeros(1, 1, 64, 64)}, (FIXED,), SIZE)
    assert runner(OPEN).infer({"input": zeros(3, 1, 64, 96) + 0.5})["output"].shape == (3, 1, 64, 96)


def test_range_is_checked_when_a_shape_is_first_seen() -> None:
    open_runner = runner(OPEN)
    with pytest.raises(UsageError, match="see the colour contract"):
        open_runner.infer({"input": zeros(1, 1, 32, 32) + 2})
    open_runner.infer({"input": zeros(1, 1, 32, 32)})
    assert open_runner.infer({"input": zeros(1, 1, 32, 32) + 2})["output"].max() == 4
    with pytest.raises(UsageError, match="see the colour contract"):
        open_runner.infer({"input": zeros(1, 1, 64, 32) + 2})


def test_closed_runner_refuses() -> None:
    with runner(OPEN) as open_runner:
        open_runner.infer({"input": zeros(1, 1, 32, 32)})
    with pytest.raises(UsageError, match="expected an open runner, got a closed one"):
        open_runner.infer({"input": zeros(1, 1, 32, 32)})


def test_what_a_runtime_raises_is_one_line() -> None:
    class Failing(Doubling):
        def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
            raise RuntimeError("node 7:\nout of memory")

    failing = Failing(inputs=(OPEN,), outputs=(OPEN,), size=SIZE, device="cpu", runtime="engine 1.0")
    message = "engine 1.0: expected an answer, got RuntimeError: node 7: out of memory; fix: export it again"
    with pytest.raises(UnsupportedError, match=message):
        failing.infer({"input": zeros(1, 1, 32, 32)})


def test_target_refuses_what_it_has_not() -> None:
    with pytest.raises(UnsupportedError, match="precision of target here: expected fp32, got int8; fix"):
        TARGET.check_precision(Precision.INT8)
    with pytest.raises(UnsupportedError, match="device of target here: expected cpu, got 'gpu'; fix"):
        TARGET.check_device("gpu")
    with pytest.raises(UsageError, match=r"options of target here: expected speed, got \['sped'\]; fix"):
        TARGET.check_options({"sped": 1})
    assert TARGET.check_options({"speed": 1}) == {"speed": 1}


def test_target_needs_a_tolerance_for_each_precision() -> None:
    with pytest.raises(ConfigError, match=r"expected a tolerance each, got none for \['fp16'\]"):
        Target("a", ".a", (Precision.FP16,), ("cpu",), "", {}, "export.torch_runner")


def test_timed_load_returns_what_was_built_and_milliseconds() -> None:
    built, milliseconds = timed_load(lambda: "session")
    assert built == "session"
    assert 0 <= milliseconds < 1000
