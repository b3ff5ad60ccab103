"""The report folder: all four files from the rows, and again from report.json alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.machine import describe_machine
from benchmarks.pictures import Picture, Tile
from benchmarks.report import read_report, render_report, report_folder, rows_of, write_report
from benchmarks.row import BenchmarkRow
from models.errors import CheckpointError, RunFolderError

MakeRow = Callable[..., BenchmarkRow]


def pictures() -> list[Picture]:
    """One photo, four tiles."""
    image = np.full((32, 32, 3), 90, np.uint8)
    tiles = (
        Tile("Input", image),
        Tile("Teacher · PyTorch FP32", image + 50, 0.17, ("Pruned · OpenVINO FP32",)),
        Tile("Quantized · ONNX Runtime INT8", image + 60, 0.178),
        Tile("Ground truth", image + 70),
    )
    return [Picture("sea <1>.png", "worst photo", tiles)]


def details(rows: list[BenchmarkRow]) -> dict[str, Any]:
    """What benchmark() adds."""
    values = {f"{row.artifact}@{row.device}": {"lpips": [0.1, 0.2], "infer_ms": [2.0, 3.0]} for row in rows}
    return {
        "settings": {"iterations": 50},
        "baseline": {"what": "the photo without its chroma", "lpips": 0.2206, "lpips_net": "lite"},
        "photos": {
            "count": 2,
            "fingerprint": "abc",
            "names": ["a.png", "b.png"],
            "skipped": [{"photo": "c.gif", "reason": "animated"}],
            "values": values,
        },
        "not_counted": ["relu"],
    }


@pytest.fixture
def report(tmp_path: Path, run_rows: list[BenchmarkRow]) -> Path:
    """A written report."""
    out = tmp_path / "report"
    write_report(
        out,
        machine=describe_machine(threads=2),
        recipe={"teacher": "resnet18_unet", "note": "<b>&"},
        rows=run_rows,
        pictures=pictures(),
        stages=[{"stage": "distill", "seconds": 12.3, "note": "taken"}],
        notes=["The distillation started from the shipped student."],
        details=details(run_rows),
    )
    return out


class Page(HTMLParser):
    """Collects what a page fetches, its words, and whether its elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "input", "br", "rect", "line", "path", "circle", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "path", "circle", "polygon"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_json_is_as_documented(report: Path, run_rows: list[BenchmarkRow]) -> None:
    content = json.loads((report / "report.json").read_text())
    assert content["schema"] == 1
    assert {"machine", "recipe", "rows"} <= content.keys()
    assert rows_of(content) == run_rows
    (teacher,) = (row for row in content["rows"] if row["stage"] == "teacher")
    assert teacher["target"] == "torch"
    assert teacher["times_ms"] == [100.0, 100.0]
    assert content["baseline"]["lpips"] == 0.2206
    for tile in content["pictures"][0]["tiles"]:
        assert (report / tile["file"]).is_file()


def test_the_page_is_whole_and_fetches_nothing(report: Path) -> None:
    page = Page((report / "index.html").read_text())
    assert page.open == []
    assert page.fetched
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in page.fetched)
    words = " ".join(" ".join(page.words).split())
    for expected in (
        "resnet18_unet: 80x faster",
        "Quantized · ONNX Runtime INT8",
        "0.1700 to 0.1780; doing nothing 0.2206",
        "latency: it needs another machine",
        "The distillation started from the shipped student.",
        "sea <1>.png",
        "leave out what is neither a convolution nor a matrix product: relu",
        "c.gif: animated",
        "LPIPS against latency",
    ):
        assert expected in words, expected
    assert "<b>&" in words  # the recipe, escaped


def test_the_markdown_says_the_same(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert "**Quantized · ONNX Runtime INT8: 80x faster** (100 -> 1.25 ms), LPIPS-lite +0.0080" in text
    assert "| Pruned | PyTorch FP32 | 0.1750 | +0.0010 | 5 | 5.00 | 2x |" in text
    assert "| Teacher · PyTorch FP32 | sea.png | 0.3400 | b.png | 1.2x |" in text
    assert "- **Quantized · Core ML INT8** (built): latency: it needs another machine" in text
    assert "2 ~ |" in text  # the noisy one
    images = re.findall(r"\]\(([^)]+)\)", text)
    assert "front.svg" in images
    assert all((report / image).is_file() for image in images)
    columns = {line.count("|") for line in text.split("## Artifacts")[1].split("## Resources")[0].strip().splitlines()}
    assert len(columns) == 1


def test_rendered_again_from_the_json_alone(report: Path, tmp_path: Path) -> None:
    before = {name: (report / name).read_text() for name in ("index.html", "report.md", "front.svg")}
    for name in before:
        (report / name).unlink()
    render_report(report, read_report(report))
    assert {name: (report / name).read_text() for name in before} == before
    elsewhere = tmp_path / "elsewhere"
    render_report(elsewhere, read_report(report / "report.json"), pictures_from=report)
    assert (elsewhere / "index.html").read_text() == before["index.html"]


def test_each_net_and_machine_has_its_own_plot(tmp_path: Path, run_rows: list[BenchmarkRow]) -> None:
    other = [replace(row, machine="mac") for row in run_rows]
    write_report(tmp_path, machine={"id": "here"}, recipe={}, rows=[*run_rows, *other])
    assert (tmp_path / "front-2.svg").is_file()
    assert (tmp_path / "index.html").read_text().count("<figure><svg") == 2


def test_no_teacher_and_no_rows_still_give_a_report(tmp_path: Path, run_rows: list[BenchmarkRow]) -> None:
    write_report(tmp_path / "a", machine={}, recipe={}, rows=run_rows[3:4])
    assert "No artifact can be compared with a teacher here" in (tmp_path / "a" / "index.html").read_text()
    write_report(tmp_path / "b", machine={}, recipe={}, rows=[])
    assert "Nothing was measured" in (tmp_path / "b" / "front.svg").read_text()


def test_beyond_the_limit_the_headline_says_so(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("prune", "onnx", "fp32", 0.175, 10.0),
        make_row("quantize", "onnx", "int8", 0.2, 5.0),
    ]
    write_report(tmp_path, machine={}, recipe={}, rows=rows)
    assert "resnet18_unet: 10x faster" in (tmp_path / "report.md").read_text()
    exported = make_row("teacher", "onnx", "fp32", 0.17, 50.0)
    write_report(tmp_path, machine={}, recipe={}, rows=[rows[0], exported, rows[2]])
    assert '<div class="card over"><b>+0.0300' in (tmp_path / "index.html").read_text()
    assert "resnet18_unet: 20x faster" in (tmp_path / "report.md").read_text()


def test_the_headline_is_shipped(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("distill", "onnx", "fp32", 0.171, 10.0, artifact="artifacts/reference/distill-fp32.onnx"),
        make_row("distill", "torch", "fp32", 0.171, 8.0, artifact="stages/01-distill/student.safetensors"),
        make_row("quantize", "onnx", "int8", 0.175, 4.0, artifact="rejected/x-int8.onnx"),
        make_row("quantize", "openvino", "int8", 0.189, 5.0, artifact="artifacts/x-int8.openvino"),
    ]
    write_report(tmp_path, machine={}, recipe={}, rows=rows)
    assert "**Quantized · OpenVINO INT8: 20x faster** (100 -> 5 ms)" in (tmp_path / "report.md").read_text()
    write_report(tmp_path, machine={}, recipe={}, rows=rows[:4])
    assert "**Quantized · ONNX Runtime INT8: 25x faster** (100 -> 4 ms)" in (tmp_path / "report.md").read_text()


def test_the_headline_names_the_teacher_on_its_own_device(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("teacher", "torch", "fp32", 0.17, 8.0, device="cuda"),
        make_row("teacher", "tensorrt", "fp16", 0.17, 2.0, device="cuda", speedup=4.0),
    ]
    write_report(tmp_path, machine={}, recipe={}, rows=rows)
    assert "TensorRT FP16: 4x faster** (8 -> 2 ms)" in (tmp_path / "report.md").read_text()


def test_a_busy_machine_is_said_first(tmp_path: Path, run_rows: list[BenchmarkRow]) -> None:
    busy = "other processes used 43% of the processors of here"
    title = "resnet18_unet: 80x faster"
    write_report(tmp_path, machine={}, recipe={}, rows=[replace(row, interference=0.43) for row in run_rows])
    assert (tmp_path / "report.md").read_text().count(busy) == 1
    assert (tmp_path / "index.html").read_text().count(busy) == 1
    assert (tmp_path / "report.md").read_text().startswith(f"# {title} (noisy)\n")
    assert f"<h1>{title} (noisy)</h1>" in (tmp_path / "index.html").read_text()
    write_report(tmp_path, machine={}, recipe={}, rows=[replace(row, interference=0.01) for row in run_rows])
    quiet = (tmp_path / "report.md").read_text()
    assert "other processes" not in quiet
    assert quiet.startswith(f"# {title}\n")


def test_reports_are_found_and_strange_ones_refused(report: Path, tmp_path: Path) -> None:
    assert report_folder(report / "report.json") == report
    assert report_folder(tmp_path) == report
    assert read_report(tmp_path)["schema"] == 1
    with pytest.raises(CheckpointError, match="got no such file; fix: pass the file or its folder"):
        read_report(tmp_path / "nothing")
    (tmp_path / "half.json").write_text('{"schema": 1, "rows": [')
    with pytest.raises(CheckpointError, match=r"expected JSON.*looks truncated"):
        read_report(tmp_path / "half.json")
    (tmp_path / "other.json").write_text('{"schema": 9, "rows": []}')
    with pytest.raises(CheckpointError, match="expected schema 1 with rows, got schema 9"):
        read_report(tmp_path / "other.json")


def test_a_folder_that_cannot_be_written(tmp_path: Path, run_rows: list[BenchmarkRow]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"expected a writable folder.*fix: free disk space"):
        write_report(tmp_path / "file" / "report", machine={}, recipe={}, rows=run_rows)
