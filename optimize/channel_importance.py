"""How much a channel matters: torch-pruning's group scores on Pare's groups, and what a channel costs in time."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import UnsupportedError, explain
from models.modes import in_eval_mode
from optimize.channel_groups import ChannelGroup, Removal, Slot, layer_of, removed_indices
from optimize.losses import check_gradient

Importance = Literal["magnitude", "taylor", "bn_scale"]
Scores = dict[ChannelGroup, Tensor]
Loss = Callable[[nn.Module], Tensor]

# What a core of a few years does, only to weigh layers against each other: multiply-adds and bytes a millisecond.
_MACS_PER_MS = 1e8
_BYTES_PER_MS = 1e7
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def score(
    net: nn.Module, groups: Sequence[ChannelGroup], importance: Importance, *, losses: Sequence[Loss] = ()
) -> tuple[Scores, dict[str, str]]:
    """Score every unit of every group; a low score is removed first.

    Args:
        net: Network that the groups are of.
        groups: Groups to score.
        importance: ``magnitude`` (squared L2 norm of the weights, mean over the layers of a group, as a share of the
            group); ``taylor`` (|weight * gradient|, an estimate of what the loss gains); ``bn_scale`` (|gamma|, as a
            share of the group).
        losses: For ``taylor``: each takes the network and returns a scalar; one for each batch.

    Returns:
        Scores (units,) of each group, comparable between groups, and group name -> reason for groups without a score.

    Raises:
        UnsupportedError: No group can be scored, or ``taylor`` has no loss.

    Source: torch-pruning 1.6; Li et al. 2017 (magnitude), Molchanov et al. 2019 (Taylor), Liu et al. 2017 (BN scale).
    """
    from torch_pruning.pruner.importance import BNScaleImportance, GroupMagnitudeImportance

    if importance == "taylor":
        scores = _taylor(net, groups, losses)
    else:
        unscaled: Any = None
        judge: Any = GroupMagnitudeImportance(p=2, normalizer=unscaled)
        if importance == "bn_scale":
            judge = BNScaleImportance(normalizer=unscaled)
        squares = {name: value.detach() ** 2 for name, value in net.named_parameters()}
        scores = {group: _judge(judge, net, group, squares if importance == "magnitude" else {}) for group in groups}
    known = {group: value for group, value in scores.items() if value is not None}
    if importance != "taylor":
        known = {group: value / value.sum().clamp_min(1e-12) for group, value in known.items()}
    if not known:
        fix = "use --importance magnitude" if importance != "magnitude" else "nothing to prune in this network"
        what = f"importance {importance}"
        raise UnsupportedError(explain(what, expected="layers that it scores", got="none", fix=fix))
    why = {"bn_scale": "no BatchNorm scales these channels"}.get(importance, "no layer with weights to judge by")
    return known, {group.name: why for group in groups if group not in known}


def _taylor(net: nn.Module, groups: Sequence[ChannelGroup], losses: Sequence[Loss]) -> dict[ChannelGroup, Any]:
    from torch_pruning.pruner.importance import GroupTaylorImportance

    if not losses:
        raise UnsupportedError(explain("importance taylor", expected="photos", got="none", fix="pass --data"))
    unscaled: Any = None
    judge = GroupTaylorImportance(normalizer=unscaled)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    total: dict[ChannelGroup, Any] = dict.fromkeys(groups)
    net.requires_grad_(True)
    for loss in losses:
        net.zero_grad(set_to_none=True)
        with torch.enable_grad(), in_eval_mode(net), torch.autograd.graph.allow_mutation_on_saved_tensors():
            found = loss(net)
            check_gradient(found)
            found.backward()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs = ((name, value, value.grad) for name, value in net.named_parameters())
        slopes = {name: (value * slope).detach().abs() for name, value, slope in pairs if slope is not None}
        for group in groups:
            value = _judge(judge, net, group, slopes)
            total[group] = value if total[group] is None or value is None else total[group] + value
    net.zero_grad(set_to_none=True)
    for parameter, flag in zip(net.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return total


def _judge(judge: Any, net: nn.Module, group: ChannelGroup, matters: Mapping[str, Tensor]) -> Tensor | None:
    """Hand a group to torch-pruning in its own form, with unit numbers in the place of root indices.

    A group of bare parameters alone, which torch-pruning does not know, scores by what of them ``matters``.
    """
    from torch_pruning._helpers import GroupItem
    from torch_pruning.dependency import Dependency, Group, Node

    made = Group()
    for slot, units in group.slots.items():
        call = _pruning_function(net, slot)
        if call is None:
            continue
        node = Node(net.get_submodule(layer_of(slot)), None, layer_of(slot))
        indices = np.flatnonzero(units >= 0)
        item = GroupItem(Dependency(call, call, node, node), indices.tolist())
        item.root_idxs = units[indices].tolist()
        made._group.append(item)
    if not len(made):
        return _judge_parameters(group, matters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = judge(made)
    return None if result is None else result[: group.units].float().cpu()


def _judge_parameters(group: ChannelGroup, matters: Mapping[str, Tensor]) -> Tensor | None:
    """Return for each unit the sum of what ``matters`` of a parameter (by name), the mean of all parameters of it."""
    sums = []
    for (name, dim), units in group.slots.items():
        if name in matters:
            held = np.flatnonzero(units >= 0)
            each = matters[name].float().cpu().transpose(0, dim).flatten(1).sum(1)[held]
            sums.append(torch.zeros(group.units).index_add_(0, torch.from_numpy(units[held]), each))
    return torch.stack(sums).mean(0) if sums else None


def _pruning_function(net: nn.Module, slot: Slot) -> Any:
    """Return torch-pruning's function for one side of a layer's weight, or None where it has none."""
    from torch_pruning.pruner import function

    name, dim = slot
    if not name.endswith("weight") or not layer_of(slot) or layer_of(slot) == name:
        return None
    module = net.get_submodule(layer_of(slot))
    if isinstance(module, _CONVOLUTIONS):
        is_out = (dim == 1) == bool(module.transposed)
        return function.prune_conv_out_channels if is_out else function.prune_conv_in_channels
    if isinstance(module, nn.Linear):
        return function.prune_linear_out_channels if dim == 0 else function.prune_linear_in_channels
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return function.prune_batchnorm_out_channels
    return function.prune_layernorm_out_channels if isinstance(module, nn.LayerNorm) else None


class LayerCosts:
    """Estimated time of convolutions and linear layers: multiply-adds and bytes moved, each over a rate.

    Only for weighing layers against each other and for the first guess of a search; what counts is measured.

    Args:
        net: Network.
        inputs: Tensors of the size that it will be used at.
    """

    def __init__(self, net: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._layers = {
            name: module for name, module in net.named_modules() if isinstance(module, (*_CONVOLUTIONS, nn.Linear))
        }
        self._positions: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        hooks = [module.register_forward_hook(self._keep(name)) for name, module in self._layers.items()]
        with torch.no_grad(), in_eval_mode(net):
            net(*inputs)
        for hook in hooks:
            hook.remove()
        self._whole = self.layer_ms({})

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            made, read = _channels(module, list(_weight(module).shape))
            before, after = self._positions[name]
            self._positions[name] = (before + inputs[0].numel() / read, after + output.numel() / made)

        return hook

    def layer_ms(self, removal: Removal) -> dict[str, float]:
        """Return layer -> estimated ms without the units of ``removal``."""
        gone = removed_indices(removal)
        result = {}
        for name, (before, after) in self._positions.items():
            module = self._layers[name]
            whole = _weight(module).shape
            shape = [size - len(gone.get((f"{name}.weight", dim), ())) for dim, size in enumerate(whole)]
            made, read = _channels(module, shape)
            macs = (before if getattr(module, "transposed", False) else after) * float(np.prod(shape))
            result[name] = macs / _MACS_PER_MS + 4 * (before * read + after * made) / _BYTES_PER_MS
        return result

    def speedup(self, removal: Removal) -> float:
        """Return how many times faster the network should be without the units of ``removal``; 1 without layers."""
        left = sum(self.layer_ms(removal).values())
        return sum(self._whole.values()) / left if left else 1.0

    def unit_ms(self, group: ChannelGroup) -> float:
        """Return about how many ms one unit of a group costs in all the layers that hold it."""
        spent = 0.0
        for (name, dim), units in group.slots.items():
            layer = layer_of((name, dim))
            if name.endswith("weight") and layer in self._whole:
                spent += self._whole[layer] * float((units >= 0).sum()) / (len(units) * group.units)
        return spent


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _channels(module: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Return the (made, read) channels of a layer whose weight has ``shape``."""
    groups = int(getattr(module, "groups", 1))
    if groups > 1 and groups == getattr(module, "in_channels", 0):  # depthwise: a group goes with its channel
        groups = shape[0] * groups // int(_weight(module).shape[0])
    if getattr(module, "transposed", False):
        return shape[1] * groups, shape[0]
    return shape[0], shape[1] * groups
