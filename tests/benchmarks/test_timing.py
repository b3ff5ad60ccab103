"""Timing: what is derived from raw samples, and who is called when."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import Measurement, measure_interleaved, percentile
from models.errors import ConfigError


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_percentiles_are_those_of_numpy(fraction: float, count: int) -> None:
    values = np.random.default_rng(count).uniform(1, 9, count)
    assert percentile(values.tolist(), fraction) == pytest.approx(np.percentile(values, 100 * fraction))


def test_a_measurement_worked_by_hand() -> None:
    measured = Measurement((10.0, 20.0, 30.0, 40.0), batch=2, warmup=3)
    assert measured.p50_ms == 25.0
    assert measured.p95_ms == pytest.approx(38.5)
    assert measured.iqr_ms == pytest.approx(32.5 - 17.5)
    assert measured.images_per_s == pytest.approx(2 * 1000 / 25)
    assert measured.times_ms == (10.0, 20.0, 30.0, 40.0)


def test_noise_is_an_iqr_of_more_than_a_tenth_of_the_median() -> None:
    assert not Measurement((100.0, 104.0, 106.0, 110.0)).is_noisy
    assert Measurement((100.0, 104.0, 126.0, 140.0)).is_noisy


@pytest.mark.parametrize(("times", "batch"), [((), 1), ((1.0, 0.0), 1), ((1.0, float("nan")), 1), ((1.0,), 0)])
def test_impossible_measurements_are_refused(times: tuple[float, ...], batch: int) -> None:
    with pytest.raises(ConfigError, match=r"expected positive times and batch, got .*; fix: measure"):
        Measurement(times, batch)


class Calls:
    """Remembers who was called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.collecting: set[bool] = set()

    def of(self, name: str) -> object:
        def call() -> None:
            self.names.append(name)
            self.collecting.add(gc.isenabled())

        return call


def test_contestants_take_turns_and_every_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SETTLE_NS", 0)
    calls = Calls()
    names = ("slow", "fast", "other")
    measured = measure_interleaved({name: calls.of(name) for name in names}, warmup=2, iterations=20)
    assert list(measured) == list(names)
    assert {len(one.times_ms) for one in measured.values()} == {20}
    assert {one.warmup for one in measured.values()} == {2}
    settle = 10 * timing._SETTLE_CALLS
    assert {name: calls.names.count(name) for name in names} == dict.fromkeys(names, 2 + settle + 20)
    turns = [name for name, before in zip(calls.names, [None, *calls.names], strict=False) if name != before]
    for name in names:  # ten blocks each; two neighbouring blocks of one name look like one turn
        assert turns.count(name) >= 6


def test_one_that_is_too_slow_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: now[0])

    def lasting(milliseconds: int) -> object:
        def call() -> None:
            now[0] += milliseconds * 1_000_000

        return call

    calls = {"slow": lasting(900), "fast": lasting(1)}
    measured = measure_interleaved(calls, warmup=10, iterations=20, max_seconds=1.0)
    assert measured["slow"].times_ms == (900.0,) * 3
    assert measured["slow"].warmup == 1
    assert measured["fast"].times_ms == (1.0,) * 20
    assert measured["fast"].warmup == 10


@pytest.mark.parametrize(("milliseconds", "calls"), [(1, 42), (15, 6), (400, 6), (1500, 3)])
def test_the_longer_a_call_the_fewer_settle_it(milliseconds: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0], []
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: now[0])

    def call() -> None:
        made.append(now[0])
        now[0] += milliseconds * 1_000_000

    measured = measure_interleaved({"one": call}, warmup=0, iterations=2)
    assert measured["one"].times_ms == (milliseconds,) * 2
    assert len(made) == calls


def test_the_order_is_shuffled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SETTLE_NS", 0)

    def order(seed: int) -> list[str]:
        calls = Calls()
        measure_interleaved({name: calls.of(name) for name in "abc"}, warmup=0, iterations=10, seed=seed)
        return calls.names

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_the_garbage_collector_waits_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SETTLE_NS", 0)
    calls = Calls()
    measure_interleaved({"one": calls.of("one")}, warmup=0, iterations=1)
    assert calls.collecting == {False}
    assert gc.isenabled()


@pytest.mark.parametrize("iterations", [1, 3, 10, 11, 57])
def test_blocks_add_up(iterations: int) -> None:
    sizes = timing._block_sizes(iterations)
    assert sum(sizes) == iterations
    assert len(sizes) == min(10, iterations)
    assert max(sizes) - min(sizes) <= 1


def test_no_iteration_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected iterations >= 1, warmup >= 0, got 0 iterations"):
        measure_interleaved({"one": int}, iterations=0)
