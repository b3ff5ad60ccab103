"""Fold BatchNorm into the layer before it, keeping module names, so that a graph's weights are ``<module>.weight``.

Source: Jacob et al. 2018, section 3.2; ``torch.nn.utils.fusion``.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """Return a copy of ``net`` in eval mode whose BatchNorms after a convolution are folded into its weights.

    A BatchNorm is folded when its only input is a convolution that nothing else reads and both are called once. The
    pairs come from a ``torch.fx`` trace; a network that cannot be traced falls back on the neighbours in its
    ``nn.Sequential`` containers. Folded norms become ``nn.Identity``; what cannot be folded stays.
    """
    net = copy.deepcopy(net).eval()
    try:
        pairs = _traced_pairs(copy.deepcopy(net))  # a network that keeps values of its own would keep proxies
    except Exception:  # tracing runs the network's own code on proxies, which may raise anything
        pairs = _sequential_pairs(net)
    for conv_name, norm_name in pairs:
        _fold(net, conv_name, norm_name)
    return net


def add_to_bias(layer: nn.Module, shift: Tensor) -> None:
    """Add ``shift`` (channels,) to the bias of a layer, which gets one where it has none."""
    old = layer.bias.data if isinstance(layer.bias, Tensor) else 0
    layer.bias = nn.Parameter(shift + old, requires_grad=False)


def _traced_pairs(net: nn.Module) -> list[tuple[str, str]]:
    graph = fx.Tracer().trace(net)
    modules = dict(net.named_modules())
    calls: dict[int, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            key = id(modules[str(node.target)])
            calls[key] = calls.get(key, 0) + 1
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _NORMS):
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        if isinstance(conv, _FOLDABLE) and calls[id(conv)] == calls[id(norm)] == 1:
            pairs.append((str(source.target), str(node.target)))
    return pairs


def _sequential_pairs(net: nn.Module) -> list[tuple[str, str]]:
    owners: dict[int, int] = {}
    for parent in net.modules():
        for child in parent.children():
            owners[id(child)] = owners.get(id(child), 0) + 1
    pairs = []
    for name, parent in net.named_modules():
        if type(parent).forward is not nn.Sequential.forward:
            continue
        prefix = f"{name}." if name else ""
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            shared = owners[id(conv)] > 1 or owners[id(norm)] > 1
            if isinstance(conv, _FOLDABLE) and isinstance(norm, _NORMS) and not shared:
                pairs.append((prefix + conv_name, prefix + norm_name))
    return pairs


def _fold(net: nn.Module, conv_name: str, norm_name: str) -> None:
    conv: Any = net.get_submodule(conv_name)
    norm: Any = net.get_submodule(norm_name)
    if norm.running_mean is None or norm.num_features != conv.out_channels or hasattr(conv, "parametrizations"):
        return
    with torch.no_grad():
        mean, var = norm.running_mean.double(), norm.running_var.double()
        gamma = norm.weight.double() if norm.weight is not None else torch.ones_like(mean)
        beta = norm.bias.double() if norm.bias is not None else torch.zeros_like(mean)
        scale = gamma / torch.sqrt(var + norm.eps)
        weight = conv.weight.double()
        if isinstance(conv, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            per_group = weight.reshape(conv.groups, -1, *weight.shape[1:])
            shape = (conv.groups, 1, -1) + (1,) * (weight.ndim - 2)
            weight = (per_group * scale.reshape(shape)).reshape(weight.shape)
        else:
            weight = weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))
        bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(mean)
        bias = beta + (bias - mean) * scale
        dtype = conv.weight.dtype
        conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    parent_name, _, child = norm_name.rpartition(".")
    setattr(net.get_submodule(parent_name), child, nn.Identity())
