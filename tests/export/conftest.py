"""Tiny quantized networks, and exports that several tests read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from calibrated import save_calibrated

from models.artifact import Artifact
from models.spec import Precision

SIZE = (64, 64)
Exporter = Callable[..., Artifact]


@pytest.fixture(scope="session")
def quantized_student(tiny_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny student with a calibration record; its ``head`` stays in floating point."""
    return save_calibrated(tiny_student, tmp_path_factory.mktemp("quantized"), size=SIZE, float_layers=("head",))


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
