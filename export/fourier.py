"""Fourier transforms of a fixed size as products with constant matrices, complex values as two real tensors.

No target but ONNX Runtime takes complex tensors or all of the transforms. A product costs n multiply-adds a value
along an axis of n, the transform itself log n; at the sizes of pictures that is the price of a convolution.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from export.portable_arithmetic import angle
from models.errors import ExportError, explain


class Spectrum:
    """A complex tensor while a network is traced; the functions and methods of tensors take it.

    Args:
        real: Real part.
        imag: Imaginary part, the same shape.
    """

    def __init__(self, real: Tensor, imag: Tensor) -> None:
        self.real, self.imag = real, imag

    @property
    def shape(self) -> torch.Size:
        """Shape of either part."""
        return self.real.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.real.ndim

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func)).strip("_")
        given = dict(kwargs or {})
        if name in _ARITHMETIC:
            return _ARITHMETIC[name](*args, **given)
        if name in _MOVES:
            parts = [
                func(*_parts(list(args), which), **{key: _parts(value, which) for key, value in given.items()})
                for which in ("real", "imag")
            ]
            return _joined(*parts)
        fix = "compute with the real and the imaginary part"
        expected = "sums, products, abs, angle and what moves values"
        raise ExportError(explain(f"operator {name} on complex values", expected=expected, got=name, fix=fix))

    def __getattr__(self, name: str) -> Any:
        method = getattr(Tensor, name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return Spectrum(self.real[index], self.imag[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.real[index], self.imag[index] = _split(value)

    def __add__(self, other: Any) -> Spectrum:
        return _add(self, other)

    def __sub__(self, other: Any) -> Spectrum:
        return _add(self, _scaled(other, -1))

    def __rsub__(self, other: Any) -> Spectrum:
        return _add(_scaled(self, -1), other)

    def __mul__(self, other: Any) -> Spectrum:
        return _multiply(self, other)

    def __matmul__(self, other: Any) -> Spectrum:
        return _product(torch.matmul, self, other)

    def __truediv__(self, other: Any) -> Spectrum:
        return _divide(self, other)

    def __neg__(self) -> Spectrum:
        return _scaled(self, -1)

    __radd__, __rmul__ = __add__, __mul__


# ``export.origins`` sees the parts as it sees the tensors of a list.
register_pytree_node(Spectrum, lambda x: ([x.real, x.imag], None), lambda parts, _: Spectrum(*parts))


def _parts(value: Any, which: str) -> Any:
    if isinstance(value, Spectrum):
        return getattr(value, which)
    return type(value)(_parts(item, which) for item in value) if type(value) in (list, tuple) else value


def _joined(real: Any, imag: Any) -> Any:
    if isinstance(real, (list, tuple)):
        return [Spectrum(*pair) for pair in zip(real, imag, strict=True)]
    return Spectrum(real, imag)


def _split(value: Any) -> tuple[Any, Any]:
    if isinstance(value, (Spectrum, complex)) or (isinstance(value, Tensor) and value.is_complex()):
        return value.real, value.imag
    return value, 0


def _scaled(value: Any, factor: float) -> Any:
    return Spectrum(value.real * factor, value.imag * factor) if isinstance(value, Spectrum) else value * factor


def _add(one: Any, other: Any, *, alpha: float = 1) -> Spectrum:
    (a, b), (c, d) = _split(one), _split(_scaled(other, alpha))
    return Spectrum(a + c, b + d)


def _subtract(one: Any, other: Any, *, alpha: float = 1) -> Spectrum:
    return _add(one, other, alpha=-alpha)


def _multiply(one: Any, other: Any) -> Spectrum:
    return _product(operator.mul, one, other)


def _divide(one: Any, other: Any) -> Spectrum:
    c, d = _split(other)
    if isinstance(d, int):
        return _multiply(one, 1 / c)
    size = c * c + d * d
    return _multiply(one, Spectrum(c / size, -d / size))


def _product(multiply: Callable[[Any, Any], Tensor], one: Any, other: Any) -> Spectrum:
    """Multiply by a function that is linear in both."""
    (a, b), (c, d) = _split(one), _split(other)
    if isinstance(d, int):
        return Spectrum(multiply(a, c), multiply(b, c))
    if isinstance(b, int):
        return Spectrum(multiply(a, c), multiply(a, d))
    return Spectrum(multiply(a, c) - multiply(b, d), multiply(a, d) + multiply(b, c))


def _einsum(equation: str, *operands: Any) -> Spectrum:
    one, *others = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    if len(others) != 1:
        fix = "write one torch.einsum for two of them after the other"
        raise ExportError(explain("einsum on complex values", expected="two tensors", got=1 + len(others), fix=fix))
    return _product(lambda a, b: torch.einsum(equation, a, b), one, others[0])


def _abs(x: Spectrum) -> Tensor:
    return torch.sqrt(x.real * x.real + x.imag * x.imag)


_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "radd"), _add),
    **dict.fromkeys(("mul", "rmul", "multiply"), _multiply),
    **dict.fromkeys(("sub", "subtract"), _subtract),
    **dict.fromkeys(("div", "truediv", "true_divide"), _divide),
    **dict.fromkeys(("abs", "absolute"), _abs),
    **dict.fromkeys(("matmul", "bmm", "mm"), lambda one, other: _product(torch.matmul, one, other)),
    "einsum": _einsum,
    "rsub": lambda one, other: _subtract(other, one),
    "neg": lambda x: _scaled(x, -1),
    "angle": lambda x: angle(x.imag, x.real),
    "conj": lambda x: Spectrum(x.real, -x.imag),
    "real": lambda x: x.real,
    "imag": lambda x: x.imag,
    "view_as_real": lambda x: torch.stack([x.real, x.imag], dim=-1),
    "setitem": Spectrum.__setitem__,
    "is_complex": lambda x: True,
    "size": lambda x, *dim: x.real.size(*dim),
    "dim": lambda x: x.real.ndim,
}
_MOVES = frozenset(
    (
        *("reshape", "view", "permute", "transpose", "movedim", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("cat", "concat", "stack", "chunk", "split", "unbind", "narrow", "select", "index_select", "getitem"),
        *("flip", "roll", "expand", "repeat", "clone", "contiguous", "detach", "fft_fftshift", "fft_ifftshift"),
        *("sum", "mean", "cumsum", "t", "swapaxes", "pad"),
    )
)


def _factor(count: int, norm: str | None, inverse: bool) -> float:
    if norm == "ortho":
        return 1 / math.sqrt(count)
    return 1 / count if inverse == (norm in (None, "backward")) else 1.0


def _matrices(rows: int, columns: int, count: int, like: Tensor, factor: float, doubled: bool = False) -> list[Tensor]:
    """Return ``cos`` and ``sin`` of 2 pi j k / count for j below ``rows`` and k below ``columns``."""
    place = np.arange(rows)[:, None] * np.arange(columns)[None, :] % count
    weight = np.full((rows, 1), factor)
    if doubled:  # bins but the first and the middle one stand for two
        weight[1 : (count + 1) // 2] *= 2
    waves = (wave(2 * math.pi * place / count) * weight for wave in (np.cos, np.sin))
    return [torch.from_numpy(wave.astype(np.float32)).to(like.dtype) for wave in waves]


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    if axis % x.ndim == x.ndim - 1:
        return torch.matmul(x, matrix)
    if axis % x.ndim == x.ndim - 2:
        return torch.matmul(matrix.transpose(0, 1), x)
    return torch.matmul(x.transpose(axis, -1), matrix).transpose(axis, -1)


def _transform(x: Any, axis: int, count: int | None, norm: str | None, *, inverse: bool, half: bool = False) -> Any:
    """One axis; ``half``: only the bins that a real input needs."""
    count = int(count or x.shape[axis])
    rows = min(count, int(x.shape[axis]))
    x = x.narrow(axis, 0, rows)
    columns = count // 2 + 1 if half else count
    cos, sin = _matrices(rows, columns, count, x.real, _factor(count, norm, inverse))
    sin = sin if inverse else -sin
    if isinstance(x, Tensor):
        return Spectrum(_along(x, cos, axis), _along(x, sin, axis))
    real = _along(x.real, cos, axis) - _along(x.imag, sin, axis)
    return Spectrum(real, _along(x.real, sin, axis) + _along(x.imag, cos, axis))


def _to_real(x: Any, axis: int, count: int | None, norm: str | None) -> Tensor:
    """Undo the transform of a real input, from its half of the bins."""
    count = int(count or 2 * (x.shape[axis] - 1))
    rows = min(count // 2 + 1, int(x.shape[axis]))
    x = x.narrow(axis, 0, rows)
    cos, sin = _matrices(rows, count, count, x.real, _factor(count, norm, True), doubled=True)
    real = _along(x.real, cos, axis)
    return real if isinstance(x, Tensor) else real - _along(x.imag, sin, axis)


def _axes(x: Any, s: Any, dim: Any) -> list[tuple[int, int | None]]:
    if dim is None:
        dim = range(-len(s), 0) if s is not None else range(-x.ndim, 0)
    dims = [dim] if isinstance(dim, int) else list(dim)
    sizes = [None if size in (None, -1) else int(size) for size in s] if s is not None else [None] * len(dims)
    return list(zip(dims, sizes, strict=True))


def _full(inverse: bool, dim: Any, half: bool = False) -> Callable[..., Any]:
    def run(input: Any, s: Any = None, dim: Any = dim, norm: str | None = None) -> Any:
        x, axes = input, _axes(input, s, dim)
        if half:
            (axis, count), axes = axes[-1], axes[:-1]
            x = _transform(x, axis, count, norm, inverse=inverse, half=True)
        for axis, count in axes:
            x = _transform(x, axis, count, norm, inverse=inverse)
        return x

    return run


def _full_to_real(dim: Any) -> Callable[..., Tensor]:
    def run(input: Any, s: Any = None, dim: Any = dim, norm: str | None = None) -> Tensor:
        x = input
        *axes, (last, size) = _axes(input, s, dim)
        for axis, count in axes:
            x = _transform(x, axis, count, norm, inverse=True)
        return _to_real(x, last, size, norm)

    return run


def filled(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return ``torch.zeros`` or ``torch.ones`` for complex types: two parts; other types are NotImplemented."""

    def run(*sizes: Any, dtype: torch.dtype | None = None, **given: Any) -> Any:
        if dtype is None or not dtype.is_complex:
            return NotImplemented
        return Spectrum(function(*sizes, **given), torch.zeros(*sizes, **given))

    return run


def _single(run: Callable[..., Any]) -> Callable[..., Any]:
    def alone(input: Any, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
        return run(input, None if n is None else (n,), (dim,), norm)

    return alone


_LAST = (-2, -1)
_FORWARD, _INVERSE, _HALF, _REAL = _full(False, None), _full(True, None), _full(False, None, True), _full_to_real(None)
TRANSFORMS: Mapping[Any, Callable[..., Any]] = {
    torch.fft.fft: _single(_FORWARD),
    torch.fft.ifft: _single(_INVERSE),
    torch.fft.rfft: _single(_HALF),
    torch.fft.irfft: _single(_REAL),
    torch.fft.fft2: _full(False, _LAST),
    torch.fft.ifft2: _full(True, _LAST),
    torch.fft.rfft2: _full(False, _LAST, True),
    torch.fft.irfft2: _full_to_real(_LAST),
    torch.fft.fftn: _FORWARD,
    torch.fft.ifftn: _INVERSE,
    torch.fft.rfftn: _HALF,
    torch.fft.irfftn: _REAL,
    torch.complex: Spectrum,
    torch.polar: lambda abs, angle: Spectrum(abs * torch.cos(angle), abs * torch.sin(angle)),
    torch.view_as_complex: lambda x: Spectrum(*x.unbind(-1)),
}
"""By function of PyTorch."""
