"""DNI: two networks of one structure, trained one after the other, whose weights are blended.

``start`` is trained at the start level, ``end`` is ``start`` trained on at the end level; a network between has the
weights ``(1 - alpha) * start + alpha * end``. The blend is made once, before the export: the engine is a plain
network of that level, and a set of engines covers a range.

Source: Wang et al. 2019, "Deep Network Interpolation for Continuous Imagery Effect Transition"; the network is the
residual denoiser of He et al. 2019 without its modification layers (hejingwenhejingwen/AdaFM, ``norm_type=basic``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.errors import CheckpointError, explain
from models.residual_denoiser import ResidualDenoiser


class DNI(ResidualDenoiser):
    """The plain residual denoiser."""

    #: The second step of the training changes everything, and the weights before it are kept.
    blends = True

    def forward(self, input: Tensor) -> Tensor:
        """Image (N, 3, H, W) -> (N, 3, H, W); H and W even. More channels (a packed level) are ignored."""
        return self.run(input[:, :3], None)


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


def dni(width: int = 64, depth: int = 16) -> DNI:
    """Build the network with random weights."""
    return DNI(width, depth)
