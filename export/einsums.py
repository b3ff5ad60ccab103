"""Einstein sums in the one form that every converter reads: two tensors, every index by its own letter, a result."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def einsum(equation: Any, *given: Any) -> Any:
    """Compute ``torch.einsum(equation, *given)``; NotImplemented where it is written in that form.

    coremltools takes the dots of ``...ij`` for letters (another result, or an error), knows no result that is left out
    (``ij,jk``), and no third tensor; TensorRT reads small letters alone.
    """
    operands = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    if not isinstance(equation, str) or not all(isinstance(value, Tensor) for value in operands):
        return NotImplemented  # lists of axes; complex values
    terms, result = _spelled_out(equation, [value.ndim for value in operands])
    if len(operands) < 3 and f"{','.join(terms)}->{result}" == equation:
        return NotImplemented
    while len(operands) > 2:
        needed = set(result).union(*terms[2:])
        kept = "".join(dict.fromkeys(letter for letter in terms[0] + terms[1] if letter in needed))
        operands[:2] = [torch.einsum(f"{terms[0]},{terms[1]}->{kept}", *operands[:2])]
        terms[:2] = [kept]
    return torch.einsum(f"{','.join(terms)}->{result}", *operands)


def _spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the indices of each tensor and of the result, with letters for dots and for what is left out."""
    equation = equation.replace(" ", "")
    if not equation.islower():  # TensorRT reads no capitals
        letters = "".join(dict.fromkeys(filter(str.isalpha, equation)))
        equation = equation.translate(str.maketrans(letters, string.ascii_lowercase[: len(letters)]))
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    widths = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    free = [letter for letter in string.ascii_lowercase if letter not in equation]
    dots = "".join(free[: max(widths)])
    terms = [term.replace("...", dots[len(dots) - width :]) for term, width in zip(terms, widths, strict=True)]
    if arrow:
        return terms, right.replace("...", dots)
    letters = "".join(terms)
    return terms, dots + "".join(sorted(one for one in set(letters) - set(dots) if letters.count(one) == 1))
