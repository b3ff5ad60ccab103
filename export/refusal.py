"""What ``torch.export`` and the ONNX exporter stumble over in networks of other people: around it, or named."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from export.quiet import quiet
from models.running_module import RunningModule

_DEPENDENT = "data-dependent"
_CLAMPS = frozenset(("clamp", "clip", "clamp_", "clip_"))
_SUMMARY = re.compile(r"<class '[^']*'>: (.+)")
_OPERATOR = re.compile(r"torch\.ops\.\w+\.(\w+)|OpOverload\(op='\w+\.(\w+)'|\bop '(\w+)' not implemented")
_BRANCH = "_local_scalar_dense"


class FloatBounds(TorchFunctionMode):
    """Makes the bounds of a clamp of floats floats: the exporter of torch 2.13 fails on ``x.clamp(1e-4, 1)``."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        is_clamp = getattr(func, "__name__", "") in _CLAMPS and args and isinstance(args[0], Tensor)
        if is_clamp and args[0].is_floating_point():
            args = [float(value) if type(value) is int else value for value in args]
            given = {name: float(value) if type(value) is int else value for name, value in given.items()}
        return func(*args, **given)


class _Finder(TorchDispatchMode):
    """Notes in which module an operator is called first."""

    def __init__(self, net: nn.Module, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.layer: str | None = None
        self._running = RunningModule(net)

    def close(self) -> None:
        """Remove the hooks."""
        self._running.close()

    def note(self, called: str) -> None:
        """Remember the module that computes when the operator is ``called``."""
        if self.layer is None and called.strip("_") == self.operator.strip("_"):
            self.layer = self._running.name or "the network itself"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Shows a finder the functions that PyTorch takes apart before they are dispatched."""

    def __init__(self, finder: _Finder) -> None:
        super().__init__()
        self.finder = finder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.finder.note(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def layer_of(net: nn.Module, samples: Sequence[Tensor], operator: str) -> str | None:
    """Return the name of the first module of ``net`` that calls an ATen operator on ``samples``, or None."""
    finder = _Finder(net, operator)
    try:
        with torch.no_grad(), finder, _Functions(finder):
            net(*samples)
    except Exception:  # the network of a user may raise anything; then the layer stays unknown
        return finder.layer
    finally:
        finder.close()
    return finder.layer


@contextlib.contextmanager
def without_branches(net: nn.Module, samples: tuple[Tensor, ...]) -> Iterator[None]:
    """Quiet ``torch.jit`` while it traces ``net`` inside of the block, and refuse a branch by the values of a tensor.

    A trace holds one answer of such a branch for ever. It warns of branches by sizes in the same words, so that
    ``torch.export`` is asked which kind it was.

    Raises:
        RuntimeError: Python code decides by the values of a tensor.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    if not any("to a Python boolean" in str(warning.message) for warning in said):
        return
    try:
        with quiet():
            torch.export.export(net, samples, strict=False)
    except Exception as error:  # whatever else it refuses is not asked for here
        if _DEPENDENT in str(error):
            raise RuntimeError(str(error)) from error


def say_refusal(error: BaseException, net: nn.Module, samples: Sequence[Tensor]) -> str:
    """Say in a line which operator of which layer the exporter refused, and why.

    Args:
        error: What it raised.
        net: The network that was exported.
        samples: Its example inputs.
    """
    text = str(error).strip()
    summary = _SUMMARY.search(text)
    reason = (summary.group(1) if summary else text.splitlines()[0] if text else type(error).__name__).strip()
    found = _OPERATOR.search(text.partition("## Exception summary")[2] or text)
    operator = next((name for name in found.groups() if name), None) if found else None
    if _DEPENDENT in text:
        operator, reason = _BRANCH, f"Python code decides by the values of a tensor ({reason})"
    if operator is None:
        return reason
    layer = layer_of(net, samples, operator)
    return f"{'' if layer is None else f'layer {layer}: '}operator {operator}: {reason}"
