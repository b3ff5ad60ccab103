"""Which module of a network is computing: for whoever watches a forward pass operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class RunningModule:
    """Follows the forward passes of a network until ``close``.

    Args:
        net: Network whose modules get hooks.
    """

    def __init__(self, net: nn.Module) -> None:
        self._stack: list[str] = []
        self._hooks = [
            hook
            for name, module in net.named_modules()
            for hook in (
                module.register_forward_pre_hook(self._entering(name)),
                module.register_forward_hook(self._leaving, always_call=True),
            )
        ]

    def _entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(name)

    def _leaving(self, *_: Any) -> None:
        self._stack.pop()

    @property
    def name(self) -> str:
        """Name of the innermost module that is computing; "" for the network itself, and between passes."""
        return self._stack[-1] if self._stack else ""

    def close(self) -> None:
        """Remove the hooks from the network."""
        for hook in self._hooks:
            hook.remove()
