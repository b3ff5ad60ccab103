"""Which tensors of a forward pass come from where: followed through the operators, storage by storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SHAPE_ONLY = frozenset(f"{kind}_like" for kind in ("zeros", "ones", "empty", "full", "rand", "randn")) | frozenset(
    f"new_{kind}" for kind in ("zeros", "ones", "empty", "empty_strided", "full")
)
_SIZES = frozenset(("__get__", "size", "dim", "numel", "nelement", "ndimension", "stride", "__len__"))  # and views
_TRACER: Any = torch._C
_RANDOM = ("rand", "normal", "uniform", "bernoulli", "multinomial", "dropout", "exponential")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Storages:
    """A set of tensors and all views of them; freed ones leave it."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._found: dict[int, StorageWeakRef] = {}
        for tensor in tensors:
            self.add(tensor)

    def has(self, values: Any) -> bool:
        """Tell whether a tensor in ``values`` (nested) is in it."""
        return any(tensor in self for tensor in _tensors(values))

    def add(self, tensor: Tensor) -> None:
        """Add what ``tensor`` is a view of."""
        storage = tensor.untyped_storage()
        self._found[storage._cdata] = StorageWeakRef(storage)

    def discard(self, tensor: Tensor) -> None:
        """Take out what ``tensor`` is a view of."""
        self._found.pop(tensor.untyped_storage()._cdata, None)

    def __contains__(self, tensor: Tensor) -> bool:
        held = self._found.get(tensor.untyped_storage()._cdata)
        return held is not None and not held.expired()


class Origins(TorchDispatchMode):
    """Inside the block, tensors that are computed from ``sources`` are known.

    Args:
        sources: Tensors.

    Attributes:
        found: What is computed from them.
        read: Tensors that were read as numbers, in order: by Python code, and by functions that take sizes.
    """

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()
        self.found = Storages(sources)
        self.read: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(args[0])
        answer = func(*args, **given)
        dependent = func.overloadpacket.__name__ not in _SHAPE_ONLY and self.found.has((args, given))
        for tensor in _tensors(answer):
            if dependent:
                self.found.add(tensor)
            else:
                self.found.discard(tensor)
        if dependent:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                    self.found.add(value)
        return answer


class Constants(TorchFunctionMode):
    """Inside the block ``torch.jit`` holds what comes from neither input nor weights as a constant of a fixed size.

    Masks, grids and positions: the trace would have each operation that makes them, and coremltools lacks some.

    Args:
        net: The network that is traced.
        samples: Its example inputs.
    """

    def __init__(self, net: nn.Module, samples: Sequence[Tensor]) -> None:
        super().__init__()
        self._dependent, self._held = Storages([*samples, *net.parameters(), *net.buffers()]), Storages()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if not is_tracing():
            return func(*args, **given)
        is_random, writes = any(word in name for word in _RANDOM), _writes(name)
        if not (is_random or self._dependent.has((args, given)) or (writes and self._held.has(args[:1]))):
            return untraced(lambda: func(*args, **given))
        for tensor in _tensors((args, given)):
            if tensor not in self._dependent and tensor not in self._held:
                if writes and tensor is args[0] and tensor._is_view():
                    raise CannotFold(name)  # the tensor that it is a view of would not be written in the trace
                self._hold(tensor)
        answer = func(*args, **given)
        made = () if name in _SHAPE_ONLY or name in _SIZES else _tensors(answer)
        for tensor in (*made, *_tensors(args[:1] if writes else ())):
            self._dependent.add(tensor)
        return answer

    def depends(self, values: Any) -> bool:
        """Tell whether a tensor in ``values`` (nested) comes from input or weights."""
        return self._dependent.has(values)

    def add(self, tensor: Tensor) -> None:
        """Note that ``tensor`` comes from input or weights now."""
        self._dependent.add(tensor)

    def _hold(self, tensor: Tensor) -> None:
        """Give the trace a constant of its own: what is written into ``tensor`` later must not reach it."""
        set_traced(tensor, untraced(tensor.clone).clone())
        self._held.add(tensor)


class CannotFold(Exception):
    """A network writes what depends on the input through a view of a constant."""


def _writes(name: str) -> bool:
    return name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__")) or name[:3] == "__i"


def is_tracing() -> bool:
    """Tell whether ``torch.jit`` traces."""
    return _TRACER._get_tracing_state() is not None


def set_traced(tensor: Tensor, value: Tensor) -> None:
    """Let ``tensor`` stand in the trace for what ``value`` stands for."""
    _TRACER._set_value_trace(tensor, _TRACER._get_value_trace(value))


def untraced(function: Callable[[], Any]) -> Any:
    """Return what ``function`` does, which the trace does not see."""
    state = _TRACER._get_tracing_state()
    _TRACER._set_tracing_state(None)
    try:
        return function()
    finally:
        _TRACER._set_tracing_state(state)
