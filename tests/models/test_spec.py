"""Frozen descriptions of networks: sizes, controls, precisions."""

from __future__ import annotations

import dataclasses
import json

import pytest

from models.errors import ConfigError, InputSizeError
from models.spec import (
    MAX_THREADS,
    Control,
    ModelSpec,
    Precision,
    SizeRequirements,
    TensorSpec,
    check_threads,
)

SIZE = SizeRequirements(minimum=64, multiple_of=32)


def test_precision_is_its_text() -> None:
    assert [str(precision) for precision in Precision] == ["fp32", "fp16", "bf16", "int8"]
    assert f"{Precision.INT8}" == "int8"
    assert json.dumps(Precision.BF16) == '"bf16"'
    assert Precision("fp16") is Precision.FP16


def test_threads_that_no_runtime_can_start_are_refused() -> None:
    for threads in (None, 1, MAX_THREADS):
        check_threads(threads)
    for threads in (0, -1, MAX_THREADS + 1):
        with pytest.raises(ConfigError, match=f"threads: expected 1 to 512, got {threads}; fix: use the number of"):
            check_threads(threads)


@pytest.mark.parametrize("size", [(64, 64), (64, 320), (1024, 96)])
def test_allowed_sizes_pass(size: tuple[int, int]) -> None:
    SIZE.check(*size)
    assert SIZE.fit(*size) == size


@pytest.mark.parametrize(
    ("size", "fit"),
    [((65, 64), (96, 64)), ((32, 64), (64, 64)), ((0, 0), (64, 64)), ((100, 101), (128, 128)), ((-5, 64), (64, 64))],
)
def test_other_sizes_are_refused_with_the_nearest(size: tuple[int, int], fit: tuple[int, int]) -> None:
    message = (
        f"input size: expected height and width of at least 64 and a multiple of 32, got {size[0]}x{size[1]}; "
        f"fix: resize, crop or pad to {fit[0]}x{fit[1]}"
    )
    with pytest.raises(InputSizeError) as caught:
        SIZE.check(*size)
    assert str(caught.value) == message
    assert SIZE.fit(*size) == fit
    SIZE.check(*fit)


def test_a_control_holds_its_default() -> None:
    assert Control("strength", "graph_input", 0.0, 1.0, 0.5).default == 0.5
    with pytest.raises(ConfigError, match=r"control range: expected minimum <= default <= maximum .*'strength', got 0"):
        Control("strength", "weight_blend", 0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    "thing", [TensorSpec("input", (1, 3, "H", "W")), SIZE, ModelSpec("net", "colorize", "package.module:factory")]
)
def test_specs_are_frozen(thing: object) -> None:
    field = dataclasses.fields(thing)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, field, "other")


def test_defaults_of_a_model_row() -> None:
    row = ModelSpec("net", "colorize", "package.module:factory")
    assert (row.role, row.student, row.weights, row.size) == ("teacher", None, None, SizeRequirements(1, 1))
