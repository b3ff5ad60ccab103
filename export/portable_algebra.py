"""Products and systems of small matrices that some target lacks, in operations that all of them have.

No target has a solver. A system is eliminated step by step, rows exchanged as LAPACK does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.return_types import linalg_lstsq  # type: ignore[attr-defined]

_COFACTORS = 3
_ELIMINATED = 32  #: Rows of a system that is written out, a dozen operations each.


def _cross(x: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    (a, b, c), (d, e, f) = x.split(1, dim), other.split(1, dim)
    return torch.cat([b * f - c * e, c * d - a * f, a * e - b * d], dim)


def _chain(matrices: Sequence[Tensor]) -> Tensor:
    product, *rest = matrices
    for matrix in rest:
        product = torch.matmul(product, matrix)
    return product


def _matrix_product(x: Tensor, other: Tensor) -> Any:
    """A vector times many matrices: coremltools takes those of two dimensions alone."""
    if other.ndim == 1 and x.ndim > 1:
        return torch.matmul(x, other[:, None])[..., 0]
    if x.ndim == 1 and other.ndim > 1:
        return torch.matmul(x[None], other)[..., 0, :]
    return NotImplemented


def _inner(x: Tensor, other: Tensor) -> Any:
    """Products over the last axis of both."""
    if min(x.ndim, other.ndim) < 1 or max(x.ndim, other.ndim) < 2:
        return NotImplemented
    return _tensor_product(x, other, ([-1], [-1]))


def _power(x: Tensor, n: int) -> Any:
    return _chain([x] * n) if n > 0 else NotImplemented


def _bilinear(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each output is ``x @ weight[o] @ other``."""
    half = torch.matmul(x.unsqueeze(-2).unsqueeze(-2), weight).squeeze(-2)
    answer = torch.matmul(half, other.unsqueeze(-1)).squeeze(-1)
    return answer if bias is None else answer + bias


def _tensor_product(a: Tensor, b: Tensor, dims: Any = 2, out: Tensor | None = None) -> Any:
    """Products over the axes ``dims`` of both as one product of matrices."""
    if isinstance(dims, int):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    if isinstance(dims, Tensor) or out is not None:
        return NotImplemented
    ours, theirs = ([axis % x.ndim for axis in axes] for axes, x in zip(dims, (a, b), strict=True))
    kept, others = ([axis for axis in range(x.ndim) if axis not in axes] for x, axes in ((a, ours), (b, theirs)))
    shape = [int(a.shape[axis]) for axis in kept] + [int(b.shape[axis]) for axis in others]
    inner = math.prod(int(a.shape[axis]) for axis in ours)
    rows, columns = a.permute(*kept, *ours).reshape(-1, inner), b.permute(*theirs, *others).reshape(inner, -1)
    return torch.matmul(rows, columns).reshape(shape)


def _kronecker(x: Tensor, other: Tensor) -> Tensor:
    """Each value of ``x`` times the whole of ``other``."""
    ndim = max(x.ndim, other.ndim)
    ours, theirs = ([1] * (ndim - value.ndim) + [int(side) for side in value.shape] for value in (x, other))
    left = x.reshape([side for place in ours for side in (place, 1)])
    right = other.reshape([side for place in theirs for side in (1, place)])
    return (left * right).reshape([a * b for a, b in zip(ours, theirs, strict=True)])


def _cells(x: Tensor) -> list[list[Tensor]]:
    return [[x[..., row, column] for column in range(int(x.shape[-1]))] for row in range(int(x.shape[-2]))]


def _minor(cells: list[list[Tensor]], row: int, column: int) -> list[list[Tensor]]:
    return [[cell for c, cell in enumerate(line) if c != column] for r, line in enumerate(cells) if r != row]


def _determinant_of(cells: list[list[Tensor]]) -> Tensor:
    if len(cells) == 1:
        return cells[0][0]
    total = cells[0][0] * _determinant_of(_minor(cells, 0, 0))
    for column in range(1, len(cells)):
        part = cells[0][column] * _determinant_of(_minor(cells, 0, column))
        total = total + part if column % 2 == 0 else total - part
    return total


def _determinant(x: Tensor) -> Any:
    return _determinant_of(_cells(x)) if int(x.shape[-1]) <= _COFACTORS else NotImplemented


def _eliminated(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve matrix (..., K, K) @ x = right (..., K, M) by elimination with partial pivoting and back substitution.

    As exact as LAPACK; Gauss-Jordan, a little shorter, is 15 times farther off in what the solution gives back. A step
    keeps only the rows that are left: whole matrices in each step are what TensorRT builds for minutes.
    """
    rows = torch.cat([matrix, right.expand(*matrix.shape[:-2], *right.shape[-2:])], dim=-1)
    pivots: list[Tensor] = []
    for count in range(int(matrix.shape[-1]), 1, -1):
        largest = rows[..., 0].abs().argmax(-1, keepdim=True)
        taken = (torch.arange(count, device=rows.device) == largest).to(rows.dtype)[..., None]
        pivot = (taken * rows).sum(-2, keepdim=True)
        pivots.append(pivot)
        below = (rows + taken * (rows[..., :1, :] - pivot))[..., 1:, :]
        rows = below[..., 1:] - below[..., :1] / pivot[..., :1] * pivot[..., 1:]
    found = rows[..., 1:] / rows[..., :1]
    for pivot in reversed(pivots):
        end = 1 + int(found.shape[-2])
        rest = pivot[..., end:] - torch.matmul(pivot[..., 1:end], found)
        found = torch.cat([rest / pivot[..., :1], found], dim=-2)
    return found


def _identity_like(x: Tensor) -> Tensor:
    return torch.eye(int(x.shape[-1]), dtype=x.dtype, device=x.device)


def _inverse(x: Tensor) -> Any:
    """Inverse: by cofactors of a colour matrix, a homography, else by elimination."""
    side = int(x.shape[-1])
    if not 1 < side <= _ELIMINATED:
        return NotImplemented
    if side > _COFACTORS:
        return _eliminated(x, _identity_like(x))
    cells = _cells(x)
    rows = [
        torch.cat(  # of one value each: coremltools cannot stack numbers
            [(_determinant_of(_minor(cells, row, column)) * (-1) ** (row + column))[..., None] for row in range(side)],
            -1,
        )
        for column in range(side)
    ]
    return torch.stack(rows, -2) / _determinant_of(cells)[..., None, None]


def _solve(x: Tensor, other: Tensor, *, left: bool = True) -> Any:
    if not 1 < int(x.shape[-1]) <= _ELIMINATED:
        return NotImplemented
    if not left:
        answer = _solve(x.transpose(-1, -2), other.transpose(-1, -2))
        return answer if answer is NotImplemented else answer.transpose(-1, -2)
    is_vector = other.ndim == 1 or (other.ndim == x.ndim - 1 and other.shape == x.shape[:-1])
    right = other[..., None] if is_vector else other
    if right.ndim != x.ndim:
        return NotImplemented
    answer = torch.matmul(_inverse(x), right) if int(x.shape[-1]) <= _COFACTORS else _eliminated(x, right)
    return answer[..., 0] if is_vector else answer


def _cholesky(x: Tensor, *, upper: bool = False) -> Any:
    """Lower triangle L of x = L @ L.T, column by column."""
    side = int(x.shape[-1])
    if upper or side > _ELIMINATED:
        return NotImplemented
    places = torch.arange(side, device=x.device)
    columns: list[Tensor] = []
    for step in range(side):
        pivot = x[..., step, step, None].sqrt()
        column = torch.where(places >= step, x[..., step] / pivot, 0.0)
        x = x - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return torch.stack(columns, -1)


def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Any:
    turned = factor.transpose(-1, -2)
    product = torch.matmul(turned, factor) if upper else torch.matmul(factor, turned)
    return _solve(product, right)


def _solve_triangular(x: Tensor, other: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    if not left or unitriangular:
        return NotImplemented
    return _solve(torch.triu(x) if upper else torch.tril(x), other)


def _pseudo_inverse(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Of a matrix of full rank, by its normal equations; torch's way, singular values, has no equal in a target."""
    if args or kwargs or min(int(x.shape[-1]), int(x.shape[-2])) > _ELIMINATED:
        return NotImplemented
    turned = x.transpose(-1, -2)
    if int(x.shape[-2]) >= int(x.shape[-1]):
        return _solve(torch.matmul(turned, x), turned)
    return _solve(torch.matmul(x, turned), x).transpose(-1, -2)


def _least_squares(x: Tensor, other: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
    """The solution alone, of at least as many equations as unknowns, by the normal equations."""
    if int(x.shape[-2]) < int(x.shape[-1]) or other.ndim != x.ndim:
        return NotImplemented
    turned = x.transpose(-1, -2)
    solution = _solve(torch.matmul(turned, x), torch.matmul(turned, other))
    if solution is NotImplemented:
        return NotImplemented
    nothing = solution.new_zeros(0)
    return linalg_lstsq((solution, nothing, nothing.long(), nothing))


def _covariance(
    x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Any:
    """Of variables in rows."""
    if x.ndim != 2 or fweights is not None or aweights is not None:
        return NotImplemented
    centred = x - x.mean(1, keepdim=True)
    return torch.matmul(centred, centred.T) / max(int(x.shape[1]) - correction, 0)


ALGEBRA: Mapping[str, Callable[..., Any]] = {
    "__matmul__": _matrix_product,
    "adjoint": lambda x: x.transpose(-1, -2),
    "bilinear": _bilinear,
    "chain_matmul": lambda *matrices: _chain(matrices),
    "cholesky": _cholesky,
    "cholesky_solve": _cholesky_solve,
    "cov": _covariance,
    "cross": _cross,
    "det": _determinant,
    "inner": _inner,
    "inv": _inverse,
    "inverse": _inverse,
    "kron": _kronecker,
    "linalg_cholesky": _cholesky,
    "linalg_cross": _cross,
    "linalg_det": _determinant,
    "linalg_inv": _inverse,
    "linalg_matrix_power": _power,
    "linalg_lstsq": _least_squares,
    "linalg_multi_dot": _chain,
    "linalg_pinv": _pseudo_inverse,
    "linalg_solve": _solve,
    "linalg_solve_triangular": _solve_triangular,
    "matmul": _matrix_product,
    "matrix_power": _power,
    "pinverse": _pseudo_inverse,
    "tensordot": _tensor_product,
}
"""By name of the function, which is that of the method of tensors too."""
