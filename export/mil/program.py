"""The saved form of an ML Program: protobuf and weight blob, parsed into plain dataclasses.

Source: ``MIL.proto``, ``Model.proto`` and ``FeatureTypes.proto`` of coremltools; MILBlob's ``StorageFormat.hpp``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.mil.proto import coreml_proto
from models.errors import CheckpointError, UnsupportedError, explain

Value = Tensor | str | list[str]
"""A constant of a program: a tensor, or text."""

# protobuf DataType number -> (numpy type as stored, torch type as computed)
_TYPES: dict[int, tuple[str, torch.dtype]] = {
    1: ("?", torch.bool),
    10: ("<f2", torch.float16),
    11: ("<f4", torch.float32),
    12: ("<f8", torch.float64),
    21: ("<i1", torch.int8),
    22: ("<i2", torch.int16),
    23: ("<i4", torch.int32),
    24: ("<i8", torch.int64),
    31: ("<u1", torch.uint8),
    32: ("<u2", torch.int32),
    33: ("<u4", torch.int64),
}
_STRING = 2
_BLOB_SENTINEL = 0xDEADBEEF
_BLOB_HEADER = struct.Struct("<IIQQ")


@dataclass(frozen=True)
class Ref:
    """A value that an earlier operation, a block input or a program input has given a name."""

    name: str


@dataclass(frozen=True)
class Output:
    """One result of an operation: its name and the type that the program declares (None for text)."""

    name: str
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Block:
    """Operations in order, the names that they take and the names that they leave."""

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """One operation: each input is a tuple of references and constants (several only where MIL takes a tuple)."""

    type: str
    name: str
    inputs: Mapping[str, tuple[Ref | Value, ...]]
    outputs: tuple[Output, ...]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Feature:
    """One input or output at the boundary of the model.

    Attributes:
        name: Feature name.
        kind: ``array`` or ``image``.
        shape: Default shape (N, C, H, W); for an image (1, channels, H, W). Empty where the model does not say.
        dtype: ``float32``, ``float16`` or ``int32``; ``uint8`` for an image.
        ranges: Per dimension the smallest and the largest size, None where unbounded; empty when the size is fixed.
        choices: The allowed shapes when they are enumerated.
        color: ``rgb``, ``bgr`` or ``gray`` of an image, else None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    ranges: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    color: str | None = None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Tell whether the model takes an array of ``shape``."""
        if self.choices:
            return shape in self.choices
        if self.ranges:
            pairs = zip(shape, self.ranges, strict=False)
            return len(shape) == len(self.ranges) and all(
                low <= size and (high is None or size <= high) for size, (low, high) in pairs
            )
        return not self.shape or shape == self.shape


@dataclass(frozen=True)
class MilModel:
    """A saved package: what it takes, gives and says of itself, and its main program."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    input_types: Mapping[str, torch.dtype]
    main: Block
    metadata: Mapping[str, str] = field(default_factory=dict)

    def operation_counts(self) -> dict[str, int]:
        """Return how often each kind of operation occurs, constants left out."""
        counts: dict[str, int] = {}
        for operation in self.main.operations:
            if operation.type != "const":
                counts[operation.type] = counts.get(operation.type, 0) + 1
        return dict(sorted(counts.items()))


def load_model(path: Path) -> MilModel:
    """Read an ``.mlpackage`` folder.

    Raises:
        CheckpointError: Not a package, or damaged.
        UnsupportedError: Not an ML Program (a neural network or pipeline), or a type that is not read here.
        MissingExtraError: coremltools is not installed.
    """
    spec_path = _spec_path(path)
    proto = coreml_proto()
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(spec_path.read_bytes())
    except Exception as error:
        raise _damaged(path, f"an unreadable specification ({type(error).__name__})") from error
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        fix = "convert it to an ML Program with a function 'main'"
        got = str(spec.WhichOneof("Type"))
        raise UnsupportedError(explain(f"{path}", expected="an ML Program", got=got, fix=fix))
    function = spec.mlProgram.functions["main"]
    reader = _Reader(spec_path.parent)
    types = {item.name: _torch_type(item.type.tensorType.dataType) for item in function.inputs}
    description = spec.description
    return MilModel(
        inputs=tuple(_feature(item) for item in description.input),
        outputs=tuple(_feature(item) for item in description.output),
        input_types=types,
        main=reader.block(function.block_specializations[function.opset]),
        metadata=dict(description.metadata.userDefined),
    )


def _spec_path(path: Path) -> Path:
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"no readable Manifest.json ({type(error).__name__})") from error
    return path / "Data" / str(root)


def _damaged(path: Path, got: str) -> CheckpointError:
    fix = "export it again, or copy the whole folder again"
    return CheckpointError(explain(f"{path}", expected="an .mlpackage folder", got=got, fix=fix))


def _torch_type(number: int) -> torch.dtype:
    return _entry(number)[1]


def _entry(number: int) -> tuple[str, torch.dtype]:
    if number not in _TYPES:
        known = ", ".join(sorted({str(dtype).removeprefix("torch.") for _, dtype in _TYPES.values()}))
        fix = "convert with 8-bit or wider types"
        raise UnsupportedError(explain("MIL data type", expected=known, got=f"type number {number}", fix=fix))
    return _TYPES[number]


def _feature(item: Any) -> Feature:
    kind = item.type.WhichOneof("Type")
    if kind == "imageType":
        return _image_feature(item.name, item.type.imageType)
    if kind != "multiArrayType":
        fix = "convert with tensor or image inputs and outputs"
        raise UnsupportedError(explain(f"feature {item.name!r}", expected="an array or image", got=kind, fix=fix))
    array = item.type.multiArrayType
    dtype = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64"}.get(array.dataType, "float32")
    return Feature(
        name=item.name,
        kind="array",
        shape=tuple(array.shape),
        dtype=dtype,
        ranges=tuple(_bounds(bound) for bound in array.shapeRange.sizeRanges),
        choices=tuple(tuple(choice.shape) for choice in array.enumeratedShapes.shapes),
    )


def _image_feature(name: str, image: Any) -> Feature:
    color = {10: "gray", 20: "rgb", 30: "bgr", 40: "gray"}.get(image.colorSpace, "rgb")
    channels = 1 if color == "gray" else 3
    flexible = image.WhichOneof("SizeFlexibility")
    fixed = ((1, 1), (channels, channels))
    ranges: tuple[tuple[int, int | None], ...] = ()
    if flexible == "imageSizeRange":
        ranges = (*fixed, _bounds(image.imageSizeRange.heightRange), _bounds(image.imageSizeRange.widthRange))
    sizes = image.enumeratedSizes.sizes if flexible == "enumeratedSizes" else ()
    choices = tuple((1, channels, size.height, size.width) for size in sizes)
    return Feature(name, "image", (1, channels, image.height, image.width), "uint8", ranges, choices, color)


def _bounds(bound: Any) -> tuple[int, int | None]:
    high = int(bound.upperBound)
    return int(bound.lowerBound), None if high < 0 else high


class _Reader:
    """Turns the protobuf of a program into Block and Operation, weights read from the blob files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs: dict[str, np.memmap[Any, Any]] = {}

    def block(self, block: Any) -> Block:
        operations = tuple(self._operation(item) for item in block.operations)
        return Block(tuple(item.name for item in block.inputs), operations, tuple(block.outputs))

    def _operation(self, item: Any) -> Operation:
        inputs: dict[str, tuple[Ref | Value, ...]] = {
            key: tuple(self._binding(binding) for binding in argument.arguments)
            for key, argument in item.inputs.items()
        }
        name = item.outputs[0].name if item.outputs else item.type
        for key, value in item.attributes.items():
            if key != "name":
                inputs[key] = (self._value(value),)
        outputs = tuple(Output(output.name, _output_type(output.type)) for output in item.outputs)
        return Operation(item.type, name, inputs, outputs, tuple(self.block(block) for block in item.blocks))

    def _binding(self, binding: Any) -> Ref | Value:
        return Ref(binding.name) if binding.WhichOneof("binding") == "name" else self._value(binding.value)

    def _value(self, value: Any) -> Value:
        if value.type.WhichOneof("type") != "tensorType":
            fix = "convert without list and dictionary values"
            got = str(value.type.WhichOneof("type"))
            raise UnsupportedError(explain("MIL value", expected="a tensor", got=got, fix=fix))
        kind = value.type.tensorType
        shape = tuple(int(dimension.constant.size) for dimension in kind.dimensions)
        if value.WhichOneof("value") == "blobFileValue":
            array = self._blob(value.blobFileValue, kind.dataType, math.prod(shape))
        else:
            tensor = value.immediateValue.tensor
            which = tensor.WhichOneof("value")
            if which == "strings" or kind.dataType == _STRING:
                texts = list(tensor.strings.values)
                return texts if shape else texts[0]
            stored, _ = _entry(kind.dataType)
            if which == "bytes":
                array = np.frombuffer(tensor.bytes.values, dtype=stored)
            else:
                array = np.array(getattr(tensor, which).values, dtype=stored)
        return torch.from_numpy(array.copy()).to(_torch_type(kind.dataType)).reshape(shape)

    def _blob(self, reference: Any, number: int, count: int) -> np.ndarray[Any, Any]:
        name = reference.fileName.rsplit("@model_path/", 1)[-1]
        path = self._folder / name
        try:
            if name not in self._blobs:
                self._blobs[name] = np.memmap(path, dtype=np.uint8, mode="r")
            blob = self._blobs[name]
            header = bytes(blob[reference.offset : reference.offset + _BLOB_HEADER.size])
            sentinel, _, size, start = _BLOB_HEADER.unpack(header)
            stored = np.dtype(_entry(number)[0])
            data = blob[start : start + count * stored.itemsize]
        except (OSError, ValueError, struct.error) as error:
            raise _damaged(path, f"an unreadable weight file ({type(error).__name__})") from error
        if sentinel != _BLOB_SENTINEL or len(data) != count * stored.itemsize or size < len(data):
            raise _damaged(path, "a truncated or altered weight file")
        return data.view(stored)


def _output_type(kind: Any) -> torch.dtype | None:
    if kind.WhichOneof("type") != "tensorType" or kind.tensorType.dataType == _STRING:
        return None
    return _torch_type(kind.tensorType.dataType)


Observer = Callable[[Operation, Output, Tensor], None]
"""Called with each computed result: its operation, its declared output and the rounded values."""
