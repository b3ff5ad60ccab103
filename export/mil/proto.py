"""Imports coremltools quietly: its warnings about other packages and its progress bars are not the user's concern."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from models.errors import require

EXTRA = "coreml"


@contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Hold back coremltools' log records, Python warnings and progress bars inside the block; errors still raise."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    bars = list(_progress_bars())
    for module, name, _ in bars:
        setattr(module, name, _no_bar)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for module, name, original in bars:
            setattr(module, name, original)


def _progress_bars() -> Iterator[tuple[ModuleType, str, Any]]:
    for path, module in list(sys.modules.items()):
        if path.startswith("coremltools.") and module is not None:
            for name in ("tqdm", "_tqdm"):
                if isinstance(vars(module).get(name), type):
                    yield module, name, vars(module)[name]


def _no_bar(iterable: Iterable[Any], *_: Any, **__: Any) -> Iterable[Any]:
    return iterable


def coremltools() -> ModuleType:
    """Return the module coremltools.

    Raises:
        MissingExtraError: It is not installed.
    """
    with quiet_coremltools():
        return require("coremltools", EXTRA)


def coreml_proto() -> ModuleType:
    """Return coremltools' protobuf classes.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    coremltools()
    return require("coremltools.proto", EXTRA)
