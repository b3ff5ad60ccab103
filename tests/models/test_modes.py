"""Eval mode for a while: each module gets its own mode back."""

from __future__ import annotations

import pytest
from torch import nn

from models.modes import in_eval_mode


def test_each_module_gets_its_mode_back() -> None:
    """A copy in eval mode inside of a module that is not (the simulation of INT8) stays in eval mode."""
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with in_eval_mode(net):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in net.modules()] == [True, True, False]
