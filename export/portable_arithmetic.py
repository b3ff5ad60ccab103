"""Arithmetic and reductions that some target lacks, in operations that all of them have.

Values are of real numbers: what PyTorch promises of NaN and of infinities alone is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.return_types import aminmax, kthvalue, median

from export.einsums import einsum

_UNROLLED = 64  #: Steps of a running product that are written one after the other.
_BY_PRODUCT = 25  #: Points from which torch takes distances through one product.


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _towards_zero(x: Tensor) -> Tensor:
    return torch.where(x < 0, torch.ceil(x), torch.floor(x))


def _round(x: Tensor, *, decimals: int = 0) -> Any:
    return NotImplemented if decimals == 0 else torch.round(x * 10.0**decimals) / 10.0**decimals


def _fmod(x: Tensor, other: Any) -> Any:
    return x - _towards_zero(x / other) * other if x.is_floating_point() else NotImplemented


def _add_product(x: Tensor, one: Tensor, other: Tensor, *, value: float = 1) -> Tensor:
    return x + one * other * value


def _add_quotient(x: Tensor, one: Tensor, other: Tensor, *, value: float = 1) -> Tensor:
    return x + one / other * value


def _subtract(x: Any, other: Any, *, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else x - other * alpha


def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, torch.where(x < 0, 0.0, values))


def _sinc(x: Tensor) -> Tensor:
    angle = torch.where(x == 0, 1.0, x) * math.pi
    return torch.where(x == 0, 1.0, torch.sin(angle) / angle)


def _acosh(x: Tensor) -> Tensor:
    return torch.log(x + torch.sqrt(x * x - 1))


def _log_sigmoid(x: Tensor) -> Tensor:
    return -functional.softplus(-x)


def _erfc(x: Tensor) -> Tensor:
    return 1 - torch.erf(x)


def _asinh(x: Tensor) -> Tensor:
    size = x.abs()
    return torch.sign(x) * torch.log(size + torch.sqrt(size * size + 1))


def angle(y: Tensor, x: Tensor) -> Tensor:
    """``atan2``; coremltools has 0 for negative ``x`` without ``y``, the ONNX exporter no number for the origin."""
    slope = torch.atan(y / torch.where(x == 0, 1.0, x))
    turned = slope + torch.where(y < 0, -math.pi, math.pi)
    return torch.where(x == 0, torch.sign(y) * (math.pi / 2), torch.where(x < 0, turned, slope))


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


def _x_log_y(x: Tensor, y: Any) -> Any:
    if not isinstance(y, Tensor):
        return x * math.log(y) if y > 0 else NotImplemented
    return torch.where(x == 0, 0.0, x * torch.log(torch.where(x == 0, 1.0, y)))


def _log_add_exp(x: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(x, other) + torch.log1p(torch.exp(-(x - other).abs()))


def _copy_sign(x: Tensor, other: Any) -> Any:
    if _is_number(other):
        return x.abs() * math.copysign(1.0, other)
    return x.abs() * torch.where(other < 0, -1.0, 1.0)


def _celu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return functional.relu(x) + alpha * (torch.exp(x.clamp(max=0.0) / alpha) - 1)


def _soft_shrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return x - x.clamp(-float(lambd), float(lambd))


def _hard_shrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where(x.abs() > lambd, x, 0.0)


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False) -> Any:
    return NotImplemented if training else functional.leaky_relu(x, (lower + upper) / 2)


def _without_drops(x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    return NotImplemented if training else x


def _of_bools(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """``|`` and ``^`` of masks, which coremltools only knows as functions."""

    def run(x: Any, other: Any) -> Any:
        masks = all(isinstance(value, Tensor) and value.dtype == torch.bool for value in (x, other))
        return function(x, other) if masks else NotImplemented

    return run


def _to_type(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Bytes of real numbers in more bits: TensorRT has bytes at the ends of a network alone."""
    wanted = any(value is torch.uint8 for value in (*args, *kwargs.values()))
    return x.to(torch.int32) if wanted and x.is_floating_point() else NotImplemented


def _of_all(spread: Callable[..., Tensor]) -> Callable[..., Any]:
    """Variance or deviation of all values: coremltools divides by their number, not by one less."""

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dim") is not None or (args and not isinstance(args[0], bool) and args[0] is not None):
            return NotImplemented
        named = {name: value for name, value in kwargs.items() if name in ("unbiased", "correction")}
        if args and isinstance(args[0], bool):
            named["unbiased"] = args[0]
        return NotImplemented if kwargs.get("keepdim") else spread(x.flatten(), 0, **named)

    return run


def _along_all(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """Name the axes where all are meant: behind a transpose coremltools looks for them."""

    def run(x: Any, *args: Any, dim: Any = None, **kwargs: Any) -> Any:
        if (
            args
            or dim is not None
            or not isinstance(x, Tensor)
            or not x.ndim
            or not kwargs.keys() <= {"keepdim", "dtype"}
        ):
            return NotImplemented
        return reduce(x, tuple(range(x.ndim)), **kwargs)

    return run


def _is_finite(x: Tensor) -> Any:
    return x.abs() <= torch.finfo(x.dtype).max if x.is_floating_point() else NotImplemented


def _window(whole: float) -> Callable[..., Any]:
    """Raised cosine; ONNX has other factors of the Hamming window."""

    def run(count: int, periodic: bool = True, **given: Any) -> Tensor:
        steps = torch.arange(count, dtype=given.get("dtype") or torch.float32, device=given.get("device"))
        return whole - (1 - whole) * torch.cos(steps * (2 * math.pi / (count if periodic else max(count - 1, 1))))

    return run


def _both(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Variance or deviation, and the mean."""

    def run(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        named = {name: kwargs[name] for name in ("dim", "keepdim") if kwargs.get(name) is not None}
        dims = args[:1] if args and not isinstance(args[0], bool) else ()
        return spread(x, *args, **kwargs), torch.mean(x, *dims, **named)

    return run


def _extremes(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = tuple(range(x.ndim)) if dim is None else dim
    return aminmax((x.amin(dims, keepdim), x.amax(dims, keepdim)))


def _ordered(x: Tensor, place: int, dim: int, last: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Values and places of those of the order ``place`` to ``last`` along ``dim``, from the nearer end: fewer to sort.

    TensorRT sorts 3840 values and no more.
    """
    count, last = int(x.shape[dim]), place if last is None else last
    if last < count - 1 - place:
        values, places = x.topk(last + 1, dim, largest=False)
        found = range(place, last + 1)
    else:
        values, places = x.topk(count - place, dim)
        found = range(count - 1 - place, count - 2 - last, -1)
    return [(values.select(dim, at), places.select(dim, at)) for at in found]


def _median(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower one of the middle, as torch has it."""
    if dim is None:
        return _ordered(x.flatten(), (x.numel() - 1) // 2, 0)[0][0]
    return median(_kth(x, (int(x.shape[dim]) - 1) // 2, dim, keepdim))


def _kth(x: Tensor, place: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    ((values, places),) = _ordered(x, place, dim)
    return (values.unsqueeze(dim), places.unsqueeze(dim)) if keepdim else (values, places)


def _kth_value(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return kthvalue(_kth(x, k - 1, dim, keepdim))


def _quantile(
    x: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Any:
    """Between two neighbours in the order, for shares that are numbers."""
    if not _is_number(q) or interpolation != "linear":
        return NotImplemented
    flat, axis = (x.flatten(), 0) if dim is None else (x, dim)
    share = q * (int(flat.shape[axis]) - 1)
    place = math.floor(share)
    found = _ordered(flat, place, axis, math.ceil(share))
    value, above = found[0][0], found[-1][0]
    if share > place:
        value = value + (above - value) * (share - place)
    if not keepdim:
        return value
    return value.reshape((1,) * x.ndim) if dim is None else value.unsqueeze(dim)


def _running_product(x: Tensor, dim: int) -> Any:
    if int(x.shape[dim]) > _UNROLLED:
        return NotImplemented
    products: list[Tensor] = []
    for part in x.split(1, dim):
        products.append(products[-1] * part if products else part)
    return torch.cat(products, dim)


def _product(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(dim, int) or int(x.shape[dim]) > _UNROLLED or not x.is_floating_point():
        return NotImplemented
    product, *rest = x.split(1, dim)
    for part in rest:
        product = product * part
    return product if keepdim else product.squeeze(dim)


def _count_nonzero(x: Tensor, dim: Any = None) -> Tensor:
    nonzero = (x != 0).long()
    return nonzero.sum() if dim is None else nonzero.sum(dim)


def _differences(
    x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Any:
    x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
    for _ in range(n):
        count = int(x.shape[dim]) - 1
        x = x.narrow(dim, 1, count) - x.narrow(dim, 0, count)
    return x


def _distances(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Any:
    """Euclidean distances; of many points through one product, as torch takes them."""
    if p != 2:
        return NotImplemented
    if max(int(x.shape[-2]), int(y.shape[-2])) <= _BY_PRODUCT:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * torch.matmul(x, y.transpose(-1, -2))).clamp(min=0.0).sqrt()


def _pair_distances(x: Tensor, y: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(x - y + eps, p, -1, keepdim)


def _histogram(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """Count the values of each of equal bins; between the least and the largest value where there are no bounds."""
    low, high = (x.min(), x.max()) if min == max else (min, max)
    flat = x.flatten()
    place = torch.floor((flat - low) / (high - low) * bins).clamp(0.0, bins - 1.0)
    inside = ((flat >= low) & (flat <= high)).to(x.dtype)
    return ((place[:, None] == torch.arange(bins, dtype=x.dtype)).to(x.dtype) * inside[:, None]).sum(0)


def _gradient(x: Tensor, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> Any:
    """Central differences, one-sided ones at the borders."""
    if not _is_number(spacing) or edge_order != 1:
        return NotImplemented
    axes = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
    found = []
    for axis in axes:
        count = int(x.shape[axis])
        steps = x.narrow(axis, 1, count - 1) - x.narrow(axis, 0, count - 1)
        first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, count - 2, 1)
        middle = (x.narrow(axis, 2, count - 2) - x.narrow(axis, 0, count - 2)) / 2
        found.append(torch.cat([first, middle, last], axis) / spacing)
    return tuple(found)


ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "__or__": _of_bools(torch.logical_or),
    "__xor__": _of_bools(torch.logical_xor),
    "acosh": _acosh,
    "addcdiv": _add_quotient,
    "addcmul": _add_product,
    "alpha_dropout": _without_drops,
    "addbmm": lambda x, one, other, *, beta=1, alpha=1: beta * x + alpha * torch.matmul(one, other).sum(0),
    "aminmax": _extremes,
    "asinh": _asinh,
    "arccosh": _acosh,
    "arcsinh": _asinh,
    "arctan2": angle,
    "atan2": angle,
    "bitwise_or": _of_bools(torch.logical_or),
    "bitwise_xor": _of_bools(torch.logical_xor),
    "byte": lambda x: _to_type(x, torch.uint8),
    "cdist": _distances,
    "celu": _celu,
    "copysign": _copy_sign,
    "count_nonzero": _count_nonzero,
    "cumprod": _running_product,
    "deg2rad": lambda x: x * (math.pi / 180),
    "diff": _differences,
    "einsum": einsum,
    "dist": lambda x, other, p=2: torch.linalg.vector_norm(x - other, p),
    "erfc": _erfc,
    "feature_alpha_dropout": _without_drops,
    "fix": _towards_zero,
    "fmax": torch.maximum,
    "fmin": torch.minimum,
    "fmod": _fmod,
    "hamming_window": _window(0.54),
    "hann_window": _window(0.5),
    "hardshrink": _hard_shrink,
    "gradient": _gradient,
    "heaviside": _heaviside,
    "histc": _histogram,
    "hypot": lambda x, other: torch.sqrt(x * x + other * other),
    "isclose": lambda x, other, rtol=1e-5, atol=1e-8, equal_nan=False: (x - other).abs() <= atol + rtol * other.abs(),
    "isfinite": _is_finite,
    "isinf": lambda x: x.abs() > torch.finfo(x.dtype).max if x.is_floating_point() else NotImplemented,
    "kthvalue": _kth_value,
    "ldexp": lambda x, other: x * torch.exp2(other.to(x.dtype)),
    "lerp": lambda start, end, weight: start + (end - start) * weight,
    "log_sigmoid": _log_sigmoid,
    "logaddexp": _log_add_exp,
    "logit": _logit,
    "logsigmoid": _log_sigmoid,
    "max": _along_all(torch.amax),
    "mean": _along_all(torch.mean),
    "median": _median,
    "min": _along_all(torch.amin),
    "pairwise_distance": _pair_distances,
    "positive": lambda x: x,
    "__pos__": lambda x: x,
    "prod": _product,
    "quantile": _quantile,
    "rad2deg": lambda x: x * (180 / math.pi),
    "round": _round,
    "rrelu": _rrelu,
    "sgn": torch.sign,
    "sinc": _sinc,
    "softshrink": _soft_shrink,
    "special_erfc": _erfc,
    "special_logit": _logit,
    "special_sinc": _sinc,
    "special_xlogy": _x_log_y,
    "std": _of_all(torch.std),
    "std_mean": _both(torch.std),
    "sub": _subtract,
    "sum": _along_all(torch.sum),
    "subtract": _subtract,
    "to": _to_type,
    "trunc": _towards_zero,
    "type": _to_type,
    "var": _of_all(torch.var),
    "var_mean": _both(torch.var),
    "xlogy": _x_log_y,
}
"""By name, a function or a method of tensors. A rewrite returns NotImplemented for what needs none, or has none."""
