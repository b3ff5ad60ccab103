"""Lists of published tensor names and shapes, as recorded in ``models/state_dicts``."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "models" / "state_dicts"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def recorded(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the factory arguments and {tensor name: shape} of a recorded list, ``{a..b}`` standing for a range."""
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = {}
    for template, shape in content["tensors"].items():
        pieces = _RANGE.split(template)
        ranges = [range(int(a), int(b) + 1) for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
        for numbers in product(*ranges):
            middle = [f"{number}{text}" for number, text in zip(numbers, pieces[3::3], strict=True)]
            tensors["".join([pieces[0], *middle])] = tuple(shape)
    return content["kwargs"], tensors
