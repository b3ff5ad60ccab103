"""A fault of coremltools that stops conversions, worked around while one runs."""

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
def numpy_scalars() -> Iterator[None]:
    """Let the converter of ``int(tensor)`` take constants of one element inside the block.

    coremltools 9.0 calls ``int`` on arrays of shape (1,), which NumPy 2.4 refuses ("only 0-dimensional arrays can be
    converted to Python scalars"). Networks that compute with ``x.shape`` run into it.
    """
    ops: Any = require("coremltools.converters.mil.frontend.torch.ops", EXTRA)
    original: Callable[..., None] | None = getattr(ops, "_cast", None)
    if original is None:  # another coremltools, without the fault
        yield
        return

    def cast(context: Any, node: Any, dtype: type, dtype_name: str) -> None:
        original(context, node, _Whole if dtype is int else dtype, dtype_name)

    ops._cast = cast
    try:
        yield
    finally:
        ops._cast = original
