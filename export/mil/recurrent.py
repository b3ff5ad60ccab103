"""MIL operations that go through a sequence step by step.

Source: MIL reference, ``iOS15/recurrent.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.mil.call import Call, Result

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
}


def _activation(call: Call, name: str, default: str) -> Callable[[Tensor], Tensor]:
    kind = call.text(name, default).lower()
    if kind not in _ACTIVATIONS:
        raise call.unsupported(f"{name} {kind!r}", expected=", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[kind]


def _one_way(call: Call, x: Tensor, h: Tensor, c: Tensor, suffix: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the hidden states of all steps of ``x`` (s, b, I), and the last hidden and cell state (b, H)."""
    gate, cell = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "cell_activation", "tanh")
    end, bias = _activation(call, "activation", "tanh"), call.maybe(f"bias{suffix}")
    to_gates, again = call.tensor(f"weight_ih{suffix}").T, call.tensor(f"weight_hh{suffix}").T
    given = x @ to_gates if bias is None else x @ to_gates + bias
    states = []
    for step in given:
        i, f, o, z = (step + h @ again).chunk(4, dim=-1)
        c = gate(f) * c + gate(i) * cell(z)
        h = gate(o) * end(c)
        states.append(h)
    return states, h, c


def _lstm(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    direction = call.text("direction", "forward")
    if call.has("peephole") or call.has("peephole_back") or call.has("clip"):
        raise call.unsupported("peephole or clip", expected="a plain LSTM")
    x, ways = call.tensor("x"), {"forward": [""], "reverse": [""]}.get(direction, ["", "_back"])
    starts = [call.tensor(name).chunk(len(ways), dim=-1) for name in ("initial_h", "initial_c")]
    found = []
    for place, suffix in enumerate(ways):
        backwards = suffix != "" or direction == "reverse"
        states, h, c = _one_way(call, x.flip(0) if backwards else x, starts[0][place], starts[1][place], suffix)
        found.append((torch.stack(states[::-1] if backwards else states), h, c))
    whole, hidden, cell = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return whole if call.flag("output_sequence") else hidden[None], hidden, cell


RECURRENT: Mapping[str, Callable[[Call], Result]] = {"lstm": _lstm}
"""Step by step."""
