"""Calibration inputs at the size of an export."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.quantization import TENSOR
from models.artifact import save_tensors

if TYPE_CHECKING:
    from export.quantization import Quantization


@contextmanager
def calibrated_at(record: Quantization, size: tuple[int, int], *, dynamic: bool) -> Iterator[Quantization]:
    """Give ``record`` with calibration inputs of height and width ``size``, which a graph of fixed size needs.

    Inputs of another size are resized (bilinear, antialiased) into a temporary file; a dynamic graph takes them as
    they are.
    """
    import torch
    from torch.nn import functional

    inputs = record.inputs()
    if dynamic or tuple(inputs.shape[-2:]) == tuple(size):
        yield record
        return
    resized = functional.interpolate(torch.from_numpy(inputs), size=size, mode="bilinear", antialias=True)
    with tempfile.TemporaryDirectory(prefix="pare-calibration-") as folder:
        path = Path(folder) / "calibration.safetensors"
        save_tensors({**record.tensors(), TENSOR: resized}, path)
        yield replace(record, calibration=path, sha256="")
