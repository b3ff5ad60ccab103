"""What a Core ML package is asked to be: options, and the contract that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from export.contract import Contract, contract_of
from export.screens import kept_names
from models.artifact import Artifact
from models.errors import InputSizeError, UnsupportedError, UsageError, explain
from models.spec import Precision, TensorSpec

LARGEST = 2048
MOST_SIZES = 128


class Options:
    """The options of ``export.to_coreml.export``, checked.

    Attributes:
        image_input: The input is an RGB picture.
        image_output: The output is an RGB picture, rendered by the task.
        int8: Where activations are quantized, see ``export.coreml_int8``.
        max_size: Largest height and width of a dynamic package, pixels.
        keep_fp32: Torch module names that compute in FP32.
        sizes: The only heights and widths of a dynamic package; empty for a range.

    Raises:
        UsageError: A value of another kind, or sizes for a package of a fixed size.
    """

    def __init__(self, given: Mapping[str, Any], *, dynamic: bool) -> None:
        self.image_input = _flag("image_input", given.get("image_input", False))
        self.image_output = _flag("image_output", given.get("image_output", False))
        self.int8 = str(given.get("int8", "per_layer"))
        self.keep_fp32 = kept_names(given)
        self.max_size = _whole("max_size", given.get("max_size", LARGEST))
        self.sizes = _sizes(given.get("sizes", ()))
        if not dynamic and (self.sizes or "max_size" in given):
            fix = "export with --dynamic, or leave it out"
            raise UsageError(explain("sizes and max_size", expected="a dynamic export", got="a fixed size", fix=fix))

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        content = {key: value for key, value in vars(self).items() if value not in (False, ())}
        return {**content, "sizes": [list(size) for size in self.sizes]} if self.sizes else content


def _flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise UsageError(explain(f"option {name}", expected="true or false", got=repr(value), fix="write true"))
    return text == "true"


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UsageError(
            explain(f"option {name}", expected="a whole number above 0", got=repr(value), fix="write 1024")
        )
    return number


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
    try:
        pairs = [part.lower().split("x") if isinstance(part, str) else part for part in parts]
        sizes = tuple((int(height), int(width)) for height, width in pairs)
    except (TypeError, ValueError):
        sizes = ((0, 0),)
    if any(side < 1 for size in sizes for side in size) or len(sizes) > MOST_SIZES:
        fix = "write 256x256,512x384"
        expected = "at most 128 sizes, height x width"
        raise UsageError(explain("option sizes", expected=expected, got=repr(value), fix=fix))
    return sizes


def package_contract(
    artifact: Artifact, precision: Precision, input_size: tuple[int, int], dynamic: bool, given: Options
) -> Contract:
    """The contract with batch 1, and pictures where they are asked for."""
    contract = contract_of(artifact, precision=precision, input_size=input_size, dynamic=dynamic)
    for height, width in given.sizes:
        contract.size.check(height, width)
    if dynamic and not given.sizes and given.max_size < max(input_size):
        fix = "give a larger max_size, or a smaller --input-size"
        got = f"{input_size[0]}x{input_size[1]} with max_size {given.max_size}"
        raise InputSizeError(explain("input size", expected="sides up to max_size", got=got, fix=fix))
    inputs = tuple(_one(spec) for spec in contract.inputs)
    outputs = tuple(_one(spec) for spec in contract.outputs)
    if given.image_input:
        inputs = (_picture(inputs[0]), *inputs[1:])
    if given.image_output:
        outputs = tuple(_picture(spec, rendered=True) for spec in outputs)
    return replace(contract, inputs=inputs, outputs=outputs)


def _one(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=tuple(1 if side == "N" else side for side in spec.shape))


def _picture(spec: TensorSpec, *, rendered: bool = False) -> TensorSpec:
    """The RGB picture that takes the place of a tensor."""
    known = ("srgb", "cielab-l/100")
    channels = spec.shape[1] if len(spec.shape) == 4 else None
    fits = {"srgb": 3, "cielab-l/100": 1}.get(spec.color_space) == channels
    if not rendered and not fits:
        fix = "leave out image_input, and fill the array in the app"
        got = f"{spec.color_space!r} with shape {spec.shape}"
        raise UnsupportedError(explain("image_input", expected=" | ".join(known), got=got, fix=fix))
    shape = (spec.shape[0], 3, *spec.shape[2:])
    return replace(spec, shape=shape, value_range=(0.0, 1.0), color_space="srgb")
