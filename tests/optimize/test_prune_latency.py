"""The search for a latency target, with fake latencies, and the bench on the engine that is always there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.artifact import Artifact, load_network
from models.errors import ConfigError, UnknownNameError, UnsupportedError
from models.spec import Precision
from optimize.latency_search import EngineBench, Goal, Point, check_goal, search
from optimize.pruner import example_inputs


def point(ratio: float, ms: float, base: float = 10.0) -> Point:
    return Point(ratio, {"fake": ms}, {"fake": base}, {"fake": base / ms})


class Fake:
    """A network of 64 units whose latency is ``latency(share left)`` of 10 ms."""

    def __init__(self, latency: Callable[[float], float]) -> None:
        self.latency, self.measured = latency, []

    def widths(self, ratio: float) -> tuple[int, ...]:
        return (max(round(64 * (1 - ratio) / 4) * 4, 8),)

    def measure(self, _: Any, ratio: float) -> Point:
        self.measured.append(ratio)
        return point(ratio, 10 * self.latency(self.widths(ratio)[0] / 64))

    def search(self, goal: Goal, predict: Callable[[float], float], **options: Any) -> tuple[Point, list[Point]]:
        return search(lambda _: torch.nn.Identity(), self.widths, self.measure, goal, predict=predict, **options)


def quadratic(ratio: float) -> float:
    return 1 / max(1 - ratio, 0.05) ** 2


@pytest.mark.parametrize(
    "latency",
    [lambda left: left**2, lambda left: left, lambda left: 0.3 + 0.7 * left**2, lambda left: left**3],
    ids=["as estimated", "slower than estimated", "a part cannot be pruned", "faster than estimated"],
)
def test_search_finds_the_smallest_ratio_that_is_fast_enough(latency: Callable[[float], float]) -> None:
    fake = Fake(latency)
    best, points = fake.search(Goal(speedup=1.8), quadratic)
    assert best.speedup >= 1.8
    slower = max(1 / latency(width / 64) for width in range(fake.widths(best.ratio)[0] + 4, 65, 4))
    assert slower < 1.8 or best.speedup <= 1.8 * 1.05
    assert best in points
    assert len(fake.measured) == len(points) <= 6
    assert [p.ratio for p in points] == sorted(p.ratio for p in points)


def test_search_for_milliseconds() -> None:
    fake = Fake(lambda left: left)
    best, _ = fake.search(Goal(latency_ms=5.0), quadratic)
    assert best.latency_ms["fake"] <= 5.0
    assert fake.widths(best.ratio) == (32,)


def test_search_never_measures_the_same_widths_twice() -> None:
    fake = Fake(lambda left: 0.9 * left + 0.1)
    fake.search(Goal(speedup=1.8), quadratic, max_trials=50)
    widths = [fake.widths(ratio) for ratio in fake.measured]
    assert len(widths) == len(set(widths))


def test_search_says_what_was_reached_when_the_target_is_out_of_reach() -> None:
    fake = Fake(lambda left: 0.8 + 0.2 * left)
    message = r"pruning target: expected 1\.80x faster, got 8\.25 ms, 1\.21x on fake with everything removed that may"
    with pytest.raises(UnsupportedError, match=message):
        fake.search(Goal(speedup=1.8), quadratic)


def test_the_slowest_engine_decides() -> None:
    both = Point(0.3, {"a": 4.0, "b": 8.0}, {"a": 10.0, "b": 10.0}, {"a": 2.5, "b": 1.25})
    assert both.speedup == 1.25
    assert Goal(speedup=2.5).reached(both) == 0.5
    assert Goal(latency_ms=4.0).reached(both) == 0.5
    assert both.to_json() == {
        "ratio": 0.3,
        "is_noisy": False,
        "latency_ms": {"a": 4.0, "b": 8.0},
        "unpruned_ms": {"a": 10.0, "b": 10.0},
        "speedups": {"a": 2.5, "b": 1.25},
    }


def test_two_goals_are_refused() -> None:
    check_goal(None, None, 1.8)
    message = "how much to prune: expected one flag, got --pruning-ratio and --target-speedup; fix: leave one out"
    with pytest.raises(ConfigError, match=message):
        check_goal(0.3, None, 1.8)


def test_bench_measures_a_network_beside_the_unpruned_one(tiny_teacher: Artifact) -> None:
    net = load_network(tiny_teacher)
    with EngineBench(tiny_teacher, ["torch"], input_size=(64, 96), threads=1, warmup=0, iterations=2) as bench:
        found = bench(net, 0.25)
        folder = bench._folder
    assert found.ratio == 0.25
    assert found.latency_ms["torch"] > 0
    assert found.unpruned_ms["torch"] > 0
    assert found.speedups["torch"] > 0
    assert not folder.exists()


def test_bench_exports_to_onnx_runtime(tiny_teacher: Artifact) -> None:
    pytest.importorskip("onnxruntime")
    with EngineBench(tiny_teacher, ["onnx"], input_size=(32, 32), threads=1, warmup=0, iterations=1) as bench:
        assert set(bench(load_network(tiny_teacher), 0.1).latency_ms) == {"onnx"}


def test_bench_refuses_engines_it_cannot_use(tiny_teacher: Artifact) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown target: expected .*openvino.*, got 'openvin'; fix: use 'openvi"
    ):
        EngineBench(tiny_teacher, ["openvin"])
    with pytest.raises(UnsupportedError, match=r"precision of target torch: expected fp32, got int8"):
        EngineBench(tiny_teacher, ["torch"], precision=Precision.INT8)
    with pytest.raises(
        UnsupportedError, match=r"engine coreml: expected to run here, got .*; fix: measure on an engine"
    ):
        EngineBench(dataclasses.replace(tiny_teacher), ["coreml"])


def test_example_inputs_follow_the_spec() -> None:
    from models.registry import get_spec

    [x] = example_inputs(get_spec("resnet18_unet"), (64, 32))
    assert x.shape == (1, 1, 64, 32)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
