"""What the screens found, from the metadata of artifacts into all files of a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.merge import merge
from benchmarks.report import read_report, write_report
from benchmarks.row import BenchmarkRow
from benchmarks.screens import findings, records
from models.artifact import Artifact

MakeRow = Callable[..., BenchmarkRow]
NORMS = ["norm1", "norm2", "norm3", "norm4", "norm5"]
SLOW = {"operator": "resize", "count": 2, "layers": ["up"], "rewrite": "kept", "advice": "nearest | bilinear"}


def record(**more: Any) -> dict[str, Any]:
    """What one artifact has under ``screens``."""
    return {"large": [], "slow": [], "kept_fp32": {}, **more}


def large(peak: float) -> list[dict[str, Any]]:
    """Five layers that FP16 cannot hold."""
    return [{"layer": name, "peak": peak, "overflows": True} for name in NORMS]


@pytest.fixture
def rows(make_row: MakeRow) -> list[BenchmarkRow]:
    """A teacher in PyTorch, and a pruned network in three exports."""
    return [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("prune", "onnx", "fp32", 0.175, 2.5),
        make_row("prune", "onnx", "fp16", 0.175, 2.0),
        make_row("prune", "openvino", "fp16", 0.175, 2.0),
    ]


@pytest.fixture
def content() -> dict[str, Any]:
    """The same layers are too large in all three; each format does something else about it."""
    kept = {**dict.fromkeys(["add_1", "mul_2"], "range"), "pow_3": "Pow", "head": "asked"}
    return {
        "prune-onnx-fp32": record(slow=[SLOW], large=large(7e4)),
        "prune-onnx-fp16": record(slow=[SLOW], large=large(1e5), kept_fp32=kept),
        "prune-openvino-fp16": record(slow=[SLOW], large=large(9e4)),
    }


def test_equal_findings_are_one_line_and_each_says_what_was_done(
    rows: list[BenchmarkRow], content: dict[str, Any]
) -> None:
    half, other, operators, asked, slow = findings(content, rows)
    assert half.layers == other.layers == "norm1, norm2, norm3, norm4 and 1 more"
    assert half.done == "kept in FP32: values reach 1e+05 and a half ends at 65504"
    assert half.artifacts == "Pruned: ONNX Runtime FP16"
    assert other.done.startswith("not changed in this format: values reach 9e+04")
    assert other.artifacts == "Pruned: OpenVINO FP16"
    assert (operators.what, operators.layers, operators.artifacts) == ("Pow", "pow_3", "Pruned: ONNX Runtime FP16")
    assert (asked.layers, asked.done) == ("head", "FP32, as asked with keep_fp32")
    assert (slow.what, slow.layers) == ("resize x2", "up")
    assert (slow.done, slow.artifacts) == ("kept as it is: nearest | bilinear", "all 3 exported")


def test_an_artifact_on_two_devices_is_named_once(rows: list[BenchmarkRow], content: dict[str, Any]) -> None:
    both = [*rows, replace(rows[2], device="cuda")]
    assert [line.artifacts for line in findings(content, both)] == [line.artifacts for line in findings(content, rows)]


def test_records_leave_out_where_nothing_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"a")
    made = Artifact.create(tmp_path / "a.onnx", format="onnx", model="chroma_unet", task="colorize")
    nothing = replace(made, metadata={"screens": {"large": [], "slow": [], "largest": {"up": 3.0}}, "kept_fp32": {}})
    slow = replace(made, sha256="slow", metadata={"screens": {"large": [], "slow": [SLOW]}})
    assert records([made, nothing, slow]) == {"slow": record(slow=[SLOW])}


def test_the_table_is_in_every_file_of_the_report(
    tmp_path: Path, rows: list[BenchmarkRow], content: dict[str, Any]
) -> None:
    write_report(tmp_path, machine={"id": "here"}, recipe={}, rows=rows, details={"screens": content})
    assert json.loads((tmp_path / "report.json").read_text())["screens"] == content
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "index.html"))
    assert "## Screens" in text
    assert "| resize x2 | up | kept as it is: nearest \\| bilinear | all 3 exported |" in text
    assert page.count('<section id="screens">') == 1
    assert "<td>norm1, norm2, norm3, norm4 and 1 more</td>" in page


def test_nothing_found_shows_nothing(tmp_path: Path, rows: list[BenchmarkRow]) -> None:
    write_report(tmp_path, machine={"id": "here"}, recipe={}, rows=rows, details={"screens": {}})
    assert "Screens" not in (tmp_path / "report.md").read_text()
    assert "Screens" not in (tmp_path / "index.html").read_text()


def test_merged_rows_bring_their_screens(tmp_path: Path, rows: list[BenchmarkRow], content: dict[str, Any]) -> None:
    for name, one in (("a", rows[:2]), ("b", rows[2:])):
        mine = {row.sha256: content[row.sha256] for row in one if row.sha256 in content}
        write_report(tmp_path / name, machine={"id": name}, recipe={}, rows=one, details={"screens": mine})
    joined = merge(read_report(tmp_path / "a"), [read_report(tmp_path / "b")])
    assert joined["screens"] == content
