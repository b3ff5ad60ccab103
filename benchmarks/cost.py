"""What a network costs on paper: parameters and multiply-adds, and what was not counted.

One multiply-add is one MAC. Convolutions, transposed convolutions, matrix products and attention are counted at the
level of operators, so functional calls count too; everything else that computes is listed with its number of calls.

Source: the formulas of ``torch.utils.flop_counter`` (two FLOPs a multiply-add).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from models.errors import ConfigError, InputSizeError, explain

# Moves or names data, computes nothing.
_FREE_NAMES = (
    "view _unsafe_view reshape _reshape_alias expand permute transpose t squeeze unsqueeze slice select split "
    "split_with_sizes chunk unbind detach alias clone copy_ contiguous cat stack as_strided empty empty_like "
    "new_empty zeros zeros_like ones ones_like full full_like pixel_shuffle pixel_unshuffle _to_copy lift_fresh "
    "constant_pad_nd arange scalar_tensor"
)
_FREE = frozenset(_FREE_NAMES.split())


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Attributes:
        params_m: Parameters, millions; buffers (BatchNorm statistics) are not parameters.
        gmacs: Multiply-adds, thousand millions.
        not_counted: Operators that compute and are not in ``gmacs``, with their calls, for example ``"add (3 calls)"``.
    """

    params_m: float
    gmacs: float
    not_counted: tuple[str, ...]


class _Uncounted(TorchDispatchMode):
    """Counts calls of operators that have no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.overloadpacket not in flop_registry and name not in _FREE:
            self.calls[name.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


def cost(net: nn.Module, input_shape: tuple[int, int, int, int]) -> Cost:
    """Count one forward pass of ``net`` in eval mode on zeros of ``input_shape`` (N, C, H, W).

    Raises:
        ConfigError: ``input_shape`` is not four positive numbers.
        InputSizeError: The network refuses this shape.
    """
    if len(input_shape) != 4 or min(input_shape) < 1:
        fix = "for example (1, 1, 256, 256)"
        raise ConfigError(explain("input shape", expected="N, C, H, W, all positive", got=input_shape, fix=fix))
    training = net.training
    net.eval()
    parameter = next(net.parameters(), torch.zeros(()))
    zeros = torch.zeros(input_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _Uncounted() as uncounted:
            net(zeros)
    except RuntimeError as error:
        fix = "pass the channels, height and width that the network takes"
        got = f"{input_shape} ({str(error).splitlines()[0]})"
        raise InputSizeError(explain("input shape", expected="one that the network takes", got=got, fix=fix)) from error
    finally:
        net.train(training)
    calls = tuple(f"{name} ({count} calls)" for name, count in sorted(uncounted.calls.items()))
    params = sum(parameter.numel() for parameter in net.parameters())
    return Cost(params_m=params / 1e6, gmacs=counter.get_total_flops() / 2 / 1e9, not_counted=calls)
