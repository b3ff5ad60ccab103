"""Joining rows of other machines, and comparing two reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.merge import Limits, compare, merge
from benchmarks.report import rows_of
from benchmarks.row import COUNTED, NO_ORIGIN, BenchmarkRow
from models.errors import ConfigError

MakeRow = Callable[..., BenchmarkRow]


def content(rows: list[BenchmarkRow], machine: str = "here") -> dict[str, Any]:
    """A report of these rows."""
    return {"schema": 1, "machine": {"id": machine}, "recipe": {}, "rows": [row.to_json() for row in rows]}


def test_a_row_of_the_right_machine_takes_the_place_of_one_that_could_not_be_timed(
    run_rows: list[BenchmarkRow], make_row: MakeRow
) -> None:
    mac = make_row("quantize", "coreml", "int8", 0.179, 0.8, device="all", machine="mac", speedup=50.0)
    teacher = make_row("teacher", "torch", "fp32", 0.17, 40.0, machine="mac")
    merged = merge(content(run_rows), [content([teacher, mac], "mac")])
    rows = rows_of(merged)
    assert len(rows) == len(run_rows) + 1
    assert rows[-2] == mac  # where the built row was
    assert rows[-1] == teacher
    assert {row.machine for row in rows} == {"here", "mac"}
    assert set(merged["machines"]) == {"here", "mac"}
    assert merged["machine"] == {"id": "here"}
    assert mac.speedup == 50.0  # over its own teacher, not over ours


def test_the_same_measurement_is_replaced_and_nothing_measured_is_lost(run_rows: list[BenchmarkRow]) -> None:
    again = replace(run_rows[4], latency_p50_ms=1.5)
    assert rows_of(merge(content(run_rows), [content([again])]))[4].latency_p50_ms == 1.5
    untimed = replace(run_rows[4], machine="there", latency_p50_ms=None, status="built", reason="latency: no")
    rows = rows_of(merge(content(run_rows), [content([untimed], "there")]))
    assert rows[4] == run_rows[4]
    assert rows[-1] == untimed


@pytest.mark.parametrize(
    "change",
    [{"speedup": None, "reason": "speedup: no teacher"}, {"photos_fingerprint": "other"}, {"lpips_net": "vgg"}],
)
def test_a_row_that_no_longer_compares_is_left_out_and_said(
    run_rows: list[BenchmarkRow], change: dict[str, Any]
) -> None:
    again = replace(run_rows[4], latency_p50_ms=0.5, **change)
    merged = merge(content(run_rows), [content([again])])
    assert rows_of(merged) == run_rows
    (note,) = merged["notes"]
    assert note.startswith("Measured again on here without the teacher or on other photos, and left out: Quantized · O")


def test_what_is_counted_is_taken_over_from_the_row_that_knows_it(
    run_rows: list[BenchmarkRow], make_row: MakeRow
) -> None:
    counted = f"{COUNTED}: {NO_ORIGIN}"
    facts = {"device": "all", "machine": "mac", "speedup": None, "gmacs": None, "params_m": None}
    mac = make_row("quantize", "coreml", "int8", 0.179, 0.8, **facts, reason=f"speedup: no teacher; {counted}")
    joined = rows_of(merge(content(run_rows), [content([mac], "mac")]))[-1]
    assert (joined.gmacs, joined.params_m, joined.latency_p50_ms) == (1.0, 2.0, 0.8)
    assert joined.reason == "speedup: no teacher"


def test_another_net_does_not_replace(run_rows: list[BenchmarkRow], make_row: MakeRow) -> None:
    mac = make_row("quantize", "coreml", "int8", 0.4, 0.8, machine="mac", lpips_net="vgg")
    assert len(rows_of(merge(content(run_rows), [content([mac], "mac")]))) == len(run_rows) + 1


def test_failed_exports_without_a_file_do_not_replace_each_other(make_row: MakeRow) -> None:
    failed = [
        make_row("prune", name, "fp16", None, None, sha256="", reason="export: no") for name in ("onnx", "coreml")
    ]
    assert len(rows_of(merge(content(failed), [content(failed)]))) == 4


def test_another_task_is_refused(run_rows: list[BenchmarkRow]) -> None:
    strange = replace(run_rows[0], task="denoise")
    with pytest.raises(ConfigError, match=r"expected task \['colorize'\], got \['denoise'\]; fix: merge rows"):
        merge(content(run_rows), [content([strange])])


def test_equal_reports_have_no_regression(run_rows: list[BenchmarkRow]) -> None:
    changes = compare(content(run_rows), content(run_rows))
    assert [change.regressions for change in changes] == [()] * len(run_rows)
    assert changes[4].lpips == 0.0
    assert changes[4].latency == 0.0
    assert changes[5].notes == ("noisy latency",)


def test_regressions_beyond_the_limits(run_rows: list[BenchmarkRow]) -> None:
    worse = list(run_rows)
    worse[1] = replace(worse[1], lpips=0.184)
    worse[2] = replace(worse[2], latency_p50_ms=6.0)
    worse[3] = replace(worse[3], latency_p50_ms=None, status="failed", reason="latency: it crashed")
    del worse[4]
    changes = compare(content(run_rows), content(worse), Limits(lpips=0.005, latency=0.1))
    found = {change.label: change.regressions for change in changes if change.regressions}
    assert found == {
        "Distilled · PyTorch FP32": ("LPIPS-lite 0.1740 -> 0.1840",),
        "Pruned · PyTorch FP32": ("latency +20%",),
        "Pruned · ONNX Runtime FP32": ("no longer measured: latency: it crashed",),
        "Quantized · ONNX Runtime INT8": ("Quantized · ONNX Runtime INT8 is missing",),
    }
    allowed = compare(content(run_rows), content(worse[:3] + run_rows[3:]), Limits(lpips=0.02, latency=0.3))
    assert not any(change.regressions for change in allowed)


def test_other_machines_compare_by_speedup(run_rows: list[BenchmarkRow]) -> None:
    moved = [replace(row, machine="there") for row in run_rows]
    moved[1] = replace(moved[1], latency_p50_ms=30.0)  # a slower machine
    moved[2] = replace(moved[2], speedup=10.0)  # half of the speedup it had
    changes = compare(content(run_rows), content(moved, "there"))
    assert changes[1].regressions == ()
    assert changes[2].regressions == ("latency +100%",)
    assert "another machine: compared by speedup over its own teacher" in changes[1].notes


def test_other_photos_do_not_compare(run_rows: list[BenchmarkRow]) -> None:
    moved = [replace(row, photos_fingerprint="other", lpips=0.5) if row.lpips else row for row in run_rows]
    change = compare(content(run_rows), content(moved))[0]
    assert change.lpips is None
    assert change.notes == ("other photos: LPIPS is not compared",)


def test_a_busy_machine_is_noted(run_rows: list[BenchmarkRow]) -> None:
    busy = [replace(row, interference=0.5) for row in run_rows]
    assert compare(content(run_rows), content(busy))[0].notes == ("busy machine",)


def test_other_nets_are_refused(run_rows: list[BenchmarkRow]) -> None:
    moved = [replace(row, lpips_net="vgg") for row in run_rows]
    with pytest.raises(ConfigError, match=r"expected LPIPS of \['lite'\] in both, got \['vgg'\]; fix: measure both"):
        compare(content(run_rows), content(moved))


def test_limits_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="limits: expected 0 or more"):
        Limits(lpips=-1)
