"""Which channels of a network must go together: one forward pass, watched operator by operator.

Every index of every weight dimension is an *atom*. While the network runs, each tensor carries the atoms that its
indices stand for, and each operator says which atoms belong together (an addition joins the channels of its operands, a
convolution joins its input channels with the input side of its kernel, pixel shuffle joins r * r channels into one) or
must stay (the network's output, whatever meets a tensor of fixed size, whatever an unknown operator touches). Atoms
joined into one set are removed together or not at all.

torch-pruning's own dependency graph takes every operator that it does not know for an element-wise one, which breaks on
PixelShuffle (its issues 98 and 420) and on a concatenation with the network's input; so Pare traces by itself and hands
torch-pruning the finished groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.attention import attention_in_parts
from models.modes import in_eval_mode
from models.running_module import RunningModule

Ids = NDArray[np.int64]


class Free:
    """Label of a dimension that follows any size: the result of an expand."""


FREE = Free()
Label = Ids | Free | None
Labels = tuple[Label, ...]


class Atoms:
    """Sets of weight indices that must go together (union-find), which of them must stay, and why."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}
        self._mixed: dict[int, set[str]] = {}

    def new(self, count: int) -> Ids:
        """Make ``count`` atoms, each a set of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, atom: int) -> int:
        """Return the representative of an atom's set."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def join(self, first: Ids, second: Ids) -> None:
        """Join the sets of each pair."""
        if first is second:
            return
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self.find(one), self.find(other)
            if a == b:
                continue
            if b < a:
                a, b = b, a
            self._parent[b] = a
            if b in self._frozen:
                self._frozen.setdefault(a, self._frozen.pop(b))
            if b in self._mixed:
                self._mixed.setdefault(a, set()).update(self._mixed.pop(b))

    def join_all(self, atoms: Ids) -> None:
        """Join all atoms into one set."""
        if len(atoms):
            self.join(np.full_like(atoms, atoms[0]), atoms)

    def freeze(self, atoms: Ids, reason: str) -> None:
        """Keep the atoms for ``reason``; the first reason of a set is the one that counts."""
        for atom in {self.find(atom) for atom in np.unique(atoms).tolist()}:
            self._frozen.setdefault(atom, reason)

    def mix(self, atoms: Ids, reason: str) -> None:
        """Note that an operator computes over the atoms (a mean, a norm): removing one changes what the others get."""
        for atom in {self.find(atom) for atom in np.unique(atoms).tolist()}:
            self._mixed.setdefault(atom, set()).add(reason)

    def why_frozen(self, atom: int) -> str | None:
        """Return why an atom must stay, or None."""
        return self._frozen.get(self.find(atom))

    def why_mixed(self, atom: int) -> set[str]:
        """Return what computes over an atom's set."""
        return self._mixed.get(self.find(atom), set())


class ChannelTracer(TorchDispatchMode):
    """Watches one forward pass under ``torch.no_grad`` and joins atoms by the rules of ``optimize.channel_rules``.

    Args:
        net: Network in eval mode.
        outer_sites: Numbers of the reshapes, in call order, that split a dimension and keep its outer part prunable
            (``(C * r) -> (C, r)``); elsewhere the inner part is (``(heads * C) -> (heads, C)``).
    """

    def __init__(self, net: nn.Module, *, outer_sites: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.atoms = Atoms()
        self.owners: dict[tuple[str, int], Ids] = {}
        self.produced: dict[tuple[str, int], Ids] = {}
        self.sites: list[Ids] = []
        self.outer_sites = outer_sites
        self._running = RunningModule(net)
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []
        self._names: dict[int, str] = {}
        for name, tensor in net.state_dict(keep_vars=True).items():  # a buffer that is not saved cannot be resized
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._names.setdefault(id(tensor), name)
                self._alive.append(tensor)

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._running.close()

    @property
    def layer(self) -> str:
        """Name of the module that is computing."""
        return self._running.name or "the network"

    def name_of(self, tensor: Any) -> str | None:
        """Return the name of a parameter or buffer, None for any other tensor."""
        return self._names.get(id(tensor))

    def labels(self, tensor: Any) -> Labels:
        """Return the label of each dimension of ``tensor``."""
        known = self._labels.get(id(tensor))
        if known is None:
            name = self._names.get(id(tensor))
            if name is None:
                return (None,) * (tensor.ndim if isinstance(tensor, Tensor) else 0)
            known = tuple(self.atoms.new(size) if size > 1 else None for size in tensor.shape)
            self._labels[id(tensor)] = known
            for dim, ids in enumerate(known):
                if isinstance(ids, np.ndarray):
                    self.owners[name, dim] = ids
        return known

    def set_labels(self, tensor: Any, labels: Sequence[Label]) -> None:
        """Give ``tensor`` its labels."""
        if isinstance(tensor, Tensor):
            self._labels[id(tensor)] = tuple(labels)
            self._alive.append(tensor)

    def has_labels(self, tensor: Any) -> bool:
        """Return whether any dimension of ``tensor`` is followed."""
        return isinstance(tensor, Tensor) and any(label is not None for label in self.labels(tensor))

    def tie(self, first: Label, second: Label, *, size: int) -> Label:
        """Join two dimensions of ``size`` that meet, and return the label of the result; a fixed one freezes."""
        if isinstance(first, Free) or isinstance(second, Free):
            return second if isinstance(first, Free) else first
        if size == 1 or (first is None and second is None):
            return None
        if first is None or second is None:
            self.freeze(first if second is None else second, "meets a tensor whose channels are fixed")
            return None
        self.atoms.join(first, second)
        return first

    def freeze(self, label: Label, reason: str) -> None:
        """Keep the channels of a dimension."""
        if isinstance(label, np.ndarray):
            self.atoms.freeze(label, f"{reason} (in {self.layer})")

    def freeze_all(self, tensors: Iterable[Any], reason: str) -> None:
        """Keep the channels of all dimensions of ``tensors``."""
        for tensor in tensors:
            for label in self.labels(tensor):
                self.freeze(label, reason)

    def __enter__(self) -> ChannelTracer:
        import optimize.channel_layer_rules  # noqa: F401 - registers its rules
        from optimize.channel_rules import apply_rule

        self._apply = apply_rule
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._apply(self, func, args, kwargs, result)
        return result


def trace_channels(
    net: nn.Module, inputs: Sequence[Tensor], *, outer_sites: frozenset[int] = frozenset()
) -> ChannelTracer:
    """Run ``net(*inputs)`` once in eval mode and return the tracer with everything that was joined or frozen.

    The output's dimensions are frozen. What the network raises on these inputs is passed on.
    """
    tracer = ChannelTracer(net, outer_sites=outer_sites)
    try:
        with torch.no_grad(), in_eval_mode(net), attention_in_parts(), tracer:
            output = net(*inputs)
        for tensor in flatten(output):
            for label in tracer.labels(tensor):
                if isinstance(label, np.ndarray):
                    tracer.atoms.freeze(label, "is the network's output")
    finally:
        tracer.close()
    return tracer


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in flatten(item)] if isinstance(value, (list, tuple)) else []
