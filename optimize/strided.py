"""Strided 1x1 convolutions as a slice and a plain one, where the gradient of the strided one would end the process.

oneDNN's gradient of the weights of such a layer writes past its memory where the picture is stored with channels last
and has fewer channels than a vector register has lanes: crashes with AVX-512, wrong gradients with AVX2 (oneDNN issue
6035, PyTorch 2.13). Narrow ResNets have them.
"""

from __future__ import annotations

from torch import Tensor, nn

#: Floats in a register of AVX-512.
_LANES = 16


def slice_strided(net: nn.Module) -> None:
    """Let the strided 1x1 convolutions of ``net`` that are too narrow read a slice of their input; the numbers stay."""
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d) or layer.in_channels // layer.groups >= _LANES:
            continue
        if tuple(layer.kernel_size) == (1, 1) and max(layer.stride) > 1 and layer.padding in ((0, 0), "valid"):
            layer.register_forward_pre_hook(_Slice(*layer.stride), with_kwargs=True)
            layer.stride = (1, 1)


class _Slice:
    """Keeps the values that a convolution of this stride reads."""

    def __init__(self, down: int, across: int) -> None:
        self._down, self._across = down, across

    def __call__(
        self, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor], dict[str, Tensor]]:
        given = inputs[0] if inputs else named["input"]
        return (given[..., :: self._down, :: self._across],), {}
