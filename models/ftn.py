"""FTN: a denoiser whose kernels move in a straight line from those of the start level to those of the end level.

A filter transition network, two grouped 1x1 convolutions with a PReLU between, turns a trained kernel into the one of
the end level; it starts as the identity. A kernel between is ``(1 - level) * start + level * end``, and a convolution
is linear in its kernel, so the graph computes ``start(x) + level * change(x)`` with ``change = end - start``: exact,
and with constant kernels, which every engine and INT8 take. Where the level is known at export, both kernels are one
(``at_level``), at the cost of the plain network.

Training in two steps: the network at the start level, then the transition alone at the end level. After that the
transition is applied once (``finished``), and what ships are plain convolutions. The paper moves kernels; the change
of the bias is trained beside, from zero.

Source: Lee et al. 2020, "Smoother Network Tuning and Interpolation for Continuous-level Image Processing". The authors
published no code; the names are ours, those of the residual network AdaFM's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.controls import spread, unpack
from models.dni import plain_of
from models.errors import ConfigError, explain
from models.fixed_level import Fixed
from models.residual_denoiser import ResidualDenoiser, Tunable


class Transition(nn.Module):
    """Kernels of the start level -> kernels of the end level, (out, in, k, k); starts as the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        if channels % groups:
            fix = "choose a divisor"
            raise ConfigError(explain("FTN groups", expected=f"a divisor of {channels}", got=groups, fix=fix))
        self.first = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.activation = nn.PReLU(channels, init=1.0)
        self.second = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.reset()

    def reset(self) -> None:
        """Become the identity."""
        for layer in (self.first, self.second):
            each = layer.weight.shape[1]
            eye = torch.eye(each).repeat(layer.weight.shape[0] // each, 1)
            layer.weight.data.copy_(eye[:, :, None, None])
        nn.init.ones_(self.activation.weight)

    def forward(self, kernel: Tensor) -> Tensor:
        """(out, in, k, k) -> (out, in, k, k)."""
        moved: Tensor = self.second(self.activation(self.first(kernel)))
        return moved


class TransitionConv(Tunable):
    """A 3x3 convolution whose kernel is moved by the level: (N, C, H, W) -> (N, C, H, W).

    ``conv`` is the start; ``transition`` (while it is trained) or ``change`` (after) leads to the end.
    """

    def __init__(self, channels: int, groups: int, *, finished: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.change: nn.Conv2d | None = None
        self.transition: Transition | None = None
        if finished:
            self.change = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.transition = Transition(channels, groups)
            self.offset = nn.Parameter(torch.zeros(channels))

    def end_change(self) -> tuple[Tensor, Tensor]:
        """Return what is added to kernel and bias at level 1."""
        if self.change is not None:
            assert self.change.bias is not None
            return self.change.weight, self.change.bias
        assert self.transition is not None
        return self.transition(self.conv.weight) - self.conv.weight, self.offset

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        """(N, C, H, W) and level (N,) or (1,) -> (N, C, H, W)."""
        start: Tensor = self.conv(x)
        if level is None:
            return start
        if self.change is not None:
            return start + spread(level) * self.change(x)
        kernel, offset = self.end_change()
        return start + spread(level) * functional.conv2d(x, kernel, offset, padding=1)


class FTN(ResidualDenoiser):
    """The network; see the module's docstring."""

    def __init__(self, width: int = 64, depth: int = 16, *, groups: int = 16, finished: bool = False) -> None:
        super().__init__(width, depth, convolution=lambda channels: TransitionConv(channels, groups, finished=finished))
        self.sizes = {"width": width, "depth": depth, "groups": groups}
        for layer in self.modules():
            if isinstance(layer, Transition):
                layer.reset()

    def tuning_parameters(self) -> list[nn.Parameter]:
        """Return what the second step of the training changes; nothing of a finished network."""
        layers = [
            layer for layer in self.modules() if isinstance(layer, TransitionConv) and layer.transition is not None
        ]
        return [p for layer in layers for name, p in layer.named_parameters() if not name.startswith("conv.")]

    @torch.no_grad()
    def finished(self) -> tuple[FTN, dict[str, Any]]:
        """Return the network with plain convolutions that ships, and its factory arguments."""
        kwargs: dict[str, Any] = {**self.sizes, "finished": True}
        other = ftn(**kwargs)
        state = {key: value for key, value in self.state_dict().items() if key in other.state_dict()}
        for name, layer in self.named_modules():
            if isinstance(layer, TransitionConv):
                kernel, offset = layer.end_change()
                state[f"{name}.change.weight"], state[f"{name}.change.bias"] = kernel.clone(), offset.clone()
        other.load_state_dict(state)
        return other.eval(), kwargs

    @torch.no_grad()
    def at_level(self, level: float) -> Fixed:
        """Return the plain network of one level: both kernels are one. Half of the multiply-adds in the blocks."""
        state: dict[str, Tensor] = {}
        moved = {name: layer for name, layer in self.named_modules() if isinstance(layer, TransitionConv)}
        for name, layer in moved.items():
            kernel, offset = layer.end_change()
            assert layer.conv.bias is not None
            state[f"{name}.weight"] = layer.conv.weight + level * kernel
            state[f"{name}.bias"] = layer.conv.bias + level * offset
        inside = tuple(f"{name}." for name in moved)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d) and not name.startswith(inside):
                assert layer.bias is not None
                state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight.clone(), layer.bias.clone()
        return plain_of(self, state, level)

    def forward(self, input: Tensor, level: Tensor | None = None) -> Tensor:
        """Image (N, 3, H, W) and level (N,) or (1,), or both packed (N, 4, H, W) -> (N, 3, H, W); H and W even."""
        if level is None:
            input, level = unpack(input, 1)
        return self.run(input, level)


def ftn(width: int = 64, depth: int = 16, groups: int = 16, finished: bool = False) -> FTN:
    """Build the network with random weights; ``finished``: with plain convolutions, as it ships."""
    return FTN(width, depth, groups=groups, finished=finished)
