"""Faults of coremltools that stop conversions, worked around while one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from export.mil.proto import EXTRA
from models.errors import require


class _Whole(int):
    """``int`` that takes an array of one element; makes plain ints."""

    def __new__(cls, value: Any) -> int:  # type: ignore[misc]
        return int(np.asarray(value).reshape(()).item())


@contextmanager
def repaired_converter() -> Iterator[None]:
    """Repair coremltools 9.0's PyTorch converter inside the block.

    - ``int(tensor)``: it calls ``int`` on arrays of shape (1,), which NumPy 2.4 refuses ("only 0-dimensional arrays
      can be converted to Python scalars"). Networks that compute with ``x.shape`` run into it.
    - ``x.clamp_min(0)``, ``x.clamp_max(1)``: it wants the bound in the type of ``x`` and asserts, without a message.
    - ``x // 1``, ``x % 1``: it takes a division by one for nothing, the rounding with it.
    - ``1 / x``: it writes an inverse, to which Core ML adds 0.0001 below the line; a division is exact.
    """
    ops: Any = require("coremltools.converters.mil.frontend.torch.ops", EXTRA)
    registry: Any = require("coremltools.converters.mil.frontend.torch.torch_op_registry", EXTRA)._TORCH_OPS_REGISTRY
    table: dict[str, Callable[..., None]] = registry.name_to_func_mapping
    original_cast = ops._cast
    originals = {name: table[name] for name in ("clamp_min", "clamp_max", "reciprocal")}

    def cast(context: Any, node: Any, dtype: type, dtype_name: str) -> None:
        original_cast(context, node, _Whole if dtype is int else dtype, dtype_name)

    defs = "coremltools.converters.mil.mil.passes.defs.cleanup.noop_elimination"
    passes: Any = require(defs, EXTRA).noop_elimination
    removed = passes._SUPPORTED_OPS
    passes._SUPPORTED_OPS = removed - {"floor_div"}
    ops._cast = cast
    table.update(clamp_min=_bound("maximum"), clamp_max=_bound("minimum"), reciprocal=_reciprocal)
    try:
        yield
    finally:
        passes._SUPPORTED_OPS = removed
        ops._cast = original_cast
        table.update(originals)


def _bound(kind: str) -> Callable[[Any, Any], None]:
    def convert(context: Any, node: Any) -> None:
        mil: Any = require("coremltools.converters.mil.mil", EXTRA)
        ops: Any = require("coremltools.converters.mil.frontend.torch.ops", EXTRA)
        x, bound = ops._get_inputs(context, node, expected=2)
        if bound.dtype != x.dtype:
            bound = mil.Builder.cast(x=bound, dtype=mil.types.builtin_to_string(x.dtype))
        context.add(getattr(mil.Builder, kind)(x=x, y=bound, name=node.name))

    return convert


def _reciprocal(context: Any, node: Any) -> None:
    mil: Any = require("coremltools.converters.mil.mil", EXTRA)
    ops: Any = require("coremltools.converters.mil.frontend.torch.ops", EXTRA)
    (x,) = ops._get_inputs(context, node, expected=1)
    context.add(mil.Builder.real_div(x=mil.types.nptype_from_builtin(x.dtype)(1), y=x, name=node.name))
