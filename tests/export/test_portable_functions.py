"""Functions that some target lacks: rewritten to the same numbers, and taken by every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import check_in_targets, save_own
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.portable import Portable

_SIDE = 6
_BOUNDS = (-0.5, 0.0, 0.5)
#: What some arguments need no other writing of: matrices, dimensions, no decimals, no factor, two tensors.
_STAY = ("einsum", "matmul", "max", "mean", "min", "round", "scaled_dot_product_attention", "std", "sub", "var")


def _unpooled(x: Tensor, window: int | tuple[int, int]) -> Tensor:
    """The largest values in their places, or others of the same size there."""
    values, indices = F.max_pool2d(x, window, return_indices=True)
    return nn.MaxUnpool2d(window)(values + 1, indices, output_size=x.shape)


def _system(x: Tensor) -> Tensor:
    """Systems (N, 8, 6, 6) that no step can take without exchanging rows."""
    return (x * 0.3 + 4 * torch.eye(_SIDE)).flip(-1)


def _gram(x: Tensor) -> Tensor:
    """Positive definite matrices (N, 8, 6, 6)."""
    return torch.matmul(x, x.transpose(2, 3)) + torch.eye(_SIDE)


def _volume(x: Tensor) -> Tensor:
    """(N, 8, 6, 6) -> (N, 2, 4, 6, 6)."""
    return x.reshape(-1, 2, 4, _SIDE, _SIDE)


def _attended(x: Tensor) -> Tensor:
    """Attention of three and of five dimensions, and of two queries to each key."""
    flat, deep = x.flatten(2), _volume(x)
    found = F.scaled_dot_product_attention(flat, flat.flip(1), flat, is_causal=True).reshape(x.shape)
    found = found + F.scaled_dot_product_attention(deep, deep, deep, attn_mask=deep[:, :1] > 0).reshape(x.shape)
    found = found + F.scaled_dot_product_attention(x, x, x, attn_mask=x[0] > 0.5)  # some look at nothing
    return found + F.scaled_dot_product_attention(x, x[:, :4], x[:, 4:], scale=0.3, enable_gqa=True)


#: What PyTorch calls -> a picture (N, 8, 6, 6) of it, from values around zero (N, 8, 6, 6).
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "__get__": lambda x: x.data * 2,
    "__or__": lambda x: x * ((x > 0.5) | (x < -0.5)),
    "__xor__": lambda x: x * ((x > -0.5) ^ (x > 0.5)).float(),
    "acosh": lambda x: torch.acosh(x.abs() + 1.5),
    "adaptive_avg_pool3d": lambda x: x * F.adaptive_avg_pool3d(_volume(x), (2, None, 5)).mean((1, 2, 3, 4))[0],
    "adaptive_max_pool3d": lambda x: x + F.adaptive_max_pool3d(_volume(x), 2).mean(),
    "addbmm": lambda x: x + x[0, 0].addbmm(x[0, :2], x[0, 2:4], beta=0.5, alpha=0.1),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.1),
    "addcmul": lambda x: x.addcmul(x, x.flip(1), value=0.1),
    "adjoint": lambda x: x.adjoint(),
    "aminmax": lambda x: x - x.aminmax(dim=1, keepdim=True).min + x.aminmax().max,
    "asinh": lambda x: torch.asinh(x) + torch.arcsinh(x),
    "atan2": lambda x: torch.atan2(x, x.flip(1)) + torch.atan2(x.relu(), x * 0 - 1) + torch.atan2(x * 0, x.abs()),
    "bilinear": lambda x: F.bilinear(x, x.flip(1), torch.ones(6, 6, 6) * 0.1, torch.ones(6)),
    "block_diag": lambda x: x + torch.block_diag(x[0, 0, :2, :4], x[0, 1, :4, :2]),
    "broadcast_to": lambda x: x + x[:, :1].broadcast_to(x.shape) + torch.broadcast_to(x[:, 1:2], x.shape),
    "bucketize": lambda x: x + torch.bucketize(x, torch.tensor(_BOUNDS), right=True).float(),
    "byte": lambda x: (
        x + (x.sigmoid() * 255).byte().float() / 255 + (x.sigmoid() * 255).round().to(torch.uint8).to(x) / 255
    ),
    "cdist": lambda x: (
        x + torch.cdist(x, x) + torch.cdist(x.flatten(1, 2), x.flatten(1, 2)).mean((1, 2))[:, None, None, None]
    ),
    "celu": lambda x: F.celu(x, 0.7) + nn.CELU()(x),
    "chain_matmul": lambda x: x + torch.chain_matmul(x[0, 0], x[0, 1], x[0, 2]),
    "cholesky_solve": lambda x: x + torch.cholesky_solve(x, torch.linalg.cholesky(_gram(x))),
    "copysign": lambda x: torch.copysign(x, x.flip(1)) + x.copysign(-1.0),
    "count_nonzero": lambda x: x * torch.count_nonzero(x > 0, dim=1)[:, None],
    "cov": lambda x: x + torch.cov(x[0, :6].flatten(1)) - x[0, :6].flatten(1).cov(correction=0),
    "cross": lambda x: torch.cat([torch.cross(x[:, :3], x[:, 3:6], dim=1), x[:, 3:]], 1),
    "cumprod": lambda x: (x * 0.1 + 1).cumprod(1),
    "deg2rad": torch.deg2rad,
    "diag_embed": lambda x: x + torch.diag_embed(x[..., 0]),
    "diagonal": lambda x: x + x.diagonal(dim1=2, dim2=3)[..., None],
    "diff": lambda x: F.pad(x.diff(dim=3), (0, 1)) + torch.diff(x, n=2, dim=2, append=x[:, :, :2]),
    "dist": lambda x: x * torch.dist(x[0, 0], x[0, 1]),
    "dsplit": lambda x: torch.cat(torch.dsplit(x, 2)[::-1], 2),
    "dstack": lambda x: torch.dstack([x[:, :, 3:], x[:, :, :3]]),
    "einsum": lambda x: (
        torch.einsum("oc, ...chw -> ...ohw", torch.ones(8, 8).tril() * 0.1, x)
        + torch.einsum("bchw,bc,cd->bdhw", x, x.mean((2, 3)), torch.eye(8))
        + torch.einsum("...C,Cd", x.permute(0, 2, 3, 1), torch.eye(8)).permute(0, 3, 1, 2)
        + torch.einsum("bhwc,bdhw", x.permute(0, 2, 3, 1), x)[None, :, :, None].mean(2, keepdim=True)
    ),
    "erfc": torch.erfc,
    "fft_fftshift": lambda x: torch.fft.fftshift(x, dim=(2, 3)) - torch.fft.ifftshift(x, dim=3),
    "fliplr": lambda x: x + torch.fliplr(x[0, 0]),
    "flipud": lambda x: x + torch.flipud(x[0, 0]),
    "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "fmin": lambda x: torch.fmin(x, x.flip(1)),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "gradient": lambda x: torch.gradient(x, dim=(2, 3))[0] + torch.gradient(x, spacing=0.5, dim=3)[0],
    "hamming_window": lambda x: x * torch.hamming_window(6) + x * torch.hamming_window(6, periodic=False)[:, None],
    "hann_window": lambda x: x * torch.hann_window(6) + x * torch.hann_window(6, False)[:, None],
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "heaviside": lambda x: x * torch.heaviside(x, torch.tensor(0.5)),
    "histc": lambda x: x + torch.histc(x.sigmoid(), 6, 0.2, 0.9) / 50 + x.histc(6) / 50,
    "hsplit": lambda x: torch.cat(torch.hsplit(x, [2, 5])[::-1], 1),
    "hstack": lambda x: torch.hstack([x[:, 4:], x[:, :4]]),
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "inner": lambda x: torch.inner(x, x[0, 0]) + torch.inner(x, x[0, 0, 0])[..., None],
    "isclose": lambda x: x * torch.isclose(x, x.round(), atol=0.2),
    "kron": lambda x: torch.kron(x[:, :, ::2, ::2], torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    "isfinite": lambda x: torch.where(x.isfinite(), x, 0.0) + torch.where(torch.isinf(x), 0.0, x),
    "kthvalue": lambda x: x - x.kthvalue(2, dim=1, keepdim=True)[0],
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(2)),
    "linalg_det": lambda x: x * torch.linalg.det(x[:, :1, :3, :3])[..., None, None],
    "linalg_cholesky": lambda x: torch.linalg.cholesky(_gram(x)),
    "linalg_inv": lambda x: (
        torch.linalg.inv(_system(x)) + F.pad(torch.linalg.inv(x[:, :, :2, :2] * 0.1 + torch.eye(2)), (0, 4, 0, 4))
    ),
    "linalg_lstsq": lambda x: x + F.pad(torch.linalg.lstsq(_system(x)[..., :4], x).solution, (0, 0, 0, 2)),
    "inverse": lambda x: (
        x
        + F.pad((x[:, :, :3, :3] * 0.1 + torch.eye(3)).inverse(), (0, 3, 0, 3))
        + F.pad((x[0, 0, :3, :3] * 0.1 + torch.eye(3)).inverse(), (0, 3, 0, 3))
    ),
    "linalg_matrix_power": lambda x: torch.linalg.matrix_power(x * 0.3, 3),
    "linalg_multi_dot": lambda x: x + torch.linalg.multi_dot([x[0, 0], x[0, 1], x[0, 2]]),
    "linalg_pinv": lambda x: torch.linalg.pinv(_system(x)) + F.pad(_system(x)[..., :4, :].pinverse(), (0, 2)),
    "linalg_solve": lambda x: (
        torch.linalg.solve(_system(x), x)
        + torch.linalg.solve(_system(x), x[..., 0])[..., None]
        + torch.linalg.solve(_system(x), x, left=False)
        + F.pad(torch.linalg.solve(x[..., :3, :3] * 0.1 + torch.eye(3), x[..., :3, :]), (0, 0, 0, 3))
    ),
    "linalg_solve_triangular": lambda x: x + torch.linalg.solve_triangular(_gram(x).triu(), x, upper=True),
    "log_sigmoid": F.logsigmoid,
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "logit": lambda x: torch.logit(x.sigmoid(), 1e-3) + x.sigmoid().logit(),
    "matmul": lambda x: x * torch.matmul(x, x[0, 0, 0])[..., None] + torch.matmul(x[0, 0, 0], x)[..., None],
    "matrix_power": lambda x: x.matrix_power(2),
    "max_unpool2d": lambda x: _unpooled(x.relu(), 2) + _unpooled(x, (3, 2)),  # zeros are equal
    "max": lambda x: x + x.permute(0, 2, 3, 1).max() + x.max(dim=1, keepdim=True).values + torch.max(x, -x),
    "mean": lambda x: x + x.permute(0, 2, 3, 1).mean() + x.mean(1, keepdim=True),
    "median": lambda x: x - x.median(1, keepdim=True)[0] + x[..., ::2].median(dim=-1).values[..., None] + x.median(),
    "msort": lambda x: x + torch.msort(x[0]),
    "min": lambda x: x * x.permute(0, 2, 3, 1).min() + torch.min(x, -x),
    "pairwise_distance": lambda x: x + F.pairwise_distance(x, x.flip(1), keepdim=True),
    "prod": lambda x: x + x.prod(1, keepdim=True) + torch.prod(x, -1)[..., None],
    "quantile": lambda x: (
        x - torch.quantile(x, 0.3, dim=1, keepdim=True) + x.quantile(1.0) - x.quantile(0.5, 2)[..., None]
    ),
    "rad2deg": torch.rad2deg,
    "ravel": lambda x: x.ravel().view(x.shape).flip(1),
    "rot90": lambda x: x.rot90(1, (2, 3)) + 2 * torch.rot90(x, -1, (2, 3)) + 3 * torch.rot90(x, 2, [3, 2]),
    "round": lambda x: torch.round(x, decimals=1) + x.round(decimals=-1),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.5),
    "scaled_dot_product_attention": _attended,
    "searchsorted": lambda x: (
        x + torch.searchsorted(torch.tensor(_BOUNDS), x).float() + torch.searchsorted(x.cumsum(-1).sort(-1)[0], x)
    ),
    "sgn": lambda x: x * torch.sgn(x),
    "sinc": torch.sinc,
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "stack": lambda x: x * torch.stack([x.mean(), x.max(), x.min()]).sum(),
    "std": lambda x: x * x.std() + x * torch.std(x, False),
    "std_mean": lambda x: x - sum(torch.std_mean(x, dim=1, keepdim=True)),
    "sub": lambda x: torch.sub(x, x.flip(1), alpha=0.5) + torch.subtract(x, 2, alpha=0.5),
    "take_along_dim": lambda x: torch.take_along_dim(x, x[:1].argsort(1), 1),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 3, 1)[::-1] + x.tensor_split((1, 4), dim=1)[1:2], 1)[
        :, :8
    ],
    "tensordot": lambda x: torch.tensordot(x, torch.ones(6, 4, 6), dims=([2, 3], [2, 0])).mean(2)[..., None, None] + x,
    "trunc": lambda x: x - torch.trunc(x * 3),
    "var": lambda x: x * x.var() + x * torch.var(x, correction=0),
    "vstack": lambda x: torch.vstack([x, x])[-1:] + x,
    "xlogy": lambda x: torch.xlogy(x.relu(), x.abs() + 1) + torch.xlogy(x, 2.0),
}


@pytest.fixture
def values() -> Tensor:
    """(2, 8, 6, 6), normal."""
    return torch.randn(2, 8, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))


class Seen(TorchFunctionMode):
    """Notes the names of what runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_numbers_stay_and_the_function_is_gone(name: str, values: Tensor) -> None:
    function = CASES[name]
    with Seen() as plain:
        expected = function(values)
    with Seen() as seen, Portable():
        got = function(values)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == values.shape
    gone = plain.names - seen.names
    stays = name in _STAY
    assert name in gone or stays, (plain.names, seen.names)


def test_places_of_a_constant_index(values: Tensor) -> None:
    index, source = torch.tensor([5, 0, 5]), values[:, 1:4]
    for function in (
        lambda x: x.index_add(1, index, source, alpha=2),
        lambda x: x.index_copy(1, index[:2], source[:, :2]),
        lambda x: torch.index_fill(x, 1, index, 0.5),
    ):
        with Seen() as seen, Portable():
            got = function(values)
        torch.testing.assert_close(got, function(values))
        assert not [name for name in seen.names if name.startswith("index_")]


def test_added_places_read_as_many_values_as_the_index_has(values: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(1, x.argmax(1, keepdim=True), x)

    with Portable():
        got = function(values)
    torch.testing.assert_close(got, function(values))


#: Systems of equations, hundreds of operations each: a smaller one goes to every target.
_SYSTEMS = frozenset(
    (
        "cholesky_solve",
        "inverse",
        "linalg_inv",
        "linalg_lstsq",
        "linalg_pinv",
        "linalg_solve",
        "linalg_solve_triangular",
    )
)


def _solved(x: Tensor) -> Tensor:
    """Solve four equations with six right sides."""
    return x + F.pad(torch.linalg.solve(_system(x)[..., :4, 2:], x[..., :4, :]), (0, 0, 0, 2))


_TAKEN = [_solved, *(function for name, function in CASES.items() if name not in _SYSTEMS)]


class All(nn.Module):
    """The functions beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(8 * len(_TAKEN), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(F.adaptive_avg_pool2d(x, _SIDE))) + 0.01
        found = [torch.tanh(function(y)) for function in _TAKEN]
        inverse = 1 / (y.abs() + 0.01)  # an inverse in Core ML adds 0.0001 below the line
        return F.interpolate(self.mix(torch.cat(found, 1)) + inverse[:, :3], size=x.shape[2:])


def test_every_target_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_targets(save_own(All, tmp_path, monkeypatch), tmp_path)
