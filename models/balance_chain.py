"""The whole colour balance of a photo of any size, and the mappers it can use.

The photo is shrunk to 224x224, encoded, balanced in the latent space and decoded twice (``models.latent_balancer``);
a mapper is fitted online from the decoded bad colours to the decoded balanced ones; the mapper is applied to every
pixel of the photo at its own size. Three mappers:

- ``mlp``: a small network of three layers, trained on these pixels for a fixed number of steps from a fixed seed;
- ``ridge``: the quadratic map of ``ColourMapper``, in closed form;
- ``lut``: either of them sampled into a 3D table, which is what a phone applies (``models.cube``).

All are repeatable: the same photo gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cube import Cube, identity_3d
from models.errors import ConfigError, explain
from models.latent_balancer import ColourMapper

if TYPE_CHECKING:
    from models.latent_balancer import LatentBalancer

WORKING_SIZE = 224
LUT_NODES = 17
Mapper = Callable[[Tensor], Tensor]
_CHUNK = 1 << 20
_MLP_WIDTH = 32
_MLP_STEPS = 150
_MLP_BATCH = 4096


def shrink(rgb: Tensor, side: int = WORKING_SIZE) -> Tensor:
    """Photos (N, 3, H, W) -> (N, 3, side, side), antialiased; the aspect ratio is not kept."""
    return functional.interpolate(rgb, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)


def fit_ridge(bad: Tensor, good: Tensor, *, ridge: float = 1e-2) -> Mapper:
    """Fit the quadratic colour map in closed form; colours (1, 3, H, W) in [0, 1]."""
    mapper = ColourMapper(ridge)
    coefficients = mapper.fit(bad, good)
    return lambda rgb: mapper(coefficients, rgb)


def fit_mlp(bad: Tensor, good: Tensor, *, seed: int = 0, steps: int = _MLP_STEPS) -> Mapper:
    """Fit a network of three layers to the change of colour by Adam, the same way each time; colours (1, 3, H, W)."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Linear(3, _MLP_WIDTH), nn.Tanh(), nn.Linear(_MLP_WIDTH, _MLP_WIDTH), nn.Tanh(), nn.Linear(_MLP_WIDTH, 3)
        )
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
        source, change = (colours.flatten(1).T.detach().clone() for colours in (bad[0], (good - bad)[0]))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / steps)
            picked = torch.randint(len(source), (min(_MLP_BATCH, len(source)),))
            loss = functional.mse_loss(layers(source[picked] * 2 - 1), change[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def mapper(rgb: Tensor) -> Tensor:
        colours = rgb.flatten(2).transpose(1, 2)
        return (rgb + layers(colours * 2 - 1).transpose(1, 2).reshape(rgb.shape)).clamp(0, 1)

    return mapper


FITS: dict[str, Callable[[Tensor, Tensor], Mapper]] = {"ridge": fit_ridge, "mlp": fit_mlp}


@torch.no_grad()
def fit_mapper(net: LatentBalancer, photo: Tensor, *, kind: Literal["ridge", "mlp"] = "ridge") -> Mapper:
    """Return the colour mapper of one photo (1, 3, H, W) in [0, 1], any size.

    Raises:
        ConfigError: No such mapper, or not one photo.
    """
    if kind not in FITS:
        raise ConfigError(explain("mapper", expected=" | ".join(FITS), got=repr(kind), fix="choose one"))
    if photo.ndim != 4 or photo.shape[:2] != (1, 3):
        fix = "balance one photo at a time"
        raise ConfigError(explain("photo", expected="shape (1, 3, H, W)", got=tuple(photo.shape), fix=fix))
    bad, good = net.colours(shrink(photo))
    return FITS[kind](bad, good)


@torch.no_grad()
def apply_mapper(mapper: Mapper, photo: Tensor) -> Tensor:
    """Map a photo (1, 3, H, W) in bands of about a million pixels, so that memory does not grow with its size."""
    rows = max(_CHUNK // photo.shape[3], 1)
    result = torch.empty_like(photo)
    for band, out in zip(photo.split(rows, 2), result.split(rows, 2), strict=True):
        out.copy_(mapper(band))
    return result


def balance_photo(net: LatentBalancer, photo: Tensor, *, kind: Literal["ridge", "mlp"] = "ridge") -> Tensor:
    """Balance one photo (1, 3, H, W) in [0, 1], any size: the whole chain."""
    return apply_mapper(fit_mapper(net, photo, kind=kind), photo)


@torch.no_grad()
def bake(mapper: Mapper, *, nodes: int = LUT_NODES, title: str = "") -> Cube:
    """Sample a mapper into a 3D look-up table of ``nodes`` nodes a side."""
    grid = identity_3d(nodes)
    return Cube(mapper(grid.reshape(1, 3, nodes, nodes * nodes)).reshape(grid.shape).contiguous(), title)
