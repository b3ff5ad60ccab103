"""DNI: two networks of one structure, trained one after the other, whose weights are blended.

``start`` is trained at the start level, ``end`` is ``start`` trained on at the end level; a network between has the
weights ``(1 - alpha) * start + alpha * end``. The blend is made once, before the export: the engine is a plain
network of that level, and a set of engines covers a range (``models.two_ends``).

Source: Wang et al. 2019, "Deep Network Interpolation for Continuous Imagery Effect Transition"; the network is the
residual denoiser of He et al. 2019 without its modification layers (hejingwenhejingwen/AdaFM, ``norm_type=basic``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.fixed_level import Fixed
from models.layers import resize_to
from models.residual_denoiser import ResidualBlock, ResidualDenoiser


class DNI(ResidualDenoiser):
    """The plain residual denoiser.

    Args:
        width: Channels.
        depth: Residual blocks.
        alpha: Where between its ends the weights are; None: not a blend. Nothing is computed from it.
    """

    #: The second step of the training changes everything, and the weights before it are kept.
    blends = True

    def __init__(self, width: int = 64, depth: int = 16, *, alpha: float | None = None) -> None:
        super().__init__(width, depth)
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        """Image (N, 3, H, W) -> (N, 3, H, W); H and W even. More channels (a packed level) are ignored."""
        return self.run(input[:, :3], None)


def dni(width: int = 64, depth: int = 16, alpha: float | None = None) -> DNI:
    """Build the network with random weights; ``alpha`` notes where between its ends a blend is."""
    return DNI(width, depth, alpha=alpha)


def plain_of(net: ResidualDenoiser, state: Mapping[str, Tensor], level: float) -> Fixed:
    """Return the plain network with the convolutions ``state`` in the place of those of ``net``, pruned or not."""
    width = state["model.0.weight"].shape[0]
    depth = sum(isinstance(layer, ResidualBlock) for layer in net.modules())
    kwargs = {"width": width, "depth": depth, "alpha": level}
    plain = dni(width, depth, alpha=level)
    resize_to(plain, state)
    plain.load_state_dict(state)
    return Fixed(plain.eval(), "dni", kwargs)
