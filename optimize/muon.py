"""Muon for convolutions: the momentum of a weight is made orthogonal before it is taken, AdamW for all else.

A step turns every direction of a weight matrix by the same amount, where AdamW follows the few in which gradients are
large. In the minutes that a processor has, that takes plain convolutions further (docs/distillation.md).
``torch.optim.Muon`` takes matrices alone, and multiplies in bfloat16, which many processors emulate.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (coefficients, five iterations);
Liu et al. 2025, "Muon is Scalable for LLM Training" (steps in proportion to AdamW's, so that its rates serve here).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_RMS = 0.4  #: Root mean square of a step in rates: twice AdamW's, better than the same and than four times as large.
_BLOCK = 64  #: Rows that are made orthogonal to each other.
_LEAST = 16  #: Rows and columns of a matrix that is made orthogonal.


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix (m, n) with the singular values of each block of at most 64 rows near 1 (0.7 to 1.2).

    Of a higher matrix, the blocks are columns. A block costs the square of its rows: whole, a weight of 512 channels
    costs several times its convolution of a few pixels.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    blocks = -(-matrix.shape[0] // _BLOCK)
    if matrix.shape[0] % blocks:
        return torch.cat([_turned(part[None])[0] for part in matrix.chunk(blocks)])
    return _turned(matrix.reshape(blocks, -1, matrix.shape[1])).reshape(matrix.shape)


def _turned(x: Tensor) -> Tensor:
    """The Newton-Schulz iteration on matrices (B, m, n), m at most n."""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x


def is_matrix(parameter: Tensor) -> bool:
    """Tell whether ``parameter`` is made orthogonal: not a bias, a table of few columns, a depthwise kernel."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= _LEAST and parameter.shape[1] > 1


class Muon(torch.optim.Optimizer):
    """Steps of Muon for weights of convolutions and linear layers, of AdamW for everything else.

    Args:
        parameters: What is trained.
        lr: AdamW's rate; Muon's steps are twice as large.
        weight_decay: Share of a weight that a step takes off, times the rate.
        momentum: Muon's.
        betas: AdamW's.
        eps: AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(parameters, given)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._turn if is_matrix(parameter) else self._adapt)(parameter, group)
        return loss

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        turned = orthogonal(ahead.flatten(1).float())
        size = _RMS * math.sqrt(max(turned.shape))
        parameter.add_(turned.view(parameter.shape), alpha=-group["lr"] * size)

    def _adapt(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, (first, second) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        count = float(state["step"])
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**count))
