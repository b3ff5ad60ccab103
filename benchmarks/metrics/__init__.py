"""Image quality: how far a picture is from the photo it should be.

Every metric takes ``preds`` and ``target``, torch (N, 3, H, W) sRGB in [0, 1], and returns one number an image, (N,).
``METRICS`` is the table of them. Functions load on first use, so that reading the table does not import torch:

``lpips(preds, target, *, net="lite", weights=None)``, ``psnr``, ``ssim``, ``ms_ssim``, ``delta_e_2000``,
``colourfulness``, and ``load_lpips(net, weights=None)``, LPIPS as a differentiable module for a loss.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from models.errors import ConfigError, UnknownNameError, explain

if TYPE_CHECKING:
    from benchmarks.metrics.colour import colourfulness as colourfulness
    from benchmarks.metrics.colour import delta_e_2000 as delta_e_2000
    from benchmarks.metrics.fidelity import ms_ssim as ms_ssim
    from benchmarks.metrics.fidelity import psnr as psnr
    from benchmarks.metrics.fidelity import ssim as ssim
    from benchmarks.metrics.lpips import LPIPS as LPIPS
    from benchmarks.metrics.lpips import load_lpips as load_lpips
    from benchmarks.metrics.lpips import lpips as lpips

LPIPS_NETS = ("lite", "squeeze", "alex", "vgg")


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: Name in reports and on the command line.
        function: ``"module:function"``.
        unit: Unit of the number; empty for a bare one.
        better: ``lower``, ``higher``, or ``equal``: closest to that of the target.
        minimum: Smallest possible value.
        maximum: Largest possible value, or None.
        smallest: Smallest height and width that it can take.
    """

    name: str
    function: str
    unit: str
    better: Literal["lower", "higher", "equal"]
    minimum: float
    maximum: float | None
    smallest: int = 1

    def load(self) -> Any:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


_ROWS = (
    Metric("lpips", "benchmarks.metrics.lpips:lpips", "", "lower", 0.0, None, smallest=32),
    Metric("psnr", "benchmarks.metrics.fidelity:psnr", "dB", "higher", 0.0, None),
    Metric("ssim", "benchmarks.metrics.fidelity:ssim", "", "higher", -1.0, 1.0, smallest=11),
    Metric("ms_ssim", "benchmarks.metrics.fidelity:ms_ssim", "", "higher", 0.0, 1.0, smallest=176),
    Metric("delta_e", "benchmarks.metrics.colour:delta_e_2000", "dE00", "lower", 0.0, None),
    Metric("colourfulness", "benchmarks.metrics.colour:colourfulness", "", "equal", 0.0, 1.0),
)


def _table(rows: tuple[Metric, ...]) -> Mapping[str, Metric]:
    table: dict[str, Metric] = {}
    for row in rows:
        if row.name in table:
            raise ConfigError(explain("metrics", expected="each name once", got=f"{row.name!r} twice", fix="rename"))
        table[row.name] = row
    return MappingProxyType(table)


METRICS: Mapping[str, Metric] = _table(_ROWS)
_FUNCTIONS = {row.function.partition(":")[2]: row.function for row in _ROWS}
_FUNCTIONS |= {name: f"benchmarks.metrics.lpips:{name}" for name in ("LPIPS", "load_lpips")}


def list_metrics() -> list[str]:
    """Return the names of all metrics, sorted."""
    return sorted(METRICS)


def get_metric(name: str) -> Metric:
    """Return the row ``name``.

    Raises:
        UnknownNameError: No such metric.
    """
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, function = _FUNCTIONS[name].partition(":")
    return getattr(importlib.import_module(module), function)


class _Package(ModuleType):
    """Keeps ``benchmarks.metrics.lpips`` the function, though importing the submodule of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
