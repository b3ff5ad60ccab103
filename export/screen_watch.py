"""Watches a forward pass operator by operator: the largest value at each layer, and operators by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from export.screens import SHUFFLED
from export.transposed import shuffled_layers
from models.running_module import RunningModule

#: Operators that only move values.
_MOVES = frozenset(
    (
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "permute",
            "transpose",
            "t",
            "expand",
            "slice",
            "select",
        ),
        *("split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "cat", "stack", "clone"),
        *("detach", "as_strided", "alias", "pixel_shuffle", "pixel_unshuffle", "roll", "flip", "repeat", "lift_fresh"),
    )
)
_NORMS = frozenset(("native_layer_norm", "native_group_norm", "var", "std", "var_mean", "linalg_vector_norm"))


class Watch(TorchDispatchMode):
    """Notes peaks and kinds of operators by the module that computes them.

    Args:
        net: Network whose modules are followed until ``close``.
        kinds: ATen operator -> kind; operators on weights alone have none, since every graph holds them as constants.

    Attributes:
        peaks: Module name -> largest absolute value of what its own operators read or write.
        met: Kind -> the module of each time that it ran.
    """

    def __init__(self, net: nn.Module, kinds: Mapping[str, str]) -> None:
        super().__init__()
        self.peaks: dict[str, float] = {}
        self.met: dict[str, list[str]] = defaultdict(list)
        self._shuffled = {name for name, _ in shuffled_layers(net)}
        self._kinds, self._running = kinds, RunningModule(net)
        self._known = WeakTensorKeyDictionary()  # tensor -> its peak; no tensor lives longer than in the network
        self._moving = WeakTensorKeyDictionary()

    def start(self, image: Tensor) -> None:
        """Take ``image`` for what changes from one photo to the next."""
        self._moving[image] = True

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._running.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_") if hasattr(func, "overloadpacket") else str(func)
        layer = self._running.name
        if any(value in self._moving for value in _tensors(args)):
            for value in _tensors(result):
                self.start(value)
            if kind := self._kind(name, args, result):
                self.met[kind].append(layer)
        read = max((self._peak(value) for value in _floats(args)), default=0.0)
        if name in _MOVES:
            for value in _floats(result):
                self._known[value] = read
        shown = result[:1] if name in _NORMS and isinstance(result, tuple) else result  # not the inverse deviation
        made = max((self._peak(value) for value in _floats(shown)), default=0.0)
        self.peaks[layer] = max(self.peaks.get(layer, 0.0), read, made, _inside(name, args))
        return result

    def _kind(self, name: str, args: Any, result: Any) -> str | None:
        """Return the kind of an operator; a mean over dimension 1 of a picture is a norm over channels."""
        if name in ("convolution", "_convolution") and len(args) > 6 and args[6]:
            return SHUFFLED if self._running.name in self._shuffled else "transposed convolution"
        if name == "mean" and isinstance(result, Tensor) and len(args) > 1:
            return "norm over channels" if result.ndim == 4 and list(args[1]) == [1] else None
        if name == "index" and not any(isinstance(item, Tensor) for item in args[1]):
            return None
        return self._kinds.get(name)

    def _peak(self, value: Tensor) -> float:
        if value not in self._known:
            self._known[value] = float(value.abs().amax())
        return float(self._known[value])


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _floats(value: Any) -> list[Tensor]:
    """Return the floating tensors with elements in nested lists and tuples."""
    return [tensor for tensor in _tensors(value) if tensor.is_floating_point() and tensor.numel()]


def _inside(name: str, args: Any) -> float:
    """Return the largest square that an engine computes inside of a norm, 0 for any other operator."""
    if name not in _NORMS or not args[0].numel():
        return 0.0
    x = args[0].float()
    if name == "linalg_vector_norm":
        return float(x.square().amax())
    dims: Any = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
    if name == "native_layer_norm":
        dims = list(range(-len(args[1]), 0))
    elif name == "native_group_norm":
        x, dims = x.reshape(x.shape[0], args[6], -1), [-1]
    mean = x.mean(dim=dims, keepdim=True) if dims else x.mean()
    return float((x - mean).square().amax())
