"""Values that a mask picks, left in their places: ``hue[mask] = 2 + slope[mask]`` counts nothing then.

How many there are depends on the picture. TensorRT has no such shapes, and elsewhere looking up places is slower than
computing all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

#: Functions of each value alone.
_EACH = frozenset(
    (
        *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "rsub", "pow", "float_power"),
        *("remainder", "fmod", "floor_divide", "maximum", "minimum", "clamp", "clip", "clamp_min", "clamp_max"),
        *("neg", "negative", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "log2", "log10", "log1p"),
        *("sin", "cos", "tan", "tanh", "sigmoid", "relu", "floor", "ceil", "round", "trunc", "sign", "float", "half"),
        *("__add__", "__sub__", "__mul__", "__truediv__", "__floordiv__", "__pow__", "__mod__", "__neg__"),
        *("__radd__", "__rsub__", "__rmul__", "__rdiv__", "__rpow__", "__rmod__"),
    )
)
_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "mod", "rmod", "neg", "abs"),
    *("floordiv", "rfloordiv", "matmul", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "invert", "getitem"),
)


class Picked:
    """``values[mask]``, which is looked up when something needs more than each value alone.

    Args:
        values: Any shape.
        mask: Booleans, of the first dimensions of ``values``.
    """

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        self.values, self.mask = values, mask

    def tensor(self) -> Tensor:
        """Look the values up: (count, ...)."""
        return self.values[(self.mask,)]

    def __getattr__(self, name: str) -> Any:
        found = getattr(Tensor, name)
        if not callable(found):
            return getattr(self.tensor(), name)
        return lambda *args, **kwargs: computed(found, found, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.tensor())

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, func, args, kwargs or {})


def _operator(name: str) -> Callable[..., Any]:
    def run(self: Picked, *others: Any) -> Any:
        function = getattr(Tensor, name)
        return computed(function, function, (self, *others), {})

    return run


for _name in _OPERATORS:
    setattr(Picked, f"__{_name}__", _operator(f"__{_name}__"))


def is_picked(values: Any) -> bool:
    """Tell whether one of the values (nested) is ``Picked``."""
    return isinstance(values, Picked) or (isinstance(values, (list, tuple)) and any(map(is_picked, values)))


def computed(func: Any, call: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Return ``func(*args, **given)`` where some of them are picked: of each value in its place, or of those looked up.

    Args:
        func: Function of PyTorch.
        call: What is called for it, with tensors.
        args: Its arguments.
        given: Its named arguments.
    """
    values = tree_leaves((args, dict(given)))
    found = [value for value in values if isinstance(value, Picked)]
    each = getattr(func, "__name__", "") in _EACH and all(
        value.ndim == 0 for value in values if isinstance(value, Tensor)
    )
    each = each and all(item.mask.shape == found[0].mask.shape for item in found)

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(plain, value))
        if not isinstance(value, Picked):
            return value
        return value.values if each else value.tensor()

    answer = call(*map(plain, args), **{name: plain(value) for name, value in given.items()})
    return Picked(answer, found[0].mask) if each else answer


def pick(x: Tensor, index: Any) -> Any:
    """Pick the values of ``x`` under a mask; other indices are NotImplemented."""
    if not isinstance(index, Tensor) or index.dtype != torch.bool or not 0 < index.ndim <= x.ndim:
        return NotImplemented
    return Picked(x, index)
