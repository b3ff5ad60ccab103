"""LPIPS as vector fields, and the losses by which ``lite`` learns them.

Every tap of a net is a vector field: unit-length features times the square root of the head's weights, so that the
LPIPS of two images is the squared distance of their fields. ``lite`` learns three things at once: the fields of single
images, the difference of the fields of two versions of a photo (relative, so that small differences count), and the
distances themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.metrics.lite_fitting import TapPlan
from benchmarks.metrics.lpips import LPIPS, inverse_length

_DISTANCE_FLOOR = 0.02


class Fields(nn.Module):
    """A stack and its heads, as vector fields: unit-length features times ``scales``, whose squares are the heads.

    Args:
        metric: Gives the stack; ``write_heads`` puts the learned heads into it.
        slices: ``(first channel, channels)`` of each tap that have a head; the others have a head of zero.
    """

    def __init__(self, metric: LPIPS, slices: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.metric, self.slices = metric, tuple(slices)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(channels)) for _, channels in slices])
        metric.heads.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the field (N, C, h, w) of each tap."""
        taps = zip(self.metric.taps(images), self.slices, self.scales, strict=True)
        return [tap.narrow(1, *part) * (inverse_length(tap) * scale.view(1, -1, 1, 1)) for tap, part, scale in taps]

    def write_heads(self) -> LPIPS:
        """Square the scales into the heads of the metric, and return it."""
        with torch.no_grad():
            for head, (first, channels), scale in zip(self.metric.heads, self.slices, self.scales, strict=True):
                head.zero_()[first : first + channels] = scale.square()
        return self.metric


@dataclass(frozen=True)
class Targets:
    """What the official net says of a batch.

    Attributes:
        fields: (G * 4, C, h, w) a tap, channels in ``lite``'s order.
        distances: (taps, G, 3), of each version to the first of its group.
    """

    fields: list[Tensor]
    distances: Tensor


def official_targets(teacher: LPIPS, images: Tensor, plans: Sequence[TapPlan], groups: int) -> Targets:
    """Run the official net on ``images`` (G * 4, 3, S, S)."""
    fields, distances = [], []
    with torch.no_grad():
        for tap, head, plan in zip(teacher.taps(images), teacher.heads, plans, strict=True):
            roots = head[plan.official].sqrt().view(1, -1, 1, 1)
            field = tap[:, plan.official] * (inverse_length(tap) * roots)
            distances.append(_squares(_to_first(field, groups), field) / plan.coverage)
            fields.append(field)
    return Targets(fields, torch.stack(distances))


def _to_first(field: Tensor, groups: int) -> Tensor:
    """Return the difference of each version and the first of its group: (G, 3, C, h, w)."""
    versions = field.unflatten(0, (groups, -1))
    return versions[:, 1:] - versions[:, :1]


def _squares(difference: Tensor, field: Tensor) -> Tensor:
    return difference.square().sum(dim=(2, 3, 4)) / field[0, 0].numel()


def field_losses(
    student: Sequence[Tensor], targets: Targets, plans: Sequence[TapPlan], groups: int
) -> dict[str, Tensor]:
    """Compute the three losses of a batch of ``groups`` groups of versions.

    Returns:
        ``field``: error of the fields, relative to their variance; ``difference``: error of the difference of each
        version and the first, relative to it; ``distance``: error of the distances, relative; ``error``: mean
        absolute error of the distances, for the log.
    """
    total_variance = sum(plan.variance for plan in plans)
    zero = student[0].new_zeros(())
    field, difference, tap_error, distances = zero, zero, zero, []
    for mine, wanted, target, plan in zip(student, targets.fields, targets.distances, plans, strict=True):
        share = 0.5 / len(plans) + 0.5 * plan.variance / total_variance
        missed = mine - wanted
        field = field + share * missed.square().sum() / (len(mine) * mine[0, 0].numel() * plan.variance)
        wrong = _squares(_to_first(missed, groups), mine)
        difference = difference + share * (wrong / (target + 0.005 * plan.variance)).mean()
        distance = _squares(_to_first(mine, groups), mine)
        floor = _DISTANCE_FLOOR * plan.variance / total_variance
        tap_error = tap_error + share * ((distance - target).abs() / (target + floor)).mean()
        distances.append(distance)
    total, target = torch.stack(distances).sum(dim=0), targets.distances.sum(dim=0)
    error = (total - target).abs()
    relative = (error / (target + _DISTANCE_FLOOR)).mean()
    return {"field": field, "difference": difference, "distance": relative + 0.3 * tap_error, "error": error.mean()}


def fit_scales(student: Fields, teacher: LPIPS, plans: Sequence[TapPlan], images: Tensor) -> None:
    """Set the scale of each channel by least squares."""
    with torch.no_grad():
        targets = official_targets(teacher, images, plans, len(images) // 4).fields
        for scale in student.scales:
            scale.fill_(1.0)
        for scale, mine, wanted in zip(student.scales, student(images), targets, strict=True):
            scale.copy_((mine * wanted).sum(dim=(0, 2, 3)) / mine.square().sum(dim=(0, 2, 3)).clamp_min(1e-12))
