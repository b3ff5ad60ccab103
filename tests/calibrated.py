"""INT8 stage artifacts of tiny networks, calibrated on random photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export import quantization
from export.golden import random_photo
from models.artifact import Artifact, save_tensors, sha256_of
from models.controls import pack
from models.registry import get_task


def calibration_record(folder: Path, inputs: Tensor, **items: Any) -> dict[str, Any]:
    """Save calibration inputs (n, C, H, W) into ``folder``; return the metadata of an artifact beside them.

    Args:
        folder: An existing folder.
        inputs: In network units, controls packed behind the channels of the image.
        **items: Of ``Quantization``.
    """
    path = folder / "calibration.safetensors"
    save_tensors({quantization.TENSOR: inputs}, path)
    record = quantization.Quantization(calibration=path, samples=len(inputs), sha256=sha256_of(path), **items)
    return {quantization.METADATA_KEY: record.to_json(folder)}


def save_calibrated(
    source: Artifact,
    folder: Path,
    *,
    size: tuple[int, int],
    photos: int = 8,
    levels: Tensor | None = None,
    float_layers: tuple[str, ...] = (),
) -> Artifact:
    """Save ``source`` as an INT8 stage artifact: its weights, and a calibration record.

    Args:
        source: A torch artifact.
        folder: Where the artifact and its calibration inputs go.
        size: Height and width of the calibration inputs in pixels.
        photos: Number of smooth random photos.
        levels: Values of the run-time controls (photos, k), packed behind the photos; None: the task prepares them.
        float_layers: Layers that stay in floating point.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch = torch.cat([random_photo(size, seed=seed) for seed in range(photos)])
    inputs = get_task(source.task).prepare(batch)[0] if levels is None else pack(batch, levels)
    return quantization.save_calibrated(source, folder, inputs, float_layers=float_layers)
