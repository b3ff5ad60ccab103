"""Networks of a user's own: their factory in a module that lives as long as the test."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models.artifact import Artifact, save_network

_MODULE = "own_networks_of_a_test"


def save_own(
    build: Callable[[], nn.Module], folder: Path, monkeypatch: pytest.MonkeyPatch, *, task: str = "image"
) -> Artifact:
    """Save in ``folder`` what ``build`` returns, in eval mode, weights of seed 0, as ``module:make`` of ``task``."""
    module = types.ModuleType(_MODULE)
    module.make = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, _MODULE, module)
    torch.manual_seed(0)
    return save_network(build().eval(), folder / "own.safetensors", model=f"{_MODULE}:make", task=task)
