"""``pytest optimize --benchmark-only``: the price of distillation a training step, with pytest-benchmark.

The ratio to the student's own step is printed in ``extra_info`` (``--benchmark-json FILE`` keeps it); the aim is 1.15.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.artifact import Artifact
from models.photos import embedded_photos
from models.registry import WEIGHTS
from optimize.distill import DistillConfig
from optimize.stage import StageContext
from optimize.step_cost import measure_step_cost

pytest.importorskip("pytest_benchmark", reason="pip install 'pare[dev]'")


def test_distillation_step(benchmark: Any, tmp_path: Path) -> None:
    """Steps of the default distillation of the shipped teacher on the embedded photos."""
    photos = embedded_photos("train")
    data = StageContext(train=photos, eval=embedded_photos("eval"), calibration=photos)
    teacher = Artifact.load(WEIGHTS / "resnet18_unet.safetensors")
    times = benchmark.pedantic(
        measure_step_cost, args=(teacher, DistillConfig(), data, tmp_path), rounds=1, iterations=1
    )
    alone, with_teacher = times["alone"].p50_ms, times["distillation"].p50_ms
    benchmark.extra_info.update(
        alone_p50_ms=round(alone, 2), distillation_p50_ms=round(with_teacher, 2), ratio=round(with_teacher / alone, 3)
    )
    assert alone > 0
    assert with_teacher > 0
