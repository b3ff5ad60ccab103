"""A tunable network fixed at one level: the plain network that computes the same, without what the level moved.

A network that can be fixed has a method ``at_level``; nothing here or in an exporter knows one by its class.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from models.errors import UnsupportedError, explain


class Fixed(NamedTuple):
    """A plain network.

    Attributes:
        net: The network, in eval mode.
        model: Its registry name, or ``package.module:factory``.
        kwargs: Its factory arguments.
    """

    net: nn.Module
    model: str
    kwargs: dict[str, Any]


@runtime_checkable
class CanBeFixed(Protocol):
    """A network whose level can be fixed."""

    def at_level(self, level: float) -> Fixed:
        """Return the plain network that computes what this one does at ``level``, a value of its control.

        Raises:
            UnsupportedError: There is none.
        """


def fix_level(net: nn.Module, level: float) -> Fixed:
    """Return the plain network that computes what ``net`` does at ``level``, a value of its control.

    Raises:
        UnsupportedError: The network has no method ``at_level``, or not for what it was built with.
    """
    if not isinstance(net, CanBeFixed):
        fix = "export it with the level as an input, or give the network this method"
        got = type(net).__name__
        raise UnsupportedError(explain("fixed level", expected="a network with at_level(level)", got=got, fix=fix))
    return net.at_level(level)
