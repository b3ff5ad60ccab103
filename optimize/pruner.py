"""One network, ready to be pruned by any ratio: traced, scored, weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.errors import UnsupportedError, explain
from models.spec import ModelSpec
from optimize.channel_groups import ChannelGroup, ChannelMap, map_channels, remove_channels
from optimize.channel_importance import LayerCosts, Loss, Scores, score
from optimize.channel_selection import Rounding, choose

if TYPE_CHECKING:
    from optimize.prune import PruneConfig

#: How much the time of a channel counts when channels are compared; see ``PruneConfig.latency_weight``.
WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0)
DEFAULT_WEIGHT = 0.25
_TRACE_SIZES = (32, 64, 128, 256)
_STEPS = 12


class Pruner:
    """Everything about one network that candidates of any ratio share.

    Args:
        net: Network in eval mode; it is not changed.
        channels: What can be pruned of it.
        config: How.
        scores: Importance of the units of each group.
        costs: Estimated time of each layer.
    """

    def __init__(
        self, net: nn.Module, channels: ChannelMap, config: PruneConfig, scores: Scores, costs: LayerCosts
    ) -> None:
        self.net, self.channels, self.config, self.scores, self.costs = net, channels, config, scores, costs
        self.latency_weight = DEFAULT_WEIGHT if config.latency_weight is None else config.latency_weight
        self._unit_ms = {group: costs.unit_ms(group) for group in scores}
        self._known: dict[tuple[float, float], dict[ChannelGroup, list[int]]] = {}

    def removal(self, ratio: float) -> dict[ChannelGroup, list[int]]:
        """Return the units that go at ``ratio``."""
        key = (ratio, self.latency_weight)
        if key not in self._known:
            config = self.config
            self._known[key] = choose(
                self.scores,
                ratio,
                scope=config.scope,
                rounding=Rounding(config.round_to, config.max_ratio),
                unit_ms=self._unit_ms,
                latency_weight=self.latency_weight,
            )
        return self._known[key]

    def widths(self, ratio: float) -> tuple[int, ...]:
        """Return the units of each group that are left at ``ratio``."""
        return tuple(group.units - len(units) for group, units in self.removal(ratio).items())

    def build(self, ratio: float) -> nn.Module:
        """Return the network pruned by ``ratio``, in eval mode."""
        return remove_channels(self.net, self.removal(ratio)).eval()

    def estimate(self, ratio: float) -> float:
        """Return the estimated speedup at ``ratio``."""
        return self.costs.speedup(self.removal(ratio))

    def weigh(self, losses: Sequence[Loss], speedup: float) -> dict[float, float]:
        """Set ``latency_weight`` to the one of ``WEIGHTS`` that loses least at the same estimated speedup.

        Returns:
            The mean loss of each weight whose candidate gets that fast.
        """
        found: dict[float, float] = {}
        for weight in WEIGHTS:
            self.latency_weight = weight
            if self.estimate(1.0) < speedup:
                continue
            small = self.build(smallest(lambda ratio: self.estimate(ratio) >= speedup))
            with torch.no_grad():
                found[weight] = sum(float(loss(small)) for loss in losses) / len(losses)
        self.latency_weight = min(found, key=lambda weight: found[weight]) if found else DEFAULT_WEIGHT
        return found

    def groups_json(self, ratio: float) -> list[dict[str, Any]]:
        """Return for each group its layers and its channels before and after."""
        pairs = zip(self.scores, self.widths(ratio), strict=True)
        return [
            {"layers": list(group.producers), "before": group.units, "after": left, "mixed": list(group.mixed)}
            for group, left in pairs
        ]


def smallest(enough: Callable[[float], bool]) -> float:
    """Return about the smallest ratio in (0, 1] that is ``enough``; 1 must be."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def example_inputs(spec: ModelSpec, size: tuple[int, int], *, batch: int = 1) -> list[Tensor]:
    """Return random inputs of a model in their value range, for tracing."""
    generator, sides = torch.Generator().manual_seed(0), {"N": batch, "H": size[0], "W": size[1]}
    inputs = []
    for item in spec.graph_inputs:
        shape = [sides.get(side, 1) if isinstance(side, str) else side for side in item.shape]
        low, high = item.value_range or (0.0, 1.0)
        inputs.append(low + (high - low) * torch.rand(shape, generator=generator))
    return inputs


def analyse(
    net: nn.Module, spec: ModelSpec, config: PruneConfig, *, input_size: tuple[int, int] | None = None
) -> ChannelMap:
    """Find what can be pruned, at the smallest size that the network runs at; the last one tried is ``input_size``.

    Raises:
        UnsupportedError: Nothing can be pruned (each layer is named with its reason), or the network does not run.
    """
    trouble: UnsupportedError | None = None
    sizes = [spec.size.fit(side, side) for side in _TRACE_SIZES]
    for size in (*sizes, *([] if input_size is None else [input_size])):
        try:
            channels = map_channels(net, example_inputs(spec, size), ignore=config.ignore)
            break
        except UnsupportedError as error:
            if "ignore" in str(error):
                raise
            trouble = error
    else:
        assert trouble is not None
        raise trouble
    if not channels.groups:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in list(channels.kept.items())[:5])
        fix = "leave this stage out"
        raise UnsupportedError(explain("pruning", expected="a layer that can be pruned", got=reasons, fix=fix))
    return channels


def prepare(
    net: nn.Module, spec: ModelSpec, config: PruneConfig, *, input_size: tuple[int, int], losses: Sequence[Loss] = ()
) -> Pruner:
    """Trace, score and weigh the channels of ``net``; what ``importance`` cannot judge is kept, with the reason."""
    channels = analyse(net, spec, config, input_size=input_size)
    scores, unscored = score(net, channels.groups, config.importance, losses=losses)
    kept = {**channels.kept, **unscored}
    costs = LayerCosts(net, example_inputs(spec, input_size))
    return Pruner(net, ChannelMap(tuple(scores), kept), config, scores, costs)
