"""How far a network looks, measured by gradient, and what tiles that asks for.

The gradient of one output pixel with respect to the input is the network's receptive field, weights included: where it
is zero nothing is read. What counts for tiles is where most of it lies (the effective receptive field).

Source: Luo et al. 2016, "Understanding the effective receptive field in deep convolutional neural networks".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.tiling import MINIMUM_OVERLAP, Tiling
from models.artifact import Artifact, load_network
from models.registry import get_spec

#: Share of the gradient that the effective radius holds.
EFFECTIVE = 0.99
_ZERO = 1e-6
_OFFSETS = (0, 3)
_SIDES = (256, 128, 64)
_MOST_VALUES = 2.5e8


@dataclass(frozen=True)
class ReceptiveField:
    """Pixels to each side of a pixel.

    Attributes:
        reach: Furthest pixel that has an influence above a millionth of the largest.
        effective: Radius (of a square) that holds 99% of the influence.
        measured_at: Side of the picture that it was measured on.
        is_whole: The reach is the whole picture (attention, global pooling, or a picture too small to tell).
    """

    reach: int
    effective: int
    measured_at: int
    is_whole: bool


def receptive_field(
    net: nn.Module, channels: int, side: int, *, controls: int = 0, seed: int = 0
) -> ReceptiveField | None:
    """Measure a network on random pictures (1, channels, side, side), around pixels near the middle.

    Args:
        net: The network, in eval mode.
        channels: Of its input, packed controls included.
        side: Of the pictures, pixels.
        controls: How many of the channels, the last ones, are packed controls: they are no picture.
        seed: Of the pictures.

    Returns:
        The largest reach and the largest effective radius; None where the gradient is zero (an untrained last layer)
        or where the output is no picture of the same size.
    """
    rng = torch.Generator().manual_seed(seed)
    reach = effective = 0
    for offset in _OFFSETS:
        centre = side // 2 + offset
        x = torch.rand(1, channels, side, side, generator=rng).requires_grad_()
        y = net(x)
        if y.ndim != 4 or y.shape[2:] != x.shape[2:]:
            return None
        (slope,) = torch.autograd.grad(y[0, :, centre, centre].sum(), x)
        rings = _rings(slope[0, : channels - controls].abs().sum(dim=0), centre)
        total = float(rings.sum())
        if not total > 0:
            return None
        reach = max(reach, int((rings > _ZERO * rings.max()).nonzero().max()))
        effective = max(effective, int((rings.cumsum(0) < EFFECTIVE * total).sum()))
    return ReceptiveField(reach, effective, side, reach >= side // 2 - max(_OFFSETS) - 1)


def _rings(influence: Tensor, centre: int) -> Tensor:
    """Sum the influence (side, side) over square rings around a pixel: (radius,), radius 0 first."""
    offset = (torch.arange(len(influence)) - centre).abs()
    radius = torch.maximum(offset[:, None], offset[None, :])
    return torch.zeros(int(radius.max()) + 1, dtype=torch.float64).index_add_(
        0, radius.flatten(), influence.flatten().double()
    )


def field_of(artifact: Artifact) -> ReceptiveField | None:
    """Measure the receptive field of a ``torch`` artifact on the largest of ``_SIDES`` that fits into memory.

    None likewise where not even the smallest does, and where the network does not run at these sizes.
    """
    spec = get_spec(artifact.model, task=artifact.task)
    net = load_network(artifact).requires_grad_(False)
    sides = [spec.size.fit(side, side)[0] for side in _SIDES]
    try:
        needed = _activations(net, spec.packed_channels, sides[-1])
        for side in sides:
            if needed * (side / sides[-1]) ** 2 <= _MOST_VALUES:
                return receptive_field(net, spec.packed_channels, side, controls=len(spec.graph_controls))
    except Exception:  # a network of one size alone: code of the user's may raise anything
        return None
    return None


@torch.no_grad()
def _activations(net: nn.Module, channels: int, side: int) -> int:
    """Count the values that the layers of a network give for a picture (1, channels, side, side)."""
    count = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) else 0

    hooks = [module.register_forward_hook(add) for module in net.modules()]
    net(torch.zeros(1, channels, side, side))
    for hook in hooks:
        hook.remove()
    return count


def overlap_for(field: ReceptiveField | None) -> int:
    """Return the overlap that tiles need: twice the effective radius, 64 pixels at least.

    Then 99% of what a pixel depends on lies inside of a tile where that tile counts for half.
    """
    return MINIMUM_OVERLAP if field is None else max(MINIMUM_OVERLAP, 2 * field.effective)


def describe(field: ReceptiveField | None, tiling: Tiling) -> dict[str, Any]:
    """Return a tiling and how it came about as JSON values: ``tile``, ``overlap``, ``receptive_field``, ``note``."""
    note = None
    if field is None:
        why = "the gradient is zero, the output has another size, memory is short, or only other sizes run"
        note = f"receptive field not measured: {why}"
    elif tiling.overlap < overlap_for(field):
        note = f"the tile is too small for the overlap of {overlap_for(field)} that the receptive field asks for"
    elif field.is_whole:
        note = f"the network reads the whole picture of {field.measured_at} pixels: tiles differ from the whole"
    account = None if field is None else asdict(field)
    return {**tiling.to_json(), "receptive_field": account, "note": note}
