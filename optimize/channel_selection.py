"""Which units to remove: by one ratio for all groups, or where a unit buys the most time for the least importance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optimize.channel_groups import ChannelGroup

_LOOSE = 0.75


@dataclass(frozen=True)
class Rounding:
    """Which widths a group may have.

    Attributes:
        multiple: What a layer that reads the group gets is a multiple of this, the channels that are joined to the
            group and cannot be pruned included. None: of 16, and of less in groups narrower than 32.
        max_ratio: Largest share of a group that is removed.
    """

    multiple: int | None = None
    max_ratio: float = 0.8

    def step(self, group: ChannelGroup) -> int:
        """Return the multiple that applies to a group."""
        if self.multiple is not None:
            return self.multiple
        return min(16, 2 ** int(math.log2(max(group.units // 2, 1))))

    def widths(self, group: ChannelGroup) -> list[int]:
        """Return the allowed numbers of units, ascending.

        The full width is one of them, unless channels beside the group spoil its alignment and a slightly smaller one
        has it: 32 channels and the network's input are 33, 31 and the input are 32.
        """
        step = self.step(group)
        least = max(1, math.ceil(group.units * (1 - self.max_ratio) - 1e-9))
        allowed = [n for n in range(least, group.units + 1) if (n + group.fixed) % step == 0]
        spoiled = group.fixed and allowed and allowed[-1] >= _LOOSE * group.units
        if not spoiled and group.units not in allowed:
            allowed.append(group.units)
        return allowed

    def nearest(self, group: ChannelGroup, wanted: float) -> int:
        """Return the allowed number of units nearest to ``wanted``; the smaller one of two."""
        return min(self.widths(group), key=lambda n: (abs(n - wanted), n))


def choose(
    scores: Mapping[ChannelGroup, Tensor],
    ratio: float,
    *,
    scope: Literal["global", "uniform"],
    rounding: Rounding,
    unit_ms: Mapping[ChannelGroup, float] | None = None,
    latency_weight: float = 1.0,
) -> dict[ChannelGroup, list[int]]:
    """Return the units to remove from each group.

    Args:
        scores: Importance (units,) of each group.
        ratio: Share of all units that is removed, before rounding.
        scope: ``uniform``: the same share of each group. ``global``: the units of lowest rank of all groups.
        rounding: Which widths are allowed.
        unit_ms: What a unit of each group costs; a unit ranks by score / cost ** ``latency_weight``.
        latency_weight: 0: rank by score alone.
    """
    if ratio <= 0:
        return {group: [] for group in scores}
    groups = list(scores)
    wanted = {group: group.units * (1 - ratio) for group in groups}
    if scope == "global":
        wanted = _global_widths(groups, scores, ratio, rounding, unit_ms, latency_weight)
    removal = {}
    for group in groups:
        width = rounding.nearest(group, wanted[group])
        order = torch.argsort(scores[group], stable=True)
        removal[group] = sorted(order[: group.units - width].tolist())
    return removal


def _global_widths(
    groups: Sequence[ChannelGroup],
    scores: Mapping[ChannelGroup, Tensor],
    ratio: float,
    rounding: Rounding,
    unit_ms: Mapping[ChannelGroup, float] | None,
    latency_weight: float,
) -> dict[ChannelGroup, float]:
    """Rank the units of all groups: the k-th least important of n by score * (k / n) / cost.

    The share k / n makes the next unit of a group dearer the more of it is gone: what first-order scores leave out, and
    what keeps cheap-looking groups from being emptied.
    """
    ranks, owners = [], []
    for number, group in enumerate(groups):
        cost = (unit_ms[group] if unit_ms else 1.0) ** latency_weight
        removable = group.units - rounding.widths(group)[0]
        share = (torch.arange(removable) + 0.5) / group.units
        ranks.append(torch.sort(scores[group]).values[:removable] * share / max(cost, 1e-12))
        owners.append(torch.full((removable,), number))
    order = torch.argsort(torch.cat(ranks), stable=True)
    count = round(ratio * sum(group.units for group in groups))
    taken = torch.bincount(torch.cat(owners)[order[:count]], minlength=len(groups))
    return {group: float(group.units - int(n)) for group, n in zip(groups, taken, strict=True)}
