"""Groups of channels that can be removed from a network, removing them, and the check that the result is right."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import UnsupportedError, explain, first_line
from models.layers import resize_to
from optimize.channel_trace import ChannelTracer, flatten, trace_channels

Slot = tuple[str, int]
Removal = Mapping["ChannelGroup", Sequence[int]]
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that are alike: removing a unit removes the same number of indices from the same weights.

    Attributes:
        name: The first layer that makes these channels.
        producers: All layers that make them.
        slots: (tensor name, dimension) -> for each index of the dimension, the number of its unit, or -1.
        units: How many there are.
        fixed: Channels beside these in the layers that read them (a concatenation with the network's input): rounding
            counts them.
        mixed: What computes over these channels (norms, means): removing one changes the others a little.
    """

    name: str
    producers: tuple[str, ...]
    slots: Mapping[Slot, NDArray[np.int64]]
    units: int
    fixed: int = 0
    mixed: tuple[str, ...] = ()

    def indices(self, slot: Slot, units: Sequence[int]) -> NDArray[np.int64]:
        """Return the indices of ``slot`` that belong to ``units``."""
        return np.flatnonzero(np.isin(self.slots[slot], np.asarray(units)))


@dataclass(frozen=True)
class ChannelMap:
    """What can be pruned of a network.

    Attributes:
        groups: In the order in which the network computes.
        kept: Layer -> why its output channels cannot be pruned.
    """

    groups: tuple[ChannelGroup, ...]
    kept: Mapping[str, str] = field(default_factory=dict)


def map_channels(net: nn.Module, inputs: Sequence[Tensor], *, ignore: Sequence[str] = ()) -> ChannelMap:
    """Find the groups of ``net`` and check each with numbers.

    Args:
        net: Any network; run on ``inputs`` in eval mode without gradients.
        inputs: Tensors (N, C, H, W), as small as the network takes.
        ignore: Names of layers, or of modules with all their layers, that keep their output channels.

    Raises:
        UnsupportedError: ``ignore`` names no layer, or the network does not run on ``inputs``.
    """
    layers = {name for name, _ in net.named_modules() if name}
    if unknown := [name for name in ignore if name not in layers]:
        fix = "use names of net.named_modules()"
        raise UnsupportedError(explain("layers to ignore", expected="layers of the network", got=unknown, fix=fix))
    try:
        tracer = trace_channels(net, inputs)
        stuck = frozenset(i for i, ids in enumerate(tracer.sites) if tracer.atoms.why_frozen(int(ids[0])))
        if stuck:
            other = trace_channels(net, inputs, outer_sites=stuck)
            if _prunable(other) > _prunable(tracer):
                tracer = other
    except Exception as error:  # code of the user's may raise anything
        fix = "check the shape of the input that its task gives"
        got = first_line(error)
        raise UnsupportedError(explain("tracing for pruning", expected="a forward pass", got=got, fix=fix)) from error
    groups, kept = _groups(tracer, ignore)
    awake = _awake(net)
    broken = verify(awake, groups, inputs)
    if broken and _tie_by_size(tracer, [group for group in groups if group.name in broken]):
        tied, kept_then = _groups(tracer, ignore)
        broken_then = verify(awake, tied, inputs)
        if len(broken_then) < len(broken):
            groups, broken, kept = tied, broken_then, {**kept, **kept_then}
    for group in groups:
        if group.name in broken:
            kept.update(dict.fromkeys(group.producers, broken[group.name]))
    state, covered = net.state_dict(keep_vars=True), _covered(groups, kept)
    shared = {id(state[name]) for group in groups for name, _ in group.slots}
    for layer, module in net.named_modules():
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        if layer not in covered and id(module.weight) not in shared:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            missing = "does not run in a forward pass, or its weight comes from other layers"
            kept[layer] = "has one channel" if width == 1 else _why_frozen(tracer, layer) or missing
    return ChannelMap(tuple(group for group in groups if group.name not in broken), kept)


def _why_frozen(tracer: ChannelTracer, layer: str) -> str | None:
    """Return why the channels of a depthwise convolution stay: it makes none of its own."""
    ids = tracer.owners.get((f"{layer}.weight", 0))
    return None if ids is None else tracer.atoms.why_frozen(int(ids[0]))


def _tie_by_size(tracer: ChannelTracer, broken: Sequence[ChannelGroup]) -> bool:
    """Join the channels of groups that cannot be pruned alone to those of the narrowest; say whether any were joined.

    Code that takes one width for several layers (attention: ``qkv(x).reshape(..., 3, heads, x.shape[-1] // heads)``)
    ties them without an operator that shows it.
    """
    slots = [slot for group in broken for slot in group.slots if slot in tracer.produced]
    slots.sort(key=lambda slot: len(tracer.owners[slot]))
    joined = False
    for slot in slots[1:]:
        base, ids = tracer.owners[slots[0]], tracer.owners[slot]
        if len(ids) % len(base) == 0:
            tracer.atoms.join(np.tile(base, len(ids) // len(base)), ids)
            joined = True
    return joined


def _covered(groups: Sequence[ChannelGroup], kept: Mapping[str, str]) -> set[str]:
    layers = {layer_of(slot) for group in groups for slot in group.slots}
    return layers | {layer.partition(".parametrizations.")[0] for layer in layers} | set(kept)


def _prunable(tracer: ChannelTracer) -> int:
    atoms = tracer.atoms
    return sum(atoms.why_frozen(int(atom)) is None for ids in tracer.produced.values() for atom in ids)


def _groups(tracer: ChannelTracer, ignore: Sequence[str]) -> tuple[list[ChannelGroup], dict[str, str]]:
    atoms = tracer.atoms
    members: dict[int, dict[Slot, list[int]]] = defaultdict(lambda: defaultdict(list))
    for slot, ids in tracer.owners.items():
        for index, atom in enumerate(ids.tolist()):
            members[atoms.find(atom)][slot].append(index)
    kept: dict[str, str] = {}
    alike: dict[tuple[tuple[Slot, int], ...], list[int]] = defaultdict(list)
    producing = set(tracer.produced)
    for root, slots in members.items():
        makers = sorted(producing & slots.keys())
        reason = atoms.why_frozen(root) or _ignored(makers, ignore)
        if makers and reason is None:
            alike[tuple((slot, len(indices)) for slot, indices in sorted(slots.items()))].append(root)
        for slot in makers:
            if reason is not None:
                kept.setdefault(layer_of(slot), reason)
    groups = []
    order = {slot: place for place, slot in enumerate(tracer.produced)}
    for roots in alike.values():
        numbered = {slot: np.full(len(tracer.owners[slot]), -1) for slot in members[roots[0]]}
        for unit, root in enumerate(sorted(roots, key=lambda root: min(min(v) for v in members[root].values()))):
            for slot, indices in members[root].items():
                numbered[slot][indices] = unit
        makers = sorted(producing & numbered.keys(), key=lambda slot: order[slot])
        if len(roots) < 2:
            for slot in makers:
                kept.setdefault(layer_of(slot), "its channels all depend on each other")
            continue
        mixed = tuple(sorted({reason for root in roots for reason in atoms.why_mixed(root)}))
        fixed = _fixed_beside(tracer, numbered)
        names = tuple(dict.fromkeys(layer_of(slot) for slot in makers))
        groups.append((order[makers[0]], ChannelGroup(names[0], names, numbered, len(roots), fixed, mixed)))
    ordered = [group for _, group in sorted(groups, key=lambda pair: pair[0])]
    free = {name for group in ordered for name in group.producers}
    return _unique_names(ordered), {name: reason for name, reason in kept.items() if name not in free}


def _unique_names(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """A layer whose channels fall into several groups gives each a number."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for group in groups:
        seen[group.name] += 1
        name = group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}"
        result.append(ChannelGroup(name, group.producers, group.slots, group.units, group.fixed, group.mixed))
    return result


def _ignored(makers: Sequence[Slot], ignore: Sequence[str]) -> str | None:
    for slot in makers:
        layer = layer_of(slot)
        if any(layer == name or layer.startswith(f"{name}.") for name in ignore):
            return f"goes together with {layer}, which is to be ignored"
    return None


def _fixed_beside(tracer: ChannelTracer, numbered: Mapping[Slot, NDArray[np.int64]]) -> int:
    """Count the frozen channels in the reading layers of a group; the most of all readers."""
    counts = [0]
    for slot, units in numbered.items():
        if slot in tracer.produced or not (units < 0).any() or tracer.owners[slot].ndim != 1:
            continue
        ids = tracer.owners[slot][units < 0]
        counts.append(sum(tracer.atoms.why_frozen(int(atom)) is not None for atom in ids))
    return max(counts)


def layer_of(slot: Slot) -> str:
    """Return the name of the module that holds a slot's tensor; for a bare parameter, the parameter's own name."""
    return slot[0].rpartition(".")[0] or slot[0]


def removed_indices(removal: Removal) -> dict[Slot, NDArray[np.int64]]:
    """Return the sorted indices that ``removal`` takes from each slot."""
    parts: dict[Slot, list[NDArray[np.int64]]] = defaultdict(list)
    for group, units in removal.items():
        if len(units):
            for slot in group.slots:
                parts[slot].append(group.indices(slot, units))
    return {slot: np.unique(np.concatenate(each)) for slot, each in parts.items()}


def remove_channels(net: nn.Module, removal: Removal) -> nn.Module:
    """Return a copy of ``net`` without the units of ``removal``; ``net`` stays as it is.

    The copy is resized by ``models.layers.resize_to``, which loading uses too, so that whatever can be removed can be
    loaded again.

    Raises:
        CheckpointError: A layer that cannot be resized.
    """
    state = net.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        aliases[id(tensor)].append(name)
    small = {name: tensor.detach() for name, tensor in state.items()}
    for (name, dim), indices in removed_indices(removal).items():
        keep = np.setdiff1d(np.arange(state[name].shape[dim]), indices)
        for alias in aliases[id(state[name])]:
            small[alias] = small[alias].index_select(dim, torch.from_numpy(keep).to(small[alias].device))
    result = copy.deepcopy(net)
    resize_to(result, small)
    result.load_state_dict(small)
    return result.to(next(net.parameters()).device)


def mask_channels(net: nn.Module, removal: Removal) -> nn.Module:
    """Return a copy of ``net`` of the same size in which the units of ``removal`` are zero in every weight."""
    result = copy.deepcopy(net)
    state = result.state_dict(keep_vars=True)
    with torch.no_grad():
        for (name, dim), indices in removed_indices(removal).items():
            state[name].index_fill_(dim, torch.from_numpy(indices).to(state[name].device), 0.0)
    return result


def _awake(net: nn.Module) -> nn.Module:
    """Return ``net``, or a copy with seeded small numbers in parameters that are all zero: they would hide mistakes.

    Heads and gates start at zero in many networks, and whatever comes before them then changes nothing.
    """
    asleep = [name for name, value in net.named_parameters() if value.is_floating_point() and not value.any()]
    if not asleep:
        return net
    result = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    parameters = dict(result.named_parameters())
    with torch.no_grad():
        for name in asleep:
            parameters[name].copy_(torch.empty(parameters[name].shape).normal_(0, 0.1, generator=generator))
    return result


def verify(net: nn.Module, groups: Sequence[ChannelGroup], inputs: Sequence[Tensor]) -> dict[str, str]:
    """Remove a unit of each group and compare with the network in which it is zero; return what is wrong, by group.

    Where nothing computes over a group's channels the outputs must agree to rounding; where a norm or a mean does, the
    pruned network must run and keep the shape of its output. All groups are tried at once, and one by one where that
    fails.
    """
    if not groups or _problem(net, groups, inputs) is None:
        return {}
    found = ((group.name, _problem(net, [group], inputs)) for group in groups)
    return {name: problem for name, problem in found if problem is not None}


@torch.no_grad()
def _problem(net: nn.Module, groups: Sequence[ChannelGroup], inputs: Sequence[Tensor]) -> str | None:
    exact = [group for group in groups if not group.mixed]
    try:
        if len(exact) < len(groups):
            whole = remove_channels(net, {group: [group.units // 2] for group in groups}).eval()
            if _shapes(whole, inputs) != _shapes(net, inputs):
                return "removing a channel changes the shape of the output"
        if not exact:
            return None
        removal = {group: [group.units // 2] for group in exact}
        small, masked = remove_channels(net, removal).eval(), mask_channels(net, removal).eval()
        answers, references = flatten(small(*inputs)), flatten(masked(*inputs))
    except Exception as error:  # code of the user's may raise anything
        lines = str(error).strip().splitlines() or [first_line(error)]
        return f"the network does not run without one of its channels: {lines[-1].strip()}"
    for answer, reference in zip(answers, references, strict=True):
        if answer.shape != reference.shape:
            return "removing a channel changes the shape of the output"
        scale = float(reference.abs().max().clamp_min(1e-12))
        if not torch.allclose(answer, reference, rtol=0, atol=_TOLERANCE * scale):
            return "removing a channel changes what the others compute"
    return None


def _shapes(net: nn.Module, inputs: Sequence[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in flatten(net.eval()(*inputs))]


def widths(net: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """Return the output channels of convolutions and linear layers, by name."""
    result = {}
    for name in layers:
        module = net.get_submodule(name)
        for attribute in ("out_channels", "out_features"):
            if isinstance(getattr(module, attribute, None), int):
                result[name] = int(getattr(module, attribute))
    return result
