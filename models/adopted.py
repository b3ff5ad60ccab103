"""Networks of users' own, adopted: made to be called, in batches too, and copied as Pare's own are.

Training and scoring ask for several pictures at once, an engine for one. A network that was only ever called with one
may know no other way (``x.squeeze(0)``), or mix what it is given (``x / x.max()``); it is asked for each on its own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from models.modes import in_eval_mode

#: Largest mean difference between answers in a batch and alone, as a share of their standard deviation.
_ROUNDING = 1e-2


def adopt(net: nn.Module) -> nn.Module:
    """Return ``net``, whose class is from now on one of its own.

    It answers a batch (N, ...) as it answers its N pictures one by one; the first batch tells whether it does so by
    itself, which is faster. It may write into its input (``x.sub_(mean)``): what the caller passed stays as it is. It
    can be copied after a forward pass too, where it keeps values of it (features that hooks caught).
    """
    kind = type(net)
    if hasattr(kind, "_takes_batches"):  # a factory that returns one network each time
        return net

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        def answer(*inputs: Any) -> Any:
            return kind.forward(self, *inputs, **named)

        batch = _batch_of(given)
        if batch < 2:
            return answer(*given)
        if self._takes_batches is None:
            with torch.no_grad(), in_eval_mode(self):
                self._takes_batches = _answers_alike(answer, given)
        return answer(*given) if self._takes_batches else _one_by_one(answer, given, batch)

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        own = getattr(kind, "__deepcopy__", None)
        if own is not None:
            made: nn.Module = own(self, memo)
            return made
        memo.update((id(value), value.detach()) for value in _values_of_a_pass(vars(self), set()))
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(vars(self), memo))
        return made

    names = {"forward": forward, "__deepcopy__": __deepcopy__, "_takes_batches": None}
    net.__class__ = type(kind.__name__, (kind,), {**names, "__module__": kind.__module__, "__doc__": kind.__doc__})
    net.register_forward_pre_hook(_own_copies)
    return net


def _own_copies(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(given.clone() for given in inputs)


def _batch_of(given: tuple[Any, ...]) -> int:
    """Return how many pictures these are; 1 while the network is traced or exported, which goes its own way."""
    is_captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if is_captured or not given or not isinstance(given[0], Tensor):
        return 1
    return int(given[0].shape[0]) if given[0].ndim > 1 else 1


def _one_by_one(answer: Any, given: tuple[Any, ...], batch: int) -> Tensor:
    def part(value: Any, index: int) -> Any:
        has_rows = isinstance(value, Tensor) and value.ndim and value.shape[0] == batch
        return value[index : index + 1].clone() if has_rows else value  # it may write into its input

    return torch.cat([answer(*(part(value, index) for value in given)) for index in range(batch)])


def _answers_alike(answer: Any, given: tuple[Any, ...]) -> bool:
    """Say whether two pictures, of which the second is half as bright, get the same answers together as alone."""
    pair = tuple(value[:2].clone() if isinstance(value, Tensor) and value.ndim else value for value in given)
    pair[0][1] *= 0.5
    alone = _one_by_one(answer, pair, 2)
    try:
        together = answer(*(value.clone() if isinstance(value, Tensor) else value for value in pair))
        if together.shape != alone.shape:
            return False
    except Exception:  # code of the user's may raise anything
        return False
    return bool((together - alone).abs().mean() <= _ROUNDING * alone.std().clamp_min(1e-6))


def _values_of_a_pass(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Find the tensors with a history, which PyTorch does not copy, below ``value``."""
    if id(value) in seen or isinstance(value, (type, ModuleType, str, int, float)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    parts: list[Any] = list(value.values()) if isinstance(value, dict) else [getattr(value, "__self__", None)]
    if isinstance(value, (list, tuple, set)):
        parts = list(value)
    for part in (*parts, getattr(value, "__dict__", None)):
        yield from _values_of_a_pass(part, seen)
