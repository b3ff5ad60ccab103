"""Blocks that several architectures share, and the resizing of layers to stored (pruned) weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import CheckpointError, explain


class ConvNormAct(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, kernel_size: int = 3, padding: int | None = None
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                kernel_size // 2 if padding is None else padding,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class PixelShuffleUpsample(nn.Module):
    """1x1 convolution to scale^2 times the channels, then pixel shuffle: (N, in, H, W) -> (N, out, sH, sW)."""

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(in_channels, out_channels * scale**2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels * scale**2)
        self.relu = nn.ReLU(inplace=True)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, scale * H, scale * W)."""
        return self.shuffle(self.relu(self.norm(self.conv(x))))


def upsample_bilinear(x: Tensor, scale: int) -> Tensor:
    """Bilinear upsampling (half-pixel centres) as two matrix products: (N, C, H, W) -> (N, C, scale H, scale W).

    The same numbers as ``interpolate(mode="bilinear", align_corners=False)``; engines run a product of a few channels
    twice as fast as a resize, and all of them agree on what it means.
    """
    if scale == 1:
        return x
    if isinstance(x.shape[2], torch.SymInt) or isinstance(x.shape[3], torch.SymInt):  # exported with open sizes
        return functional.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
    rows = _triangle(x.shape[2], scale, x)
    columns = _triangle(x.shape[3], scale, x)
    return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))


def _triangle(size: int, scale: int, like: Tensor) -> Tensor:
    """Weights (scale * size, size) of linear interpolation along one axis."""
    coarse = torch.arange(size, dtype=like.dtype, device=like.device)
    fine = (torch.arange(size * scale, dtype=like.dtype, device=like.device) + 0.5) / scale - 0.5
    fine = torch.minimum(fine.clamp_min(0), coarse[-1])
    return (1 - (fine[:, None] - coarse[None, :]).abs()).clamp_min(0)


def icnr_(weight: Tensor, scale: int) -> None:
    """Fill a weight (out * scale^2, in, kh, kw) in place so that pixel shuffle starts as nearest upsampling.

    Source: Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution".
    """
    block = torch.empty(weight.shape[0] // scale**2, *weight.shape[1:])
    nn.init.kaiming_normal_(block, nonlinearity="relu")
    with torch.no_grad():
        weight.copy_(block.repeat_interleave(scale**2, dim=0))


def resize_to(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize the layers of ``net`` in place to the shapes of ``state``, so that pruned weights load without pickle.

    Convolutions (grouped and depthwise too), linear layers and the common norms are resized.

    Raises:
        CheckpointError: A stored shape cannot belong to its layer, or the layer kind cannot be resized.
    """
    for name, module in net.named_modules():
        key = f"{name}.weight" if name else "weight"
        weight = getattr(module, "weight", None)
        if key not in state or not isinstance(weight, Tensor) or weight.shape == state[key].shape:
            continue
        _resize_layer(name, module, state[key].shape)
        for field in ("weight", "bias", "running_mean", "running_var"):
            old, new = getattr(module, field, None), state.get(f"{name}.{field}")
            if old is None or new is None or old.shape == new.shape:
                continue
            if isinstance(old, nn.Parameter):
                setattr(module, field, nn.Parameter(torch.empty(new.shape, dtype=old.dtype)))
            else:
                setattr(module, field, torch.empty(new.shape, dtype=old.dtype))


def _resize_layer(name: str, module: nn.Module, shape: torch.Size) -> None:
    old = tuple(module.weight.shape)  # type: ignore[union-attr,arg-type]
    mismatch = len(shape) != len(old) or tuple(shape[2:]) != old[2:]
    if mismatch or not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)):
        fix = "load it with the architecture that it was saved from"
        raise CheckpointError(explain(f"weights of layer {name!r}", expected=old, got=tuple(shape), fix=fix))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape[0], shape[1]
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    else:
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = shape[0] // (old[0] // module.in_channels)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
