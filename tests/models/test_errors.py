"""The exception tree and the helpers behind its messages."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from models import errors
from models.errors import (
    MissingExtraError,
    PareError,
    UnknownNameError,
    UsageError,
    explain,
    first_line,
    nearest,
    require,
    unforeseen,
)

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PareError)]


def test_explain_says_expected_got_and_fix() -> None:
    assert explain("side", expected="32 or more", got=31, fix="enlarge it") == (
        "side: expected 32 or more, got 31; fix: enlarge it"
    )


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_an_exit_status_and_a_place_in_the_tree(kind: type[PareError]) -> None:
    assert kind.exit_status == (2 if issubclass(kind, UsageError) else 1)
    assert kind.__doc__
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


def test_usage_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="wrong call"):
        raise errors.ConfigError("wrong call")


def test_nearest_finds_a_close_name_only() -> None:
    assert nearest("resnet18unet", ["chroma_unet", "resnet18_unet"]) == "resnet18_unet"
    assert nearest("zzz", ["chroma_unet", "resnet18_unet"]) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvno", "unknown target: expected onnx | openvino, got 'openvno'; fix: use 'openvino'"),
        ("zzz", "unknown target: expected onnx | openvino, got 'zzz'; fix: use one of these names"),
    ],
)
def test_unknown_name_lists_what_is_known(name: str, message: str) -> None:
    error = UnknownNameError("target", name, {"openvino": 1, "onnx": 2})
    assert str(error) == message
    assert (error.kind, error.name, error.known) == ("target", name, ["onnx", "openvino"])


def test_require_returns_the_module() -> None:
    assert require("json", "coreml") is json


def test_require_names_the_extra() -> None:
    message = (
        r"missing dependency: expected package 'no_such_package', got not installed; fix: pip install 'pare\[coreml\]'"
    )
    with pytest.raises(MissingExtraError, match=message):
        require("no_such_package", "coreml")


def test_an_error_without_a_text_says_where_it_was_raised() -> None:
    def check(channels: int) -> None:
        assert channels == 4

    with pytest.raises(AssertionError) as caught:
        check(3)
    bare = AssertionError().with_traceback(caught.value.__traceback__)
    for text in (first_line(bare), unforeseen(bare)):
        assert re.fullmatch(r"AssertionError at test_errors\.py:\d+: assert channels == 4", text)
    assert first_line(KeyError("edges")) == "KeyError: 'edges'"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert unforeseen(ValueError("one\ntwo")) == "ValueError: one two"
