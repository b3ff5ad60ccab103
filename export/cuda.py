"""What of an NVIDIA GPU is here, asked of the driver, and the log of TensorRT."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@lru_cache(maxsize=1)
def why_no_gpu() -> str | None:
    """Return None where the driver shows a GPU, else what is absent: the driver, its start, or a device."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"no NVIDIA driver on this machine ({_LIBRARY} not found), so no GPU to run an engine on"
    if (status := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver does not start (cuInit returned {status}), so no GPU to run an engine on"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver shows no GPU"
    return None


def why_no_memory() -> str | None:
    """Return None where torch can hold tensors on the GPU (the runner keeps its buffers in torch), else the reason."""
    import torch

    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} has no CUDA (install a CUDA build of torch; the runner keeps its buffers in it)"


def make_log(trt: Any) -> Any:
    """Return a TensorRT logger that keeps warnings and errors; ``last()`` gives the last error, or ""."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text.strip())

        def last(self) -> str:
            return self.errors[-1] if self.errors else ""

    return Log()
