"""Tiny quantized networks, and exports that several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.artifact import Artifact, load_network, save_network, save_tensors, sha256_of
from models.spec import Precision

SIZE = (64, 64)
Exporter = Callable[..., Artifact]


def quantized(source: Artifact, folder: Path, *, float_layers: tuple[str, ...] = ()) -> Artifact:
    """Save ``source`` as an INT8 stage artifact: its weights, and calibration inputs of 64 x 64."""
    import torch

    from export.golden import random_photo
    from export.quantization import Quantization
    from models.registry import get_task

    folder.mkdir(parents=True, exist_ok=True)
    photos = torch.cat([random_photo(SIZE, seed=seed) for seed in range(8)])
    path = folder / "calibration.safetensors"
    save_tensors({"input": get_task(source.task).prepare(photos)[0]}, path)
    record = Quantization(calibration=path, samples=8, sha256=sha256_of(path), float_layers=float_layers)
    return save_network(
        load_network(source),
        folder / f"{source.model}-int8.safetensors",
        model=source.model,
        task=source.task,
        precision=Precision.INT8,
        parent=source,
        model_kwargs=source.model_kwargs,
        metadata={"quantization": record.to_json(folder)},
    )


@pytest.fixture(scope="session")
def quantized_student(tiny_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny student with a calibration record; its ``head`` stays in floating point."""
    return quantized(tiny_student, tmp_path_factory.mktemp("quantized"), float_layers=("head",))


@pytest.fixture(scope="session")
def exported(tiny_student: Artifact, quantized_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Export the tiny student to (target, precision), once a session; keyword arguments go to the exporter."""
    from export.registry import get_target

    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Artifact] = {}

    def export(target: str, precision: Precision = Precision.FP32, **arguments: object) -> Artifact:
        row = get_target(target)
        pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
        key = f"{target}-{precision}-" + "-".join(f"{name}={value}" for name, value in sorted(arguments.items()))
        if key not in made:
            source = quantized_student if precision is Precision.INT8 else tiny_student
            path = folder / str(len(made)) / f"student-{precision}{row.suffix}"
            made[key] = row.load().export(source, path, precision=precision, **{"input_size": SIZE, **arguments})
        return made[key]

    return export
