"""A tunable network fixed at one level: the plain residual network that computes the same, without the modification.

FTN's kernels are linear in the level, so both convolutions become one. AdaFM's published modification, a gain and an
offset a channel, goes into the convolution before it. What results is ``models.dni``, at the cost of the plain network:
half of FTN's multiply-adds in the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.adafm import AdaptiveFM
from models.dni import DNI, dni
from models.errors import UnsupportedError, explain
from models.ftn import TransitionConv
from models.layers import resize_to
from models.residual_denoiser import ResidualDenoiser

MODEL = "dni"


@torch.no_grad()
def fix_level(net: nn.Module, level: float, *, width: int = 64, depth: int = 16) -> DNI:
    """Return the plain network that computes what ``net`` does at ``level``, in eval mode.

    Args:
        net: AdaFM or FTN, pruned or not.
        level: Of its control, [0, 1].
        width: Channels that it was built with.
        depth: Blocks that it was built with.

    Raises:
        UnsupportedError: Another network, or a modification that reaches over neighbours.
    """
    layers = dict(net.named_modules())
    tuned = [layer for layer in layers.values() if isinstance(layer, (AdaptiveFM, TransitionConv))]
    wide = [layer for layer in tuned if isinstance(layer, AdaptiveFM) and layer.kernel_size > 1]
    if not isinstance(net, ResidualDenoiser) or not tuned or wide:
        got = f"kernels of {wide[0].kernel_size}" if wide else type(net).__name__
        fix = "export it with the level as an input"
        raise UnsupportedError(explain("fixed level", expected="FTN, or AdaFM of kernel size 1", got=got, fix=fix))
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if isinstance(layer, TransitionConv):
            kernel, offset = layer.end_change()
            assert layer.conv.bias is not None
            _keep(state, name, layer.conv.weight + level * kernel, layer.conv.bias + level * offset)
        elif isinstance(layer, AdaptiveFM):
            before = f"{name.rpartition('.')[0]}.{int(name.rpartition('.')[2]) - 1}"
            gain, shift = 1 + level * layer.transformer.weight.flatten(), layer.transformer.bias
            assert shift is not None
            weight, bias = state[f"{before}.weight"], state[f"{before}.bias"]
            _keep(state, before, weight * gain[:, None, None, None], bias * gain + level * shift)
        elif isinstance(layer, nn.Conv2d) and not _inside(name, layers):
            assert layer.bias is not None
            _keep(state, name, layer.weight, layer.bias)
    plain = dni(width, depth, alpha=level)
    resize_to(plain, state)
    plain.load_state_dict(state)
    return plain.eval()


def _keep(state: dict[str, Tensor], name: str, weight: Tensor, bias: Tensor) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = weight.clone(), bias.clone()


def _inside(name: str, layers: dict[str, nn.Module]) -> bool:
    """Say whether a layer belongs to a modification."""
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(isinstance(layers[one], (AdaptiveFM, TransitionConv)) for one in above)
