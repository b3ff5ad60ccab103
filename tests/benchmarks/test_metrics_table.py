"""The table of metrics: complete, lazy, and checked at the boundary in one way."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from benchmarks import metrics
from benchmarks.metrics import METRICS
from models.errors import ConfigError, InputSizeError, UnknownNameError

NAMES = sorted(METRICS)


def pair(size: int = 176) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=generator), size, mode="bilinear")
    return (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_reading_the_table_does_not_import_torch() -> None:
    code = "import sys, benchmarks.metrics as m; print(sorted(m.METRICS), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{NAMES} False"


def test_lpips_stays_the_function_when_its_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.metrics.lpips", raising=False)
    module = importlib.import_module("benchmarks.metrics.lpips")
    assert metrics.lpips is module.lpips
    assert metrics.load_lpips is module.load_lpips


def test_an_unknown_attribute_or_metric_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lpisp'"):
        metrics.lpisp  # noqa: B018
    with pytest.raises(UnknownNameError, match=r"got 'lpisp'; fix: use 'lpips'"):
        metrics.get_metric("lpisp")


@pytest.mark.parametrize("name", NAMES)
class TestEveryMetric:
    def test_gives_one_number_an_image_in_its_range(self, name: str) -> None:
        row = METRICS[name]
        values = row.load()(*pair())
        assert values.shape == (2,)
        assert values.dtype == torch.float32
        assert (values >= row.minimum).all()
        assert row.maximum is None or (values <= row.maximum).all()

    def test_an_equal_image_is_the_best_one(self, name: str) -> None:
        row, (preds, target) = METRICS[name], pair()
        same, other = row.load()(target, target), row.load()(preds, target)
        if row.better == "lower":
            assert torch.allclose(same, torch.zeros(2), atol=1e-6)
            assert (other > same).all()
        if row.better == "higher":
            assert (same == (row.maximum if row.maximum is not None else torch.inf)).all()
            assert (other < same).all()

    def test_images_are_independent_of_the_batch(self, name: str) -> None:
        function, (preds, target) = METRICS[name].load(), pair()
        alone = torch.cat([function(preds[i : i + 1], target[i : i + 1]) for i in range(2)])
        assert torch.allclose(function(preds, target), alone, rtol=1e-4, atol=1e-6)

    def test_values_out_of_range_are_refused(self, name: str) -> None:
        preds, target = pair()
        with pytest.raises(ConfigError, match=r"preds: expected values in \[0, 1\], got values from .* fix: divide"):
            METRICS[name].load()(preds * 255, target)

    def test_another_shape_is_refused(self, name: str) -> None:
        preds, target = pair()
        with pytest.raises(ConfigError, match=r"expected shape \(N, 3, H, W\), got \(2, 1, 176, 176\); fix: stack"):
            METRICS[name].load()(preds[:, :1], target)
        if name != "colourfulness":
            with pytest.raises(ConfigError, match=f"{name}: expected images of one shape, got .* fix: crop or resize"):
                METRICS[name].load()(preds[..., :100], target)
            with pytest.raises(ConfigError, match=f"{name}: expected one image or more, got none; fix: pass"):
                METRICS[name].load()(preds[:0], target[:0])


@pytest.mark.parametrize("name", [name for name in NAMES if METRICS[name].smallest > 1])
def test_images_that_are_too_small_are_refused(name: str) -> None:
    smallest = METRICS[name].smallest
    preds, target = pair(smallest)
    METRICS[name].load()(preds, target)
    with pytest.raises(
        InputSizeError, match=f"{name}: expected {smallest}x{smallest} or larger, got .* fix: use larger"
    ):
        METRICS[name].load()(preds[..., 1:], target[..., 1:])
