"""MIL operations that work on one element, or one pair of elements, at a time: arithmetic and activations.

Source: MIL reference, ``iOS15/elementwise_unary.py``, ``elementwise_binary.py``, ``activation.py`` and their later
versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from export.mil.call import Call, Result

_CAST = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "bool": torch.bool,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _logical(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.raw("x").bool(), call.raw("y").bool())


def _with_alpha(function: Callable[[Tensor, float], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), call.number("alpha", 1.0))


def _with_alpha_beta(function: Callable[[Tensor, float, float], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), call.number("alpha", 1.0), call.number("beta", 0.0))


def _with_epsilon(function: Callable[[Tensor], Tensor], default: float) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x") + call.number("epsilon", default))


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y) if x.is_floating_point() else torch.pow(x.float(), y.float())


def _cast(call: Call) -> Tensor:
    return call.tensor("x").to(_CAST[call.text("dtype")])


def _clip(call: Call) -> Tensor:
    return call.tensor("x").clamp(call.number("alpha", -math.inf), call.number("beta", math.inf))


def _select(call: Call) -> Tensor:
    return torch.where(call.raw("cond").bool(), call.tensor("a"), call.tensor("b"))


def _gelu(call: Call) -> Tensor:
    x, mode = call.tensor("x"), call.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _channels(value: Tensor, rank: int) -> Tensor:
    return value.reshape(1, -1, *[1] * (rank - 2))


def _prelu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x > 0, x, x * _channels(call.tensor("alpha"), x.ndim))


def _softplus_parametric(call: Call) -> Tensor:
    x = call.tensor("x")
    alpha, beta = _channels(call.tensor("alpha"), x.ndim), _channels(call.tensor("beta"), x.ndim)
    return alpha * F.softplus(x * beta, threshold=math.inf)


def _clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).clamp_max(beta)


ELEMENTWISE: Mapping[str, Callable[[Call], Result]] = {
    # one input
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "identity": lambda call: call.raw("x"),
    "inverse": _with_epsilon(torch.reciprocal, 1e-4),
    "log": _with_epsilon(torch.log, 1e-45),
    "logical_not": lambda call: ~call.raw("x").bool(),
    "round": _unary(torch.round),
    "rsqrt": _with_epsilon(torch.rsqrt, 1e-12),
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "cast": _cast,
    "clip": _clip,
    "threshold": _with_alpha(lambda x, alpha: x.clamp_min(alpha)),
    # two inputs, broadcast
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.div),
    "floor_div": _binary(torch.floor_divide),
    "mod": _binary(torch.remainder),
    "pow": _binary(_power),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _logical(torch.logical_and),
    "logical_or": _logical(torch.logical_or),
    "logical_xor": _logical(torch.logical_xor),
    "select": _select,
    # activations
    "clamped_relu": _with_alpha_beta(_clamped_relu),
    "elu": _with_alpha(lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x.clamp_max(0)))),
    "gelu": _gelu,
    "leaky_relu": _with_alpha(lambda x, alpha: torch.where(x >= 0, x, alpha * x)),
    "linear_activation": _with_alpha_beta(lambda x, alpha, beta: alpha * x + beta),
    "prelu": _prelu,
    "relu": _unary(torch.relu),
    "relu6": _unary(lambda x: x.clamp(0, 6)),
    "scaled_tanh": _with_alpha_beta(lambda x, alpha, beta: alpha * torch.tanh(beta * x)),
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": _with_alpha_beta(lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1)),
    "silu": _unary(F.silu),
    "softmax": lambda call: torch.softmax(call.tensor("x"), dim=call.integer("axis", -1)),
    "softplus": _unary(lambda x: F.softplus(x, threshold=math.inf)),
    "softplus_parametric": _softplus_parametric,
    "softsign": _unary(F.softsign),
    "thresholded_relu": _with_alpha(lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x))),
}
"""Element by element."""
