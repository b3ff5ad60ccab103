"""Evaluates an ML Program operation by operation on torch tensors.

Each operation takes its inputs in their declared types, computes in FP32 (integers in integers), and its result is
rounded to the type that the program declares for it: FP16 programs round, overflow and underflow after every
operation. Constants and compile-time (``constexpr_*``) operations are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from export.mil.call import Call, Result
from export.mil.elementwise import ELEMENTWISE
from export.mil.indexing import INDEXING
from export.mil.layers import LAYERS
from export.mil.program import Block, MilModel, Observer, Operation, Output, Ref, Value
from export.mil.quantization import QUANTIZATION
from export.mil.recurrent import RECURRENT
from export.mil.resize import RESIZE
from export.mil.shapes import SHAPES
from models.errors import ConfigError, UnsupportedError, explain

OperationFunction = Callable[[Call], Result]
_CONTROL_FLOW = ("cond", "while_loop")


def _merge(*tables: Mapping[str, OperationFunction]) -> dict[str, OperationFunction]:
    merged: dict[str, OperationFunction] = {}
    for table in tables:
        for name, function in table.items():
            if name in merged:
                fix = "keep one"
                raise ConfigError(explain("MIL operations", expected="each once", got=f"{name!r} twice", fix=fix))
            merged[name] = function
    return merged


OPERATIONS: Mapping[str, OperationFunction] = _merge(
    ELEMENTWISE, INDEXING, LAYERS, QUANTIZATION, RECURRENT, RESIZE, SHAPES
)
"""One function a MIL operation."""


class Evaluator:
    """Computes the main program of a saved package.

    Args:
        model: The parsed package.

    Raises:
        UnsupportedError: The program has an operation that is not in OPERATIONS; all of them are named.
    """

    def __init__(self, model: MilModel) -> None:
        unknown = sorted(set(_types(model.main)) - OPERATIONS.keys() - {"const", *_CONTROL_FLOW})
        if unknown:
            expected = f"one of the {len(OPERATIONS)} operations of export.mil"
            fix = "add a function for it to export/mil, or rewrite that part of the network"
            raise UnsupportedError(explain("MIL operation", expected=expected, got=", ".join(unknown), fix=fix))
        self._types = model.input_types
        self._constants: dict[str, Value] = {}
        self._floats: dict[str, Tensor] = {}
        self._block = self._fold(model.main)
        self._last_use = _last_uses(self._block)

    @torch.no_grad()
    def __call__(self, feeds: Mapping[str, Tensor], *, observe: Observer | None = None) -> dict[str, Tensor]:
        """Compute the outputs.

        Args:
            feeds: Program inputs by name, in any floating or integer type; rounded to the declared one.
            observe: Called with every result, after rounding (to look for overflow, or to compare two programs).

        Returns:
            Program outputs by name, in their declared types.
        """
        scope: dict[str, Value] = {name: feeds[name].to(dtype) for name, dtype in self._types.items()}
        for index, operation in enumerate(self._block.operations):
            self._run(operation, scope, observe)
            for name in self._last_use.get(index, ()):
                scope.pop(name, None)
        return {name: _tensor(self._lookup(name, scope)) for name in self._block.outputs}

    def _fold(self, block: Block) -> Block:
        """Compute constants and compile-time operations; return the block of what is left."""
        rest = []
        for operation in block.operations:
            if operation.type == "const":
                value = operation.inputs["val"][0]
                assert not isinstance(value, Ref)
                self._constants[operation.outputs[0].name] = value
            elif operation.type.startswith("constexpr_"):
                with torch.no_grad():
                    self._run(operation, self._constants, None)
            else:
                blocks = tuple(self._fold(inner) for inner in operation.blocks)
                rest.append(Operation(operation.type, operation.name, operation.inputs, operation.outputs, blocks))
        return Block(block.inputs, tuple(rest), block.outputs)

    def _run(self, operation: Operation, scope: dict[str, Value], observe: Observer | None) -> None:
        if operation.type in _CONTROL_FLOW:
            results: Sequence[Value] = self._control_flow(operation, scope, observe)
        else:
            call = Call(operation, lambda item: self._resolve(item, scope), self._as_float)
            result = OPERATIONS[operation.type](call)
            results = (result,) if isinstance(result, Tensor) else result
        for output, value in zip(operation.outputs, results, strict=False):
            rounded = _round(value, output)
            scope[output.name] = rounded
            if observe is not None and isinstance(rounded, Tensor):
                observe(operation, output, rounded)

    def _resolve(self, item: Ref | Value, scope: Mapping[str, Value]) -> Value:
        return self._lookup(item.name, scope) if isinstance(item, Ref) else item

    def _lookup(self, name: str, scope: Mapping[str, Value]) -> Value:
        return scope[name] if name in scope else self._constants[name]

    def _as_float(self, item: Ref | Value, value: Tensor) -> Tensor:
        """FP32 view of a value; that of a constant is kept for the next run."""
        if value.dtype != torch.float16:
            return value
        if not isinstance(item, Ref) or item.name not in self._constants:
            return value.float()
        if item.name not in self._floats:
            self._floats[item.name] = value.float()
        return self._floats[item.name]

    def _control_flow(self, operation: Operation, scope: dict[str, Value], observe: Observer | None) -> list[Value]:
        if operation.type == "cond":
            chosen = operation.blocks[0 if bool(self._resolve(operation.inputs["pred"][0], scope)) else 1]
            return self._inner(chosen, (), scope, observe)
        values = [self._resolve(item, scope) for item in operation.inputs["loop_vars"]]
        condition, body = operation.blocks
        while bool(self._inner(condition, values, scope, observe)[0]):
            values = self._inner(body, values, scope, observe)
        return values

    def _inner(
        self, block: Block, values: Sequence[Value], scope: Mapping[str, Value], observe: Observer | None
    ) -> list[Value]:
        inner = {**scope, **dict(zip(block.inputs, values, strict=True))}
        for operation in block.operations:
            self._run(operation, inner, observe)
        return [self._lookup(name, inner) for name in block.outputs]


def _types(block: Block) -> list[str]:
    found = [operation.type for operation in block.operations]
    for operation in block.operations:
        for inner in operation.blocks:
            found += _types(inner)
    return found


def _references(operation: Operation) -> set[str]:
    names = {item.name for items in operation.inputs.values() for item in items if isinstance(item, Ref)}
    for block in operation.blocks:
        names |= set(block.outputs)
        for inner in block.operations:
            names |= _references(inner)
    return names


def _last_uses(block: Block) -> dict[int, list[str]]:
    """For each operation the values that nobody needs after it."""
    last: dict[str, int] = {}
    for index, operation in enumerate(block.operations):
        for name in _references(operation) | {output.name for output in operation.outputs}:
            last[name] = index
    uses: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in block.outputs:
            uses.setdefault(index, []).append(name)
    return uses


def _round(value: Value, output: Output) -> Value:
    if not isinstance(value, Tensor) or output.dtype is None:
        return value
    return value.to(output.dtype)


def _tensor(value: Value) -> Tensor:
    assert isinstance(value, Tensor)
    return value
