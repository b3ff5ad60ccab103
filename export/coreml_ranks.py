"""Tensors of more than five dimensions in at most five: Core ML has no others.

Windows, patches and heads make them: ``b c (h p) (w q) -> b c h w p q``. A wide tensor is held as any tensor of the
same elements in the same order, and each operation is done on as few dimensions as it needs: neighbours that are
broadcast, reduced or moved together become one. What moves more than five groups moves in several steps.
A rule a kind of operation (``export.coreml_rank_rules``); what has none is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from export.mil.proto import EXTRA
from models.errors import require

LIMIT = 5
_NAME = "lower_ranks"
_REPLACED = "common::expand_high_rank_reshape_and_transpose"
_STORED = ("const",)

Shape = tuple[int, ...]


def pipeline() -> Any:
    """Return coremltools' passes with this one in place of its own, which knows reshape, transpose, reshape alone."""
    tools = require("coremltools", EXTRA)
    passes = "coremltools.converters.mil.mil.passes"
    base: Any = require(f"{passes}.graph_pass", EXTRA).AbstractGraphPass

    class LowerRanks(base):
        def apply(self, prog: Any) -> None:
            for block in prog.functions.values():
                with block:
                    lower_ranks(block)

    require(f"{passes}.pass_registry", EXTRA).PASS_REGISTRY.add("pare", LowerRanks, True, _NAME)
    chosen = tools.PassPipeline()
    place = chosen.passes.index(_REPLACED)
    chosen.remove_passes({_REPLACED})
    chosen.insert_pass(place, f"pare::{_NAME}")
    return chosen


def lower_ranks(block: Any) -> None:
    """Rewrite the operations of a MIL block that read or write wide tensors.

    Raises:
        ValueError: One of them cannot be done in five dimensions, or has wide tensors of open sizes.
    """
    held: dict[Any, Any] = {}
    before = list(block.operations)
    for op in before:
        touched = [value for value in (*op.outputs, *_inputs(op)) if value.rank > LIMIT]
        if not touched or op.op_type in _STORED:
            continue
        rewrite = Rewrite(op, held)
        answers = _ruled(rewrite) if all(_is_fixed(value) for value in touched) else None
        if answers is None:
            raise ValueError(f"Core ML has at most {LIMIT} dimensions, {op.op_type} gets or gives {touched[0].rank}")
        for output, answer in zip(op.outputs, answers, strict=True):
            if output.rank > LIMIT:
                held[output] = answer
            else:
                answer = rewrite.shaped(answer, shape_of(output))
                block.try_replace_uses_of_var_after_op(anchor_op=op, old_var=output, new_var=answer)
    _fill_scopes(block, set(before))


def _ruled(rewrite: Rewrite) -> list[Any] | None:
    from export.coreml_rank_rules import RULES

    rule = RULES.get(rewrite.operation.op_type)
    return None if rule is None else rule(rewrite)


def _fill_scopes(block: Any, before: set[Any]) -> None:
    """Give new operations the scope of the one that they stand before: the layer, which decides its precision."""
    scopes: Any = {}
    for operation in reversed(list(block.operations)):
        if operation in before:
            scopes = operation.scopes
        else:
            for source, names in scopes.items():
                operation.scopes.setdefault(source, list(names))


def _inputs(operation: Any) -> list[Any]:
    found: list[Any] = []
    for value in operation.inputs.values():
        found += value if isinstance(value, (list, tuple)) else [value]
    return [value for value in found if value is not None and hasattr(value, "rank")]


def _is_fixed(value: Any) -> bool:
    return all(str(side).isdecimal() for side in value.shape)


def shape_of(value: Any) -> Shape:
    """Return the sizes of a variable of the converter."""
    return tuple(int(side) for side in value.shape)


def runs_of(marks: Sequence[Any], sizes: Shape) -> list[list[int]]:
    """Group neighbouring dimensions with equal marks; dimensions of one are left out."""
    found: list[list[int]] = []
    for axis, mark in enumerate(marks):
        if sizes[axis] == 1:
            continue
        if found and marks[found[-1][-1]] == mark:
            found[-1].append(axis)
        else:
            found.append([axis])
    return found or [[0]]


def grouped(shape: Shape, runs: Sequence[Sequence[int]]) -> Shape:
    """Return the sizes of the groups ``runs``."""
    return tuple(math.prod(shape[axis] for axis in run) for run in runs)


class Rewrite:
    """One operation, and what makes others before it.

    Args:
        operation: The operation.
        held: What stands for the wide tensors before it.
    """

    def __init__(self, operation: Any, held: Mapping[Any, Any]) -> None:
        self.operation, self._held = operation, held
        self._builder: Any = require("coremltools.converters.mil.mil", EXTRA).Builder

    @property
    def x(self) -> Any:
        """The input ``x`` of the operation."""
        return self.operation.inputs["x"]

    @property
    def out(self) -> Shape:
        """Shape of the first output."""
        return shape_of(self.operation.outputs[0])

    def constant(self, name: str, default: Any = None) -> Any:
        """Return the constant input ``name`` as a list, number or flag."""
        given = self.operation.inputs.get(name)
        if given is None or given.val is None:
            return default
        return given.val.tolist() if hasattr(given.val, "tolist") else given.val

    def axis(self, rank: int) -> int:
        """Return the input ``axis``, from the front."""
        return int(self.constant("axis", -1)) % rank

    def make(self, kind: str, **inputs: Any) -> Any:
        """Add an operation."""
        return getattr(self._builder, kind)(**inputs, before_op=self.operation)

    def again(self, **inputs: Any) -> Any:
        """Add an operation of the same kind with other inputs."""
        given = {name: value for name, value in self.operation.inputs.items() if value is not None}
        return self.make(self.operation.op_type, **{**given, **inputs})

    def current(self, value: Any) -> Any:
        """Return what stands for ``value``."""
        return self._held.get(value, value)

    def shaped(self, value: Any, shape: Sequence[int]) -> Any:
        """Return the elements of ``value`` as ``shape``."""
        value, sides = self.current(value), [int(side) for side in shape]
        if shape_of(value) == tuple(sides):
            return value
        if value.val is not None:
            return self.make("const", val=value.val.reshape(sides))
        return self.make("reshape", x=value, shape=sides)

    def spread(self, value: Any, now: Shape, shape: Shape) -> Any:
        """Repeat ``value`` of the sizes ``now`` to ``shape``, one dimension after the other."""
        for axis, (have, want) in enumerate(zip(now, shape, strict=True)):
            if have != want:
                single = self.shaped(value, (math.prod(shape[:axis]), 1, math.prod(now[axis + 1 :])))
                value = self.make("tile", x=single, reps=[1, want, 1])
        return value

    def along(self, value: Any, shape: Shape, axis: int) -> Any:
        """Return ``value`` of the sizes ``shape`` as (before, ``axis``, behind)."""
        return self.shaped(value, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))

    def together(self, values: Mapping[str, Any], head: Shape, *, limit: int = LIMIT, tail: int = 0) -> dict[str, Any]:
        """Return values whose first dimensions are broadcast to ``head``, in ``limit`` of them, and ``tail`` more."""
        rank = len(head) + tail
        now = {name: (1,) * (rank - value.rank) + shape_of(value) for name, value in values.items() if value.rank}
        found = {name: values[name] for name in now}
        while True:
            marks = [tuple(shape[axis] == side for shape in now.values()) for axis, side in enumerate(head)]
            runs = runs_of(marks, head)
            if len(runs) <= limit:
                break
            name = next(name for name, shape in now.items() if shape[: len(head)] != head)
            wanted = head + now[name][len(head) :]
            found[name], now[name] = self.spread(found[name], now[name], wanted), wanted
        shapes = {name: grouped(shape, runs) + shape[len(head) :] for name, shape in now.items()}
        return {name: self.shaped(value, shapes[name]) for name, value in found.items()}
