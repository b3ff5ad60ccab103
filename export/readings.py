"""What the Python code of a network reads out of tensors: ``.item()``, ``int()``, ``if``, ``.tolist()``, ``.numpy()``.

Sizes, axes and steps that are given as tensors (``x.permute(*order)``) are read by the function that takes them.

A trace holds what was read for ever. That is right for a value that the input has no part in (a weight, a buffer, a
size), and wrong for any other: the file would hold one answer, or one branch. ``torch.export`` stumbles over the
first kind too. So the network runs once, what each tensor comes from is followed through the operators, and the trace
gets numbers for the first kind, and where it can be, tensors in place of numbers for the second.

Weights that a network computes from others and stores with ``.data =`` (SPAN) are stored in that run, and stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from export.origins import Origins
from export.portable import Portable
from models.errors import ExportError, explain
from models.running_module import RunningModule

_READS = frozenset(
    (
        *("item", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__", "__index__"),
        *("__contains__", "is_nonzero", "equal", "allclose"),
    )
)
_DATA: Any = Tensor.data
_STORE = _DATA.__set__
_GRADIENTS = (torch.autograd.grad, Tensor.backward)
_NO_GRADIENTS = "the forward pass computes a gradient, which no engine does"


def _listed(x: Tensor, read: Callable[[Tensor], Any]) -> Any:
    """Do what ``tolist`` does, one reading after the other, as it is done while ``torch.export`` runs."""
    return [_listed(part, read) for part in x.unbind()] if x.ndim else read(x)


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside the block attributes of ``owner`` have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def as_if_traced() -> Iterator[None]:
    """Inside the block code that asks whether ``torch.jit`` traces (``torch.jit.is_tracing()``) hears that it does.

    Libraries leave out there what a trace cannot hold (kornia looks at the values of a picture, timm at its size): the
    run that looks for readings must go the way that the trace goes.
    """
    with replaced(torch._C, _is_tracing=lambda: True):
        yield


@contextmanager
def as_if_exported() -> Iterator[None]:
    """Inside the block ``torch.compiler.is_exporting()`` and its kind answer as they do in ``torch.onnx.export``."""
    from torch.onnx._internal.exporter import _flags

    with (
        replaced(torch.compiler, _is_compiling_flag=True, _is_exporting_flag=True),
        replaced(_flags, _is_onnx_exporting=True),
    ):
        yield


@dataclass(frozen=True)
class Reading:
    """One value that Python code read.

    Attributes:
        layer: Torch module whose code did; "" is the network's own ``forward``.
        function: What it called; ``data``: it stored a weight.
        value: What it got; of a function that takes sizes, the numbers by the place of the argument.
        dependent: The value depends on the input.
    """

    layer: str
    function: str
    value: Any
    dependent: bool

    @property
    def where(self) -> str:
        """The layer, in words."""
        return f"layer {self.layer or 'the network itself'}"

    @property
    def late(self) -> bool:
        """Tell whether a tensor can stand for the number: the answer need not be of a certain type."""
        return self.dependent and self.function == "item"


class _Reader(TorchFunctionMode):
    """Notes each reading of one forward pass."""

    def __init__(self, net: nn.Module, origins: Origins) -> None:
        super().__init__()
        self.found: list[Reading] = []
        self.stored: list[Reading] = []
        self.gradients: list[Reading] = []
        self._origins, self._running = origins, RunningModule(net)

    def close(self) -> None:
        """Remove the hooks."""
        self._running.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "tolist":
            return _listed(args[0], lambda x: self.__torch_function__(Tensor.item, types, (x,)))
        self._origins.read.clear()
        value = func(*args, **(kwargs or {}))
        if func == _STORE:
            self.stored.append(Reading(self._running.name, "data", None, self._origins.found.has(args[1])))
        if func in _GRADIENTS:
            self.gradients.append(Reading(self._running.name, name, None, dependent=True))
        if name not in _READS:
            sizes = self._sizes(args, kwargs)
            if sizes:
                self.found.append(Reading(self._running.name, name, sizes, dependent=False))
            return value
        self.found.append(Reading(self._running.name, name, copy.copy(value), self._origins.found.has(args)))
        return args[0].reshape(()) if self.found[-1].late else value

    def _sizes(self, args: Any, kwargs: Any) -> dict[int, Any]:
        """Return what the function just called read out of its arguments, and the input has no part in."""
        read = {id(tensor): tensor for tensor in self._origins.read if tensor not in self._origins.found}
        if not read:
            return {}
        leaves = enumerate(tree_leaves((args, dict(kwargs or {}))))
        return {place: read[id(leaf)].item() for place, leaf in leaves if id(leaf) in read}


def readings_of(net: nn.Module, samples: Sequence[Tensor]) -> tuple[list[Reading], list[Reading], list[Reading]]:
    """Run ``net`` on ``samples`` once: what its Python code reads, in order, the weights it stores, and its gradients.

    Call it inside of ``as_if_traced`` or ``as_if_exported``, whichever is done with the network then.
    """
    fresh = [sample.clone() for sample in samples]
    origins = Origins(fresh)
    reader = _Reader(net, origins)
    try:
        with torch.no_grad(), reader, Portable(), origins:
            net(*fresh)
    finally:
        reader.close()
    return reader.found, reader.stored, reader.gradients


class Readings(TorchFunctionMode):
    """Inside the block ``net`` is traced with the right numbers, or tensors in their place.

    Make it as ``readings_of`` is called.

    Args:
        net: The network that is exported.
        samples: Its example inputs.
    """

    def __init__(self, net: nn.Module, samples: Sequence[Tensor]) -> None:
        super().__init__()
        self.found, self.stored, self.gradients = readings_of(net, samples)
        self._net, self._place = net, 0

    def say_gradient(self) -> str | None:
        """Say in which layer the forward pass computes a gradient, or return None."""
        return f"{self.gradients[0].where}: {_NO_GRADIENTS}" if self.gradients else None

    def refuse(self) -> None:
        """Refuse a network whose trace would hold one answer for ever.

        Raises:
            ExportError: Python code needs a number that depends on the input, or a gradient; its layer is named.
        """
        self._refuse([item for item in self.found if not item.late])
        self._refuse(self.gradients, _NO_GRADIENTS, "distill it into a student, which ships in its place")

    def _refuse(
        self,
        readings: Sequence[Reading],
        reason: str = "Python code decides by the values of a tensor",
        fix: str = "compute with torch.where, gather or products in place of the number",
    ) -> None:
        reading = next((item for item in readings if item.dependent), None)
        if reading is not None:
            got = f"{reason} ({reading.function.strip('_')})"
            raise ExportError(
                explain(reading.where, expected="operators alone between input and output", got=got, fix=fix)
            )

    def __enter__(self) -> Readings:
        self._refuse(self.stored)
        self._hook = self._net.register_forward_pre_hook(self._rewind)
        if self.stored:
            # torch.export would leave values without numbers in the network, which crashes PyTorch.
            Tensor.data = property(Tensor.detach, lambda weight, value: None)  # type: ignore[assignment, method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.stored:
            del Tensor.data
        self._hook.remove()

    def _rewind(self, *_: Any) -> None:
        self._place = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "tolist":
            return _listed(args[0], lambda x: self.__torch_function__(Tensor.item, types, (x,)))
        if self._place < len(self.found) and self.found[self._place].function == name:
            reading = self.found[self._place]
            if name not in _READS:
                return self._with_sizes(func, args, kwargs, reading.value)
            self._place += 1
            if reading.late:
                return args[0].reshape(())
            if not reading.dependent:
                return copy.copy(reading.value)
        return func(*args, **(kwargs or {}))

    def _with_sizes(self, func: Any, args: Any, kwargs: Any, sizes: Mapping[int, Any]) -> Any:
        """Call ``func`` with numbers in place of tensors, or as it is where it is another call than the one read."""
        leaves, form = tree_flatten((args, dict(kwargs or {})))
        if all(place < len(leaves) and isinstance(leaves[place], Tensor) for place in sizes):
            self._place += 1
            leaves = [sizes.get(place, leaf) for place, leaf in enumerate(leaves)]
        args, given = tree_unflatten(leaves, form)
        return func(*args, **given)
