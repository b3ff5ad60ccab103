"""Two ends of one network whose weights are blended: between them, at any level.

``Between`` keeps both ends and blends for each image: a teacher that answers at the level that it is asked for. What a
network's training left as ends is named in the sidecar of its artifact (``blend``).

Source: Wang et al. 2019, "Deep Network Interpolation for Continuous Imagery Effect Transition".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.artifact import Artifact, load_network, read_tensors
from models.controls import unpack
from models.errors import CheckpointError, explain
from models.registry import get_task


class Between(nn.Module):
    """Both ends of a network: each image goes through the blend of the level that is packed behind it.

    Args:
        net: The network; its weights are not used.
        start: Weights at level 0.
        end: Weights at level 1.
    """

    def __init__(self, net: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self._ends = {key: (start[key].float(), end[key].float()) for key in blend(start, end, 0.0)}

    def forward(self, packed: Tensor) -> Tensor:
        """Images and levels (N, 3 + 1, H, W) -> (N, 3, H, W)."""
        images, levels = unpack(packed, 1)
        answers = []
        for image, level in zip(images, levels, strict=True):
            weights = {key: torch.lerp(a.to(image), b.to(image), level) for key, (a, b) in self._ends.items()}
            answers.append(functional_call(self.net, weights, (image[None],)))
        return torch.cat(answers)


def blend(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return the weights ``(1 - alpha) * start + alpha * end``.

    Raises:
        CheckpointError: The networks have other tensors.
    """
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (start, end)]
    if shapes[0] != shapes[1]:
        differ = sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
        fix = "blend two networks of one structure, neither of them pruned alone"
        raise CheckpointError(explain("blend", expected="the same tensors", got=f"{differ[:3]} differ", fix=fix))
    return {key: (1 - alpha) * start[key].float() + alpha * end[key].float() for key in start}


def load_at_levels(artifact: Artifact) -> nn.Module:
    """Return the network of ``artifact`` in eval mode: ``Between`` where its sidecar names two ends.

    Raises:
        CheckpointError: The weights, or one of the ends beside them, are missing or damaged.
    """
    net = load_network(artifact)
    return at_levels(net, artifact.metadata, artifact.path) if get_task(artifact.task).controls else net


def at_levels(net: nn.Module, metadata: Mapping[str, Any], path: Path) -> nn.Module:
    """Return ``net`` in eval mode: ``Between`` where ``metadata`` name two ends that lie beside ``path``."""
    note = metadata.get("blend")
    if not isinstance(note, dict):
        return net.eval()
    start, end = (read_tensors(path.with_name(str(note[name]))) for name in ("start", "end"))
    return Between(net, start, end).eval()
