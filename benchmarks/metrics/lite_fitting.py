"""The start of ``lite``'s training: which official channels it has, and a first fit of its layers by least squares.

Gradient descent from random weights needs tens of thousands of steps to get through SqueezeNet's ill-conditioned
layers. So each convolution is first fitted by ridge regression: from what ``lite`` computes up to there, to what the
official net computes before the same ReLU. Later modules of ``lite`` have fewer channels: those that matter most to the
distance and to the next module.

What comes out is close to a channel-pruned SqueezeNet 1.1: most of the filters that are kept end up as the official
ones (the card, ``docs/lpips-lite.md``, says how close), and its licence notices go with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.metrics.backbones import Fire
from benchmarks.metrics.lpips import LPIPS, inverse_length
from models.progress import NULL_PROGRESS, Progress

_COVERAGE = 0.995
_RIDGE = 1e-5
_CHUNK = 32
_POSITIONS = 12000


@dataclass(frozen=True)
class TapPlan:
    """What one tap of ``lite`` learns.

    Attributes:
        order: The official channel that each channel of ``lite`` stands for, (width,).
        first: The first channel of ``lite`` with a head.
        heads: How many from there on have one; the others serve the next module only.
        variance: Variance of the official field, summed over channels.
        coverage: Share of it that the channels with a head hold.
    """

    order: Tensor
    first: int
    heads: int
    variance: float
    coverage: float

    @property
    def official(self) -> Tensor:
        """The official channels that have a head in ``lite``, in its order."""
        return self.order[self.first : self.first + self.heads]


def plan_taps(teacher: LPIPS, lite: LPIPS, images: Tensor) -> list[TapPlan]:
    """Choose the official channels that ``lite`` keeps at each tap.

    In a fire module the 1x1 channels come before the 3x3 ones, and each stands for one of its own kind. Channels with a
    head are put around the border between the two, so that they are one slice.

    Args:
        teacher: The official ``squeeze``.
        lite: Gives the widths.
        images: (N, 3, S, S) sRGB in [0, 1], to measure variances on.
    """
    plans = []
    with torch.no_grad():
        taps = teacher.taps(images)
    for index, (tap, head) in enumerate(zip(taps, teacher.heads, strict=True)):
        field = tap * (inverse_length(tap) * head.detach().sqrt().view(1, -1, 1, 1))
        variance = field.var(dim=(0, 2, 3))
        use = _use_of_next(teacher, teacher.features.taps[index], tap)
        layer = lite.features[lite.features.taps[index]]
        width, split = lite.features.channels[index], _split(layer)
        half = len(variance) // 2 if split else 0
        ranked = variance.argsort(descending=True)
        kept = ranked[: int((variance[ranked].cumsum(0) / variance.sum() < _COVERAGE).sum()) + 1]
        ones, slack1 = _choose(kept[kept < half], torch.arange(half, device=kept.device), use, split)
        rest = torch.arange(half, len(variance), device=kept.device)
        threes, slack3 = _choose(kept[kept >= half], rest, use, width - split)
        order = torch.cat((slack1, ones, threes, slack3))
        heads = len(ones) + len(threes)
        covered = variance[order[len(slack1) : len(slack1) + heads]].sum() / variance.sum()
        plans.append(TapPlan(order, len(slack1), heads, float(variance.sum()), float(covered)))
    return plans


def _split(layer: nn.Module) -> int:
    return layer.expand1x1.out_channels if isinstance(layer, Fire) else 0


def _choose(wanted: Tensor, pool: Tensor, use: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the ``wanted`` channels that fit, best first, and those of the pool that fill up the ``width``."""
    wanted = wanted[:width]
    others = pool[~torch.isin(pool, wanted)]
    others = others[use[others].argsort(descending=True)]
    return wanted, others[: width - len(wanted)]


def _use_of_next(teacher: LPIPS, index: int, output: Tensor) -> Tensor:
    """Return how much each channel of layer ``index`` moves the next fire module, (C,); zeros after the last."""
    later = [layer for layer in list(teacher.features)[index + 1 :] if isinstance(layer, Fire)]
    if not later:
        return torch.zeros_like(output[0, :, 0, 0])
    weights = later[0].squeeze.weight.detach()[:, :, 0, 0]
    return weights.square().sum(dim=0) * output.var(dim=(0, 2, 3))


def _inner_order(teacher: LPIPS, index: int, layer: Fire, official: Sequence[Tensor]) -> Tensor:
    """Choose the official channels of a fire module between two taps, by what the next module makes of them."""
    use = _use_of_next(teacher, index, torch.cat(list(official[:4])))
    half = len(use) // 2
    ones = use[:half].argsort(descending=True)[: layer.expand1x1.out_channels]
    threes = use[half:].argsort(descending=True)[: layer.expand3x3.out_channels]
    return torch.cat((ones, threes + half))


def fit_layers(
    teacher: LPIPS,
    lite: LPIPS,
    images: Tensor,
    plans: Sequence[TapPlan],
    *,
    seed: int = 0,
    progress: Progress = NULL_PROGRESS,
) -> None:
    """Fit every convolution of ``lite`` in turn, by ridge regression.

    Args:
        teacher: The official ``squeeze``.
        lite: Its layers are overwritten.
        images: (N, 3, S, S) sRGB in [0, 1].
        plans: Which channels stand for which.
        seed: Of the draw of positions.
        progress: Where to report.
    """
    orders = {tap: plan.order for tap, plan in zip(lite.features.taps, plans, strict=True)}
    generator = torch.Generator().manual_seed(seed)
    scaled = (images * 2 - 1 - lite.shift) / lite.scale
    official = list(scaled.split(_CHUNK))
    ours = list(official)
    layers = list(zip(lite.features, teacher.features, strict=True))
    with progress.track("Fitting layers", total=len(layers)) as bar, torch.no_grad():
        for index, (layer, model) in enumerate(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(model, nn.Conv2d):
                _solve(layer, ours, [model(x)[:, orders[index + 1]] for x in official], generator)
            elif isinstance(layer, Fire) and isinstance(model, Fire):
                if index not in orders:
                    orders[index] = _inner_order(teacher, index, layer, [model(x) for x in official[:4]])
                _fit_fire(layer, model, ours, official, orders[index], generator)
            ours, official = [layer(x) for x in ours], [model(x) for x in official]
            bar.advance(1)


def _fit_fire(
    layer: Fire, model: Fire, ours: list[Tensor], official: list[Tensor], order: Tensor, generator: torch.Generator
) -> None:
    half = model.expand1x1.out_channels
    split = layer.expand1x1.out_channels
    _solve(layer.squeeze, ours, [model.squeeze(x) for x in official], generator)
    inner = [torch.relu(layer.squeeze(x)) for x in ours]
    wanted = [torch.relu(model.squeeze(x)) for x in official]
    _solve(layer.expand1x1, inner, [model.expand1x1(x)[:, order[:split]] for x in wanted], generator)
    _solve(layer.expand3x3, inner, [model.expand3x3(x)[:, order[split:] - half] for x in wanted], generator)


def _solve(layer: nn.Conv2d, inputs: Sequence[Tensor], targets: Sequence[Tensor], generator: torch.Generator) -> None:
    """Set weight and bias to the ridge solution of ``layer(inputs) = targets`` at random positions."""
    size = layer.weight[0].numel() + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=layer.weight.device)
    cross = torch.zeros(size, layer.out_channels, dtype=torch.float64, device=layer.weight.device)
    padding = tuple(int(size) for size in layer.padding)
    for x, y in zip(inputs, targets, strict=True):
        patches = functional.unfold(x, layer.kernel_size, padding=padding, stride=layer.stride)
        rows = patches.transpose(1, 2).flatten(0, 1)
        wanted = y.flatten(2).transpose(1, 2).flatten(0, 1)
        chosen = torch.randperm(len(rows), generator=generator)[:_POSITIONS].to(rows.device)
        rows = functional.pad(rows[chosen], (0, 1), value=1.0)
        gram += (rows.T @ rows).double()
        cross += (rows.T @ wanted[chosen]).double()
    ridge = torch.diag(gram.diagonal() * _RIDGE + 1e-8 * gram.diagonal().mean())
    solution = torch.linalg.solve(gram + ridge, cross).float()
    layer.weight.copy_(solution[:-1].T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(solution[-1])
