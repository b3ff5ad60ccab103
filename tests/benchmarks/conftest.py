"""Fixtures of the benchmark tests: rows, a metric without trained weights, a tiny run with real artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.row import BenchmarkRow
from models.artifact import Artifact

MakeRow = Callable[..., BenchmarkRow]
SIZE = 64
STAGES = {
    "teacher": ("teacher",),
    "distill": ("teacher", "distill"),
    "prune": ("teacher", "distill", "prune"),
    "quantize": ("teacher", "distill", "prune", "quantize"),
}


def row(stage: str, target: str, precision: str, lpips: float | None, ms: float | None, **more: Any) -> BenchmarkRow:
    """A row of an imaginary run: 100 ms teacher, one machine, one set of photos."""
    name = f"{stage}-{target}-{precision}"
    values: dict[str, Any] = {
        "model": "resnet18_unet" if stage == "teacher" else "chroma_unet",
        "task": "colorize",
        "stage": stage,
        "target": target,
        "precision": precision,
        "artifact": f"{name}.bin",
        "sha256": name,
        "stages": STAGES[stage],
        "machine": "here",
        "threads": 2,
        "photos": 3,
        "photos_fingerprint": "abc",
        "lpips": lpips,
        "lpips_net": None if lpips is None else "lite",
        "lpips_vs_teacher": None if lpips is None else 0.01,
        "lpips_worst": None if lpips is None else 2 * lpips,
        "worst_photo": None if lpips is None else "sea.png",
        "gmacs": 1.0,
        "params_m": 2.0,
        "size_mb": 3.0,
        "reason": None if ms and lpips else "latency: it needs another machine",
    }
    if ms is not None:
        values |= {
            "latency_p50_ms": ms,
            "latency_p95_ms": 1.1 * ms,
            "latency_is_noisy": False,
            "speedup": 100 / ms,
            "end_to_end_p50_ms": ms + 5,
            "images_per_s": 1000 / ms,
            "times_ms": (ms, ms),
            "status": "measured",
        }
    return BenchmarkRow(**{**values, **more})


@pytest.fixture
def make_row() -> MakeRow:
    """Build rows: stage, target, precision, LPIPS, ms, and any field of BenchmarkRow."""
    return row


@pytest.fixture
def run_rows() -> list[BenchmarkRow]:
    """Rows of a whole run: PyTorch and ONNX Runtime timed, Core ML not."""
    return [
        row("teacher", "torch", "fp32", 0.170, 100.0),
        row("distill", "torch", "fp32", 0.174, 10.0),
        row("prune", "torch", "fp32", 0.175, 5.0),
        row("prune", "onnx", "fp32", 0.175, 2.5),
        row("quantize", "onnx", "int8", 0.178, 1.25),
        row("prune", "openvino", "fp32", 0.175, 2.0, latency_is_noisy=True),
        row("quantize", "coreml", "int8", 0.179, None, device="emulated"),
    ]


@pytest.fixture(scope="session")
def lite_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``lite`` net with random weights: a distance like any other, without what is shipped."""
    import torch

    from benchmarks.metrics.backbones import lite_features
    from benchmarks.metrics.lpips import LPIPS
    from models.artifact import save_tensors

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lite") / "random.safetensors"
    save_tensors(LPIPS(lite_features(), "lite").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photos() -> np.ndarray[Any, Any]:
    """Three smooth colour pictures (3, 64, 64, 3) uint8."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    pictures = [np.stack([x, y, 1 - x], -1), np.stack([y, 0.5 * x, x * y], -1), np.stack([1 - y, x, 0.3 + 0 * x], -1)]
    return (np.stack(pictures) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo_folder(photos: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as PNG files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(photos):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


def save(path: Path, model: str, stages: tuple[str, ...], parent: Artifact | None, **kwargs: Any) -> Artifact:
    """Save a tiny network with random weights."""
    import models

    net = models.create_model(model, **kwargs)
    return models.save_network(
        net, path, model=model, task="colorize", model_kwargs=kwargs, stages=stages, parent=parent
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: tiny teacher and student in PyTorch, the student exported to ONNX and OpenVINO."""
    import torch

    from export import get_target
    from models.spec import Precision

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    teacher = save(folder / "teacher.safetensors", "resnet18_unet", ("teacher",), None, width=8)
    kwargs = {"widths": [8, 16], "depths": [1, 1]}
    student = save(folder / "distill" / "student.safetensors", "chroma_unet", STAGES["distill"], teacher, **kwargs)
    (folder / "artifacts").mkdir()
    for name in ("onnx", "openvino"):
        target = get_target(name)
        path = folder / "artifacts" / f"student-fp32{target.suffix}"
        target.load().export(student, path, precision=Precision.FP32, input_size=(SIZE, SIZE))
    return folder
