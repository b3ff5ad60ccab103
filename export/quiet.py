"""Keeps what converters print away from the user's terminal, and what they would report away from the network."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from models.unreported import unreported

_NAMES = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxslim", "ONNXSlim", "nncf", "openvino")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the loggers, warnings and prints of the converters and their reports; errors still pass."""
    loggers = [logging.getLogger(name) for name in (*_NAMES, None)]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    redirected = contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink)
    with unreported(), warnings.catch_warnings(), redirected[0], redirected[1]:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
