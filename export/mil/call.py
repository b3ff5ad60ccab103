"""What a function of the operation tables gets: the inputs of one MIL operation, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from export.mil.program import Operation, Ref, Value
from models.errors import UnsupportedError, explain

Result = Tensor | Sequence[Tensor]
"""One tensor, or one a declared output."""


class Call:
    """The inputs of one operation, resolved to values on request.

    Args:
        operation: The operation.
        resolve: Turns a reference into its value.
        as_float: FP32 view of an FP16 value; anything else unchanged.
    """

    def __init__(
        self,
        operation: Operation,
        resolve: Callable[[Ref | Value], Value],
        as_float: Callable[[Ref | Value, Tensor], Tensor],
    ) -> None:
        self.operation = operation
        self._resolve, self._as_float = resolve, as_float

    def has(self, name: str) -> bool:
        """Tell whether the program gives the optional input ``name``."""
        return bool(self.operation.inputs.get(name))

    def raw(self, name: str) -> Tensor:
        """Return the tensor ``name`` in its declared type."""
        value = self._resolve(self.operation.inputs[name][0])
        if not isinstance(value, Tensor):
            raise self.unsupported(f"text for {name!r}", expected="a tensor")
        return value

    def tensor(self, name: str) -> Tensor:
        """Return the tensor ``name``; FP16 as FP32, other types unchanged."""
        return self._as_float(self.operation.inputs[name][0], self.raw(name))

    def maybe(self, name: str) -> Tensor | None:
        """Return the tensor ``name`` as ``tensor`` does, or None where the program does not give it."""
        return self.tensor(name) if self.has(name) else None

    def tensors(self, name: str) -> list[Tensor]:
        """Return all tensors of the tuple input ``name``; FP16 as FP32."""
        found = []
        for item in self.operation.inputs[name]:
            value = self._resolve(item)
            if not isinstance(value, Tensor):
                raise self.unsupported(f"text for {name!r}", expected="tensors")
            found.append(self._as_float(item, value))
        return found

    def number(self, name: str, default: float) -> float:
        """Return the scalar ``name``; an omitted one is ``default`` rounded to the type of the input ``x``."""
        if self.has(name):
            return float(self.raw(name).float())
        kind = self.raw("x").dtype if self.has("x") else torch.float32
        return float(torch.tensor(default, dtype=kind if kind.is_floating_point else torch.float32))

    def integer(self, name: str, default: int | None = None) -> int:
        """Return the integer scalar ``name``."""
        if default is not None and not self.has(name):
            return default
        return int(self.raw(name).reshape(()))

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return the integer vector ``name`` (a scalar gives a list of one)."""
        return [int(value) for value in self.raw(name).reshape(-1)] if self.has(name) else list(default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return the boolean scalar ``name``."""
        return bool(self.raw(name)) if self.has(name) else default

    def flags(self, name: str, count: int) -> list[bool]:
        """Return the boolean vector ``name``; all False where it is not given."""
        return [bool(value) for value in self.raw(name)] if self.has(name) else [False] * count

    def text(self, name: str, default: str = "") -> str:
        """Return the text ``name``."""
        if not self.has(name):
            return default
        value = self._resolve(self.operation.inputs[name][0])
        if not isinstance(value, str):
            raise self.unsupported(f"a tensor for {name!r}", expected="text")
        return value

    def unsupported(self, got: str, *, expected: str) -> UnsupportedError:
        """Build the error for a variant of the operation that is not computed here."""
        what = f"MIL operation {self.operation.type!r} ({self.operation.name})"
        fix = "add the variant to export/mil, or rewrite that part of the network"
        return UnsupportedError(explain(what, expected=expected, got=got, fix=fix))
