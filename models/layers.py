"""Blocks that several architectures share, and the resizing of layers to stored (pruned) weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from models.errors import CheckpointError, explain

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
    if _is_open(x):
        return functional.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
    return _resize(x, x.shape[2] * scale, x.shape[3] * scale)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize to a fixed size (half-pixel centres, no antialiasing): (N, C, H, W) -> (N, C, *size).

    The same numbers as ``interpolate(size=size, mode="bilinear")``, as two matrix products where H and W are known.
    """
    if _is_open(x):
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x if tuple(x.shape[2:]) == tuple(size) else _resize(x, *size)


def _is_open(x: Tensor) -> bool:
    """Whether H and W are not known, or the graph is traced for coremltools, which has a resize."""
    open_size = any(isinstance(side, torch.SymInt | torch.fx.Proxy) for side in (x.shape[2], x.shape[3]))
    return open_size or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    rows, columns = _triangle(x.shape[2], height, x), _triangle(x.shape[3], width, x)
    return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))


def _triangle(size: int, wanted: int, like: Tensor) -> Tensor:
    """Weights (wanted, size) of linear interpolation along one axis."""
    coarse = torch.arange(size, dtype=like.dtype, device=like.device)
    fine = (torch.arange(wanted, dtype=like.dtype, device=like.device) + 0.5) / (wanted / size) - 0.5
    fine = torch.minimum(fine.clamp_min(0), coarse[-1])
    return (1 - (fine[:, None] - coarse[None, :]).abs()).clamp_min(0)


def sizes(x: Tensor) -> tuple[int, ...]:
    """Return the sizes of ``x``; plain numbers while ``torch.jit`` traces, so that what is computed of them folds."""
    return tuple(int(side) for side in x.shape) if torch.jit.is_tracing() else tuple(x.shape)  # type: ignore[attr-defined]


def icnr_(weight: Tensor, scale: int) -> None:
    """Fill a weight (out * scale^2, in, kh, kw) in place so that pixel shuffle starts as nearest upsampling.

    Source: Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution".
    """
    block = torch.empty(weight.shape[0] // scale**2, *weight.shape[1:])
    nn.init.kaiming_normal_(block, nonlinearity="relu")
    with torch.no_grad():
        weight.copy_(block.repeat_interleave(scale**2, dim=0))


def bake_weights(net: nn.Module) -> None:
    """Turn weights that weight norm or spectral norm (of both styles) computes into plain ones, in place.

    The network computes the same; its layers can then be pruned, quantized and converted like any other.
    """
    net.eval()
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for module, hook in _norm_hooks(net):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        else:
            remove_spectral_norm(module, hook.name)
            _forget_loading(module)


def detach_computed_weights(net: nn.Module) -> None:
    """Detach what the hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` computed: it cannot be copied."""
    for module, hook in _norm_hooks(net):
        setattr(module, hook.name, getattr(module, hook.name).detach())


def _norm_hooks(net: nn.Module) -> list[tuple[nn.Module, WeightNorm | SpectralNorm]]:
    hooks = [(module, hook) for module in net.modules() for hook in module._forward_pre_hooks.values()]
    return [(module, hook) for module, hook in hooks if isinstance(hook, (WeightNorm, SpectralNorm))]


def _forget_loading(module: nn.Module) -> None:
    """Remove what ``remove_spectral_norm`` of torch 2.13 leaves: a hook that misses the old names when it loads."""
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def has_computed_weights(net: nn.Module) -> bool:
    """Say whether ``bake_weights`` would change the names of a network's weights."""
    return any(map(parametrize.is_parametrized, net.modules())) or bool(_norm_hooks(net))


def resize_to(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize the layers of ``net`` in place to the shapes of ``state``, so that pruned weights load without pickle.

    Convolutions (grouped, depthwise and transposed too), linear layers, norms, attention, PReLU, and parameters and
    buffers of your own modules can shrink; kernel sizes cannot.

    Raises:
        CheckpointError: A stored shape cannot be a pruned one of its layer.
    """
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        fields = {**module._parameters, **module._buffers}
        smaller = {}
        for field, old in fields.items():
            new = state.get(prefix + field)
            if old is None or new is None or old.shape == new.shape:
                continue
            _check_pruned(prefix + field, module, old.shape, new.shape)
            smaller[field] = new.shape
        if not smaller:
            continue
        _update_sizes(module, smaller)
        for field, shape in smaller.items():
            old = fields[field]
            empty = torch.empty(shape, dtype=old.dtype, device=old.device)  # type: ignore[union-attr]
            setattr(module, field, nn.Parameter(empty) if field in module._parameters else empty)


def _check_pruned(name: str, module: nn.Module, old: torch.Size, new: torch.Size) -> None:
    kernel = 2 if isinstance(module, _CONVOLUTIONS) else len(old)
    if len(old) != len(new) or old[kernel:] != new[kernel:] or any(b > a or b < 1 for a, b in zip(old, new)):  # noqa: B905
        fix = "load it with the architecture that it was saved from"
        expected = f"shape {tuple(old)} or a pruned one"
        raise CheckpointError(explain(f"weights {name!r}", expected=expected, got=tuple(new), fix=fix))


def _update_sizes(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Write the new sizes into the attributes of PyTorch's own layers."""
    if isinstance(module, nn.MultiheadAttention):
        width = shapes["in_proj_weight"][1]
        module.embed_dim = module.kdim = module.vdim = width
        module.head_dim = width // module.num_heads
        return
    shape = shapes.get("weight", next(iter(shapes.values())))
    if isinstance(module, _CONVOLUTIONS):
        _update_convolution(module, shape)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]


def _update_convolution(module: nn.modules.conv._ConvNd, shape: torch.Size) -> None:
    """A depthwise convolution loses groups; in any other one, each group loses channels."""
    if "weight" not in module._parameters:  # a parametrized weight
        return
    if module.groups > 1 and module.groups == module.in_channels:
        module.groups = shape[0] if module.transposed else shape[0] * module.groups // module.weight.shape[0]
    if module.transposed:
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    else:
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
