"""``pytest optimize --benchmark-only``: the price of distillation and of BF16 a training step, with pytest-benchmark.

Ratios are in ``extra_info`` (``--benchmark-json FILE`` keeps it); distillation aims at 1.15 of the student's own step.
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
from optimize.step_cost import measure_precisions, measure_step_cost

MODELS = ("chroma_unet", "image_unet", "resnet18_unet", "unet", "nafnet_w32", "sid_unet", "adafm")

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


@pytest.mark.parametrize("model", MODELS)
def test_precision(benchmark: Any, model: str) -> None:
    """Steps in FP32 and in BF16: which is faster is what ``mixed_precision: auto`` takes."""
    times = benchmark.pedantic(measure_precisions, args=(model,), rounds=1, iterations=1)
    plain, mixed = times["no"].p50_ms, times["bf16"].p50_ms
    benchmark.extra_info.update(fp32_p50_ms=round(plain, 1), bf16_p50_ms=round(mixed, 1), ratio=round(mixed / plain, 2))
    assert min(plain, mixed) > 0
