"""What INT8 costs in LPIPS, layer by layer, and which layers are worth keeping in higher precision.

Source: the greedy search over per-layer sensitivities is common practice (NNCF's accuracy-aware training, ppq); the
score here is perceptual: LPIPS of the rendered picture, not the error of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.progress import NULL_PROGRESS, Progress
from optimize.evaluate import lpips_all, render_all, truth_all

if TYPE_CHECKING:
    from torch import Tensor

    from models.tasks.base import Task
    from optimize.simulation import SimulatedInt8


_NOISE_PHOTOS = 8


@dataclass(frozen=True)
class LayerSensitivity:
    """What INT8 in this layer alone does.

    Attributes:
        layer: Torch module name.
        lpips_drop: LPIPS to the photo, minus that of the float network; positive is worse.
        lpips_to_float: LPIPS between the pictures of the quantized and of the float network, 0 or more.
        macs_share: Share of the network's multiply-adds.
        low: Smallest input value over the calibration inputs.
        high: Largest input value.
        precision: ``int8``, or ``float`` where it was kept in higher precision.
    """

    layer: str
    lpips_drop: float
    lpips_to_float: float
    macs_share: float
    low: float
    high: float
    precision: str = "int8"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Scorer:
    """Scores a simulated network on photos (N, 3, H, W), or pairs (N, 6, H, W), with one LPIPS net."""

    simulation: SimulatedInt8
    task: Task
    rgb: Tensor
    lpips_net: str = "lite"
    lpips_weights: Path | None = None

    @cached_property
    def truth(self) -> Tensor:
        """What a perfect network would render: (N, 3, H, W) in [0, 1]."""
        return truth_all(self.task, self.rgb)

    def render(self, layers: Collection[str], *, symmetric: bool = False) -> Tensor:
        """Return the pictures of the network with ``layers`` in INT8: (N, 3, H, W) in [0, 1]."""
        with self.simulation.quantized(layers, symmetric=symmetric) as net:
            return render_all(net, self.task, self.rgb)

    def distance(self, preds: Tensor, target: Tensor) -> float:
        """Mean LPIPS between pictures (N, 3, H, W)."""
        return float(lpips_all(preds, target, net=self.lpips_net, weights=self.lpips_weights).mean())

    def drop(self, layers: Collection[str], float_lpips: float, *, symmetric: bool = False) -> float:
        """LPIPS to the truth with ``layers`` in INT8, minus ``float_lpips``."""
        return self.distance(self.render(layers, symmetric=symmetric), self.truth) - float_lpips

    @torch.no_grad()
    def noise(self, layers: Collection[str]) -> float:
        """Return how far INT8 in ``layers`` takes the outputs: rms, output units, the larger of both roundings."""
        inputs = self.task.inputs_of(self.rgb[:_NOISE_PHOTOS])
        with self.simulation.quantized(()) as net:
            exact = torch.cat([net(part) for part in inputs.split(1)])
        found = []
        for symmetric in (False, True):
            with self.simulation.quantized(layers, symmetric=symmetric) as net:
                errors = [net(part) - want for part, want in zip(inputs.split(1), exact.split(1), strict=True)]
            found.append(float(torch.cat(errors).double().square().mean().sqrt()))
        return max(found)


@torch.no_grad()
def score_layers(scorer: Scorer, *, progress: Progress = NULL_PROGRESS) -> list[LayerSensitivity]:
    """Quantize one layer at a time and measure; in the order that the network calls them."""
    simulation = scorer.simulation
    reference = scorer.render(())
    start = scorer.distance(reference, scorer.truth)
    total = max(sum(simulation.macs.values()), 1)
    scores = []
    with progress.track("Sensitivity of layers", total=len(simulation.layers)) as bar:
        for layer in simulation.layers:
            picture = scorer.render((layer,))
            low, high = simulation.ranges[layer]
            found = LayerSensitivity(
                layer=layer,
                lpips_drop=scorer.distance(picture, scorer.truth) - start,
                lpips_to_float=scorer.distance(picture, reference),
                macs_share=simulation.macs[layer] / total,
                low=low,
                high=high,
            )
            scores.append(found)
            bar.advance(1, lpips=found.lpips_to_float)
    return scores


def by_worth(scores: Sequence[LayerSensitivity]) -> list[str]:
    """Order layers by what keeping them float is worth: LPIPS to the float pictures, per unit of time.

    Time is half multiply-adds and half a constant a layer, for the conversions around it.
    """
    constant = 1 / max(len(scores), 1)
    ordered = sorted(scores, key=lambda item: item.lpips_to_float / (item.macs_share + constant), reverse=True)
    return [item.layer for item in ordered]


@dataclass(frozen=True)
class FloatChoice:
    """Which layers stay in float, and what was tried to find them.

    Attributes:
        layers: Layers kept in float.
        drop: LPIPS drop of the whole network with them.
        tried: Number of layers in float (as text) -> LPIPS drop, in rising order.
        most: The most layers that the share of the multiply-adds allows.
    """

    layers: tuple[str, ...]
    drop: float
    tried: Mapping[str, float]
    most: int


def choose_float_layers(
    drop_of: Callable[[tuple[str, ...]], float],
    order: Sequence[str],
    shares: Mapping[str, float],
    *,
    aim: float,
    max_share: float,
) -> FloatChoice:
    """Keep as few layers in float as bring the LPIPS drop of the whole network to ``aim``.

    Takes the first 0, 1, 2, 4, ... layers of ``order``, then bisects between the last that failed and the first that
    passed: a dozen measurements for a hundred layers.

    Args:
        drop_of: Measures the LPIPS drop with these layers in float and the rest in INT8.
        order: Layers, the most worthwhile first.
        shares: Share of the multiply-adds of each layer.
        aim: LPIPS.
        max_share: Largest share of the multiply-adds in float.

    Returns:
        The choice; where nothing reaches the aim, the best that was tried.
    """
    limit, share = 0, 0.0
    for layer in order:
        share += shares[layer]
        if share > max_share:
            break
        limit += 1
    known = {0: drop_of(())}
    if known[0] <= aim:
        return FloatChoice((), known[0], {"0": known[0]}, limit)
    failed, passed, count = 0, None, 1
    while passed is None and failed < limit:
        count = min(count, limit)
        known[count] = drop_of(tuple(order[:count]))
        if known[count] <= aim:
            passed = count
        else:
            failed, count = count, 2 * count
    while passed is not None and passed - failed > 1:
        middle = (failed + passed) // 2
        known[middle] = drop_of(tuple(order[:middle]))
        if known[middle] <= aim:
            passed = middle
        else:
            failed = middle
    best = passed if passed is not None else min(known, key=lambda number: known[number])
    tried = {str(number): drop for number, drop in sorted(known.items())}
    return FloatChoice(tuple(order[:best]), known[best], tried, limit)
