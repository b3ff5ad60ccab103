"""What half precision does to a network, before it is exported: the forward pass once more, each result rounded.

Differences of nearly equal numbers (variance as mean of squares minus square of the mean, the box filters of a guided
filter, phases, equations that are solved inside) lose their digits in FP16 although nothing overflows. Then layers with
weights alone in half precision keep the files small and the numbers right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from export.portable import Portable
from export.screens import LARGEST_HALF
from models.running_module import RunningModule

#: ATen operators of layers.
_LAYERS = frozenset(("convolution", "_convolution", "mm", "bmm", "addmm", "baddbmm"))
#: ATen operators whose numbers an exported file holds in half precision too: an epsilon below 3e-8 is 0 there.
_WITH_NUMBERS = frozenset(
    ("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "where")
)


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.clamp(-LARGEST_HALF, LARGEST_HALF).half().float()
    return value


def _rounded_too(value: Any) -> Any:
    """Round numbers as well as tensors."""
    return float(np.float16(np.clip(value, -LARGEST_HALF, LARGEST_HALF))) if type(value) is float else _rounded(value)


class HalfRounding(TorchDispatchMode):
    """Rounds what operators read and write to half precision, beyond its range to the largest half.

    Args:
        net: Network whose modules are followed until ``close``.
        keep: Modules whose own operators stay in FP32.
        layers_only: Only layers with weights are in half precision: products of two activations are not.
    """

    def __init__(self, net: nn.Module, keep: Collection[str], *, layers_only: bool) -> None:
        super().__init__()
        self._keep, self._layers_only, self._running = frozenset(keep), layers_only, RunningModule(net)
        self._weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._running.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        if self._running.name in self._keep or (self._layers_only and not self._is_layer(name, args)):
            return func(*args, **given)
        if func._schema.is_mutable:  # its arguments are written, not their copies
            result = func(*args, **given)
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                result.copy_(_rounded(result))
            return result
        if any(result.alias_info is not None for result in func._schema.returns):  # a view of what was rounded
            return func(*args, **given)
        read = _rounded_too if name in _WITH_NUMBERS else _rounded
        return tree_map(_rounded, func(*tree_map(read, args), **tree_map(read, given)))

    def _is_layer(self, name: str, args: Sequence[Any]) -> bool:
        tensors = (value for value in args if isinstance(value, Tensor))
        return name in _LAYERS and any(value.untyped_storage().data_ptr() in self._weights for value in tensors)


def half_error(
    net: nn.Module, image: Tensor, keep: Collection[str] = (), *, layers_only: bool = False
) -> tuple[float, float]:
    """Return the largest and the root mean square error of ``net`` in half precision, in spans of its output.

    Args:
        net: Network in eval mode, FP32.
        image: (N, C, H, W).
        keep: Modules whose own operators stay in FP32.
        layers_only: Only layers with weights are in half precision.
    """
    with torch.no_grad(), Portable():  # as it is exported
        expected = _outputs(net(image))
        mode = HalfRounding(net, keep, layers_only=layers_only)
        try:
            with mode:
                got = _outputs(net(image))
        finally:
            mode.close()
    span = float(expected.max() - expected.min())
    error = (got - expected).abs() / max(span, torch.finfo(torch.float32).tiny)
    error = torch.where(got.isfinite(), error, 1.0)
    return float(error.max()), float(error.square().mean().sqrt())


def _outputs(answer: Any) -> Tensor:
    return torch.cat([value.float().flatten() for value in tree_leaves(answer) if isinstance(value, Tensor)])
