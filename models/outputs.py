"""What comes out of a restoration network: a picture, as published, or a bounded map around one half.

A *map* network has the published architecture with a narrower last layer, which starts at zero, no skip from input to
output, and ``0.5 + tanh(x) / 2`` behind it: exactly 0.5, the neutral value of Soft Light, before training, and inside
of [0, 1] after it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.errors import ConfigError, explain

Form = Literal["image", "map"]


def check_form(form: str, *, skip: tuple[int, int] | None = None) -> None:
    """Raise ConfigError for an unknown form.

    Args:
        form: ``image`` or ``map``.
        skip: Channels in and out of a network that adds its input to its picture: they must be equal.
    """
    if form not in get_args(Form):
        expected = " | ".join(get_args(Form))
        raise ConfigError(explain("form", expected=expected, got=repr(form), fix="choose one of these"))
    if form == "image" and skip is not None and skip[0] != skip[1]:
        got = f"{skip[0]} in, {skip[1]} out"
        fix = "use form='map', which adds nothing to its input"
        raise ConfigError(explain("channels of form 'image'", expected="as many out as in", got=got, fix=fix))


def neutral(form: str, head: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Fill the last layer of a map network with zeros in place; leave that of a picture network as it is."""
    if form == "map":
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def bounded_map(x: Tensor) -> Tensor:
    """Any values -> (0, 1), zero -> exactly 0.5; same shape."""
    return 0.5 + 0.5 * torch.tanh(x)
