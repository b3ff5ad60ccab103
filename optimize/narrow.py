"""The teacher itself as a student: the same architecture, its weakest channels gone, its own weights to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.artifact import Artifact, load_network
from models.registry import get_spec

if TYPE_CHECKING:
    from torch import nn

#: What ``--student`` says for it.
TEACHER = "teacher"


def narrowed(teacher: Artifact, ratio: float, *, input_size: tuple[int, int]) -> nn.Module:
    """Return the network of ``teacher`` with about ``ratio`` of the channels of each layer removed by magnitude.

    Args:
        teacher: Artifact of format ``torch``.
        ratio: In (0, 1).
        input_size: Height and width that the time of each layer is estimated at, pixels.

    Raises:
        UnsupportedError: No layer of it can lose channels; each is named with its reason.
    """
    from optimize.prune import PruneConfig, fixed_ratio
    from optimize.pruner import prepare

    config = PruneConfig(pruning_ratio=ratio, importance="magnitude", scope="uniform", max_ratio=max(0.8, ratio))
    spec = get_spec(teacher.model, task=teacher.task)
    pruner = prepare(load_network(teacher), spec, config, input_size=input_size)
    return pruner.build(fixed_ratio(pruner, config))
