"""Max-unpooling where the pooling before it is known: masks in place of the indices of a pooling.

TensorRT takes no indices from a max pooling, and Core ML has no unpooling. Windows that do not overlap are slices of
the picture: which of them is the largest (the first of equal ones, as in PyTorch) is a mask a slice, and unpooling
puts the masked values side by side. Masks compare slices with each other, not with the pooled values, which INT8
rounds apart from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from export.portable_shapes import is_open, pair

_MASKS = WeakTensorKeyDictionary()  # indices of a pooling -> (height and width of its window, a mask a place in it)


def pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Max pooling with indices, (N, C, H, W); what ``unpool`` needs is kept beside the indices."""
    window = pair(kernel_size)
    plain = pair(padding) == [0, 0] and pair(dilation) == [1, 1] and (stride is None or pair(stride) == window)
    if not plain or x.ndim != 4 or is_open(*x.shape) or any(int(x.shape[2 + axis]) % window[axis] for axis in (0, 1)):
        return NotImplemented
    _, indices = functional.max_pool2d_with_indices(x, window)
    slices = [x[:, :, row :: window[0], column :: window[1]] for row in range(window[0]) for column in range(window[1])]
    masks = []
    for place, own in enumerate(slices):
        mask = torch.ones_like(own, dtype=torch.bool)
        for other, value in enumerate(slices):
            if other != place:
                mask = mask & (own > value if other < place else own >= value)
        masks.append(mask)
    _MASKS[indices] = (window, masks)
    return functional.max_pool2d(x, window), indices


def unpool(
    x: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Unpooling, (N, C, h, w) -> (N, C, H, W), of indices that ``pool`` gave."""
    window, masks = _MASKS.get(indices, (None, []))
    if window is None or masks[0].shape != x.shape or pair(kernel_size) != window:
        return NotImplemented
    size = [int(x.shape[2]) * window[0], int(x.shape[3]) * window[1]]
    if output_size is not None and [int(side) for side in output_size][-2:] != size:
        return NotImplemented
    parts = [x * mask.to(x.dtype) for mask in masks]
    rows = [torch.stack(parts[at : at + window[1]], -1).flatten(-2) for at in range(0, len(parts), window[1])]
    return torch.stack(rows, 3).flatten(2, 3)
