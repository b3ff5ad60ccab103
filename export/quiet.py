"""Keeps what converters print away from the user's terminal, and what they would report away from the network."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

_NAMES = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxslim", "ONNXSlim", "nncf", "openvino")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the loggers, warnings and prints of the converters inside of the block; errors still pass.

    OpenVINO and NNCF send usage data unasked, from a thread that crashes an interpreter that ends meanwhile. They do
    not where ``CI`` is true, and ask when a conversion begins.
    """
    loggers = [logging.getLogger(name) for name in (*_NAMES, None)]
    levels = [logger.level for logger in loggers]
    sink, ci = io.StringIO(), os.environ.get("CI")
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        os.environ["CI"] = "true"
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if ci is None:
                os.environ.pop("CI", None)
            else:
                os.environ["CI"] = ci
