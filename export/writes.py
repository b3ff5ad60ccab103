"""Writes into tensors, traced by ``torch.jit`` as new tensors: coremltools takes some of them, and into views few.

``x[:, 0].sub_(mean)``, ``h[:, :, ::2] = low``, ``part.clamp_(0, 1)``: what is written becomes an operation without side
effects. The tensor, what it is a view of, and other views of that which overlap it get their new values in the trace.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from export.origins import Constants, is_tracing, set_traced, untraced
from export.portable import BY_NAME
from export.portable_shapes import cut, masked

#: Functions of a view that keep the order of the values, that exchange axes, and that leave values out.
_RESHAPES = frozenset(
    ("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze")
)
_TURNS = frozenset(("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "__get__"))
_CUTS = frozenset(("__getitem__", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split"))
#: In place, but of the shape, of the history, or by chance.
_OTHERS = frozenset(
    ("squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "as_strided_", "detach_", "bernoulli_")
)

#: What coremltools does not write into whole tensors either.
_LACKING = frozenset((*BY_NAME, "zero", "fill", "copy"))

#: Of each axis the places that are written.
Places = list[list[int]]
#: From a tensor and the new value of a view of it to the tensor's.
Back = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _View:
    """What a tensor shows: ``make(parent)``, by the function ``name``."""

    parent: Tensor
    name: str
    make: Callable[[Tensor], Tensor]


class Writes(TorchFunctionMode):
    """Inside the block ``torch.jit`` traces writes as operations without side effects. For fixed sizes.

    What cannot be told so (a write by computed places, into a view of unknown origin) runs as it is.

    Args:
        constants: What the trace holds as constants, where it does.
    """

    def __init__(self, constants: Constants | None = None) -> None:
        super().__init__()
        self._constants = constants
        self._views: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if not (is_tracing() and args and isinstance(args[0], Tensor)):
            return func(*args, **given)
        if name == "__setitem__":
            return None if self._assign(*args) else func(*args)
        write = _function_of(func, args, given)
        if write is not None:
            return args[0] if self._write(name, args, given, write) else func(*args, **given)
        answer = func(*args, **given)
        self._note(func, args, given, answer)
        return answer

    def _note(self, func: Any, args: Sequence[Any], given: Mapping[str, Any], answer: Any) -> None:
        """Remember which tensors of ``answer`` are views of the first argument."""
        several = isinstance(answer, (tuple, list))
        for place, shown in enumerate(answer if several else (answer,)):
            if isinstance(shown, Tensor) and shown is not args[0] and _share(shown, args[0]):

                def make(parent: Tensor, place: int = place) -> Any:
                    made = func(parent, *args[1:], **given)
                    return made[place] if several else made

                self._views[shown] = _View(args[0], func.__name__, make)

    def _assign(self, x: Tensor, index: Any, value: Any) -> bool:
        """Trace ``x[index] = value``; tell whether that was possible."""
        ways = self._ways(x) if self._depends((x, index, value)) else None
        if ways is None:
            return False
        if isinstance(value, Tensor) and _share(value, x) and _aside(lambda: _is_same(value, x[index])):
            return True  # what follows ``x[index] += 1``, which has written
        new = masked(x, index, value)
        if new is NotImplemented:
            found = _aside(lambda: self._places(x, index))
            if found is None:
                return False
            new = _with(x, _spread(value, found[1], x), found[0])
        self._store(x, new, ways)
        return True

    def _write(self, name: str, args: Sequence[Any], given: Mapping[str, Any], write: Callable[[], Tensor]) -> bool:
        """Trace a function that writes into its first argument; tell whether that was needed and possible."""
        x = args[0]
        is_alone = not x._is_view() and not any(_share(x, shown) for shown in self._views)
        if (is_alone and name[:-1] not in _LACKING) or not self._depends((args, given)):
            return False
        ways = self._ways(x)
        if ways is not None:
            self._store(x, write(), ways)
        return ways is not None

    def _depends(self, values: Any) -> bool:
        return self._constants is None or self._constants.depends(values)

    def _ways(self, x: Tensor) -> list[tuple[Tensor, Back]] | None:
        """Return what ``x`` is a view of, and what that is a view of, with the way there; None where one is unknown."""
        ways: list[tuple[Tensor, Back]] = []
        while x in self._views:
            view = self._views[x]
            back = _aside(partial(_back, x, view))
            if back is None:
                return None
            ways.append((view.parent, back))
            x = view.parent
        return None if x._is_view() else ways

    def _store(self, x: Tensor, new: Tensor, ways: Sequence[tuple[Tensor, Back]]) -> None:
        """Make ``new`` the value of ``x``, of what it is a view of, and of the views that overlap it."""
        new = _spread(new, _sides(x), x)
        updates = [(x, new)]
        for parent, back in ways:
            updates.append((parent, back(parent, updates[-1][1])))
        _aside(lambda: x.copy_(new))
        known = {id(tensor) for tensor, _ in updates}
        for tensor, value in updates:
            self._give(tensor, value)
        for shown, view in list(self._views.items()):
            if id(shown) not in known and _share(shown, x) and _aside(partial(_overlap, shown, x)):
                self._give(shown, view.make(view.parent))

    def _give(self, tensor: Tensor, value: Tensor) -> None:
        set_traced(tensor, value)
        if self._constants is not None:
            self._constants.add(tensor)

    def _number(self, part: Any) -> Any:
        """Return a part of an index as a number where it is one that Python computed from sizes."""
        is_number = isinstance(part, Tensor) and part.ndim == 0 and part.dtype == torch.int64
        return int(part) if is_number and not self._depends(part) else part

    def _places(self, x: Tensor, index: Any) -> tuple[Places, list[int]] | None:
        """Return the places of each axis that ``index`` names and the shape of ``x[index]``; else None."""
        index = [self._number(part) for part in (index if isinstance(index, tuple) else (index,))]
        lists = [at for at, part in enumerate(index) if isinstance(part, (list, range, Tensor))]
        whole = [slice(None) if at in lists else part for at, part in enumerate(index)]
        if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in whole):
            return None
        if not lists:
            return _cut_places(x, lambda probe: probe[tuple(whole)]), list(map(int, x[tuple(whole)].shape))
        numbers, at = index[lists[0]], lists[0]
        if isinstance(numbers, Tensor):
            numbers = None if self._depends(numbers) or numbers.ndim != 1 else numbers.tolist()
        if numbers is None or len(lists) > 1 or any(isinstance(part, (int, type(None))) for part in whole):
            return None
        behind = any(part is Ellipsis for part in whole[:at])
        axis = x.ndim - len(whole) + at if behind else at
        places = _cut_places(x, lambda probe: probe[tuple(whole)])
        side = int(x.shape[axis])
        places[axis] = [number % side for number in numbers if type(number) is int]
        if len(set(places[axis])) != len(numbers):
            return None
        return places, [len(found) for found in places]


def _function_of(
    func: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]
) -> Callable[[], Tensor] | None:
    """Return what computes the value that ``func`` writes into its first argument; None where it writes nothing."""
    name, x, rest = getattr(func, "__name__", ""), args[0], args[1:]
    if inspect.isfunction(func) and func.__module__ == functional.__name__:
        bound = inspect.signature(func).bind(*args, **given)
        if not bound.arguments.get("inplace"):
            return None
        bound.arguments["inplace"] = False
        return lambda: func(*bound.args, **bound.kwargs)
    if name in ("zero_", "fill_", "copy_"):
        value = next(iter((*rest, *given.values())), 0)
        return lambda: _spread(value, _sides(x), x)
    if name.endswith("__") or not name.endswith("_") or name in _OTHERS:
        return None
    plain: Any = getattr(Tensor, name[:-1], None) or getattr(functional, name[:-1], None)
    return partial(plain, x, *rest, **given) if callable(plain) else None


def _spread(value: Any, shape: Sequence[int], x: Tensor) -> Tensor:
    """Return ``value`` in a shape, and in the type of ``x``."""
    if not isinstance(value, Tensor):
        return torch.full(list(shape), value, dtype=x.dtype)
    while value.ndim > len(shape):
        value = value.squeeze(0)
    value = value if value.dtype == x.dtype else value.to(x.dtype)
    return value if _sides(value) == list(shape) else value.expand(*shape)


def _aside(function: Callable[[], Any]) -> Any:
    """Return what ``function`` does, which neither the trace nor another mode sees."""
    with torch._C.DisableTorchFunction():
        return untraced(function)


def _sides(x: Tensor) -> list[int]:
    """Return the shape as numbers: in a trace they are tensors."""
    sides: list[int] = _aside(lambda: [int(side) for side in x.shape])
    return sides


def _share(x: Tensor, other: Tensor) -> bool:
    return x.untyped_storage()._cdata == other.untyped_storage()._cdata


def _is_same(x: Tensor, other: Tensor) -> bool:
    return all(function(x) == function(other) for function in (Tensor.data_ptr, Tensor.size, Tensor.stride))


def _overlap(x: Tensor, other: Tensor) -> bool:
    """Tell whether two views of one tensor have values in common."""
    used = torch.zeros(x.untyped_storage().nbytes() // x.itemsize, dtype=torch.bool)
    used.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return bool(used.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _back(x: Tensor, view: _View) -> Back | None:
    """Return the way from a new value of ``x`` to that of its parent; None where the function is another."""
    parent = view.parent
    shape = list(map(int, parent.shape))
    if _is_same(x, parent):
        return lambda parent, new: new
    if view.name in _RESHAPES:
        return lambda parent, new: new.reshape(shape)
    if view.name in _TURNS:
        turned = view.make(torch.empty([side + 2 for side in range(parent.ndim)])).shape
        return lambda parent, new: new.permute([list(turned).index(side + 2) for side in range(parent.ndim)])
    if view.name in _CUTS and not any(step == 0 for step in x.stride()):
        places = _cut_places(parent, view.make)
        if math.prod(len(found) for found in places) == x.numel():
            return lambda parent, new: _with(parent, new, places)
    return None


def _cut_places(x: Tensor, part: Callable[[Tensor], Tensor]) -> Places:
    """Return the places of each axis of ``x`` that ``part(x)`` shows, a view that leaves values out."""
    places = []
    for axis, side in enumerate(x.shape):
        numbers = torch.arange(int(side)).reshape([-1 if at == axis else 1 for at in range(x.ndim)]).expand(x.shape)
        shown = part(numbers)
        for at in reversed(range(shown.ndim)):
            shown = shown.select(at, 0) if shown.stride(at) == 0 or shown.shape[at] == 1 else shown
        places.append(shown.reshape(-1).tolist())
    return places


def _with(x: Tensor, value: Tensor, places: Places) -> Tensor:
    """Return ``x`` with ``value`` in ``places``; ``value`` has as many values, in their order."""
    value = value.reshape([len(found) for found in places])
    parts = [None if found == list(range(side)) else found for found, side in zip(places, _sides(x), strict=True)]
    return _merged(x, value, parts)


def _merged(x: Tensor, value: Tensor, places: Sequence[list[int] | None]) -> Tensor:
    axis = next((axis for axis, found in enumerate(places) if found is not None), None)
    if axis is None:
        return value
    found = places[axis] or []
    side = _sides(x)[axis]
    rest = [None if at == axis else part for at, part in enumerate(places)]
    first, last = found[0], found[-1] + 1
    is_one = found == list(range(first, last))
    if any(part is not None for part in rest):
        part = cut(x, axis, slice(first, last)) if is_one else x.index_select(axis, torch.tensor(found))
        value = _merged(part, value, rest)
    if is_one:
        parts = [cut(x, axis, slice(0, first))] if first else []
        return torch.cat([*parts, value, *([cut(x, axis, slice(last, side))] if last < side else [])], axis)
    order = list(range(side))
    for place, at in enumerate(found):
        order[at] = side + place
    return torch.cat([x, value], axis).index_select(axis, torch.tensor(order))
