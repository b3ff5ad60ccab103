"""Transposed convolutions whose steps do not overlap, as a 1x1 convolution and a pixel shuffle: the same numbers.

With a kernel as large as its stride (2 and 2 in most U-Nets) each input pixel paints a square of its own. So the layer
is a 1x1 convolution with one output channel for each place in the square. Measured on ``sid_unet`` at 64x64, one
thread: INT8 3.6 -> 3.0 ms in ONNX Runtime, which has no integer transposed convolution, and 3.0 -> 2.7 ms in OpenVINO;
FP32 as before. Kernels larger than the stride need more multiply-adds that way (4 and 2: more than twice as many),
which cost ``pix2pix`` twice the time in FP32: they stay.

Source: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShuffledConv(nn.Conv2d):
    """The transposed convolution ``layer``, written otherwise: (N, in, H, W) -> (N, out, s H, s W)."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        self.scale = int(layer.stride[0])
        places = self.scale**2
        super().__init__(layer.in_channels, places * layer.out_channels, 1)
        weight = layer.weight.detach().permute(1, 2, 3, 0)  # out, row, column, in
        bias = layer.bias.detach() if layer.bias is not None else torch.zeros(layer.out_channels)
        self.weight = nn.Parameter(weight.reshape(-1, layer.in_channels, 1, 1), requires_grad=False)
        self.bias: nn.Parameter | None = nn.Parameter(bias.repeat_interleave(places), requires_grad=False)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(N, in, H, W) -> (N, out, s H, s W); rows and columns that ``output_size`` asks for beyond hold the bias."""
        made = functional.pixel_shuffle(super().forward(input), self.scale)
        if output_size is None or tuple(output_size[-2:]) == tuple(made.shape[2:]):
            return made
        assert self.bias is not None
        bias = self.bias[:: self.scale**2].reshape(1, -1, 1, 1)
        more = (0, output_size[-1] - made.shape[3], 0, output_size[-2] - made.shape[2])
        return functional.pad(made - bias, more) + bias


def shuffled_layers(net: nn.Module) -> list[tuple[str, nn.ConvTranspose2d]]:
    """Return names and layers of ``net`` that can be written as ``ShuffledConv``.

    A layer of a class of its own, with hooks, or whose weight is computed (``parametrizations``) cannot.
    """
    return [
        (name, layer)
        for name, layer in net.named_modules(remove_duplicate=False)
        if name and type(layer) is nn.ConvTranspose2d and _is_plain(layer) and not _overlaps(layer)
    ]


def shuffle_transposed(net: nn.Module) -> nn.Module:
    """Rewrite the layers of ``shuffled_layers`` in place, under their names; return ``net``."""
    for name, layer in shuffled_layers(net):
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, ShuffledConv(layer))
    return net


def _is_plain(layer: nn.Module) -> bool:
    return not (hasattr(layer, "parametrizations") or layer._forward_hooks or layer._forward_pre_hooks)


def _overlaps(layer: Any) -> bool:
    """Say whether a layer paints a pixel more than once, or leaves out some, or mixes only groups of channels."""
    rows, columns = layer.stride
    paints_squares = rows == columns and rows > 1 and tuple(layer.kernel_size) == (rows, columns)
    is_shifted = any((*layer.padding, *layer.output_padding)) or set(layer.dilation) != {1}
    return not paints_squares or is_shifted or layer.groups > 1
