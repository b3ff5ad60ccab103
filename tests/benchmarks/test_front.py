"""The front: who is on it, what shares a plot, and that the drawing is valid and repeatable."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from benchmarks.front import draw_front, front_groups, linear_ticks, log_ticks, marker, pareto_front, short_labels
from benchmarks.labels import text_width
from benchmarks.row import BenchmarkRow

MakeRow = Callable[..., BenchmarkRow]
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """All words of a drawing."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_front_holds_what_nothing_beats(run_rows: list[BenchmarkRow], make_row: MakeRow) -> None:
    beaten = make_row("prune", "tensorrt", "fp32", 0.176, 3.0)
    names = [row.sha256 for row in pareto_front([*run_rows, beaten])]
    assert names == ["quantize-onnx-int8", "prune-openvino-fp32", "distill-torch-fp32", "teacher-torch-fp32"]


def test_nets_photos_machines_and_sizes_never_share_a_plot(make_row: MakeRow) -> None:
    base = make_row("teacher", "torch", "fp32", 0.17, 100.0)
    others = [
        make_row("teacher", "torch", "fp32", 0.3, 100.0, lpips_net="vgg"),
        make_row("teacher", "torch", "fp32", 0.17, 100.0, photos_fingerprint="other"),
        make_row("teacher", "torch", "fp32", 0.17, 100.0, machine="there"),
        make_row("teacher", "torch", "fp32", 0.17, 100.0, height=512),
    ]
    groups = front_groups([base, *others, make_row("distill", "torch", "fp32", 0.18, 10.0)])
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]


def test_the_drawing_names_its_net_and_everybody_once(run_rows: list[BenchmarkRow]) -> None:
    svg = draw_front(run_rows, baseline=0.18, baseline_name="the photo without its chroma")
    assert svg == draw_front(run_rows, baseline=0.18, baseline_name="the photo without its chroma")
    words = texts(svg)
    assert "colorize, 256 x 256, 3 photos, LPIPS net: lite, 2 threads" in words
    assert "doing nothing (the photo without its chroma): 0.1800" in words
    for name in ("Teacher", "Distilled 10x", "ONNX Runtime INT8 80x", "Core ML INT8", "not timed here", "50x"):
        assert words.count(name) == 1, name
    titles = [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert len(titles) == len(run_rows)
    assert "Quantized · ONNX Runtime INT8, LPIPS-lite 0.1780, 1.25 ms (p95 1.38), 80x the teacher" in titles


def test_noise_is_hollow_and_precision_is_a_shape(run_rows: list[BenchmarkRow]) -> None:
    svg = draw_front(run_rows)
    assert svg.count("hollow") == 1
    assert re.search(r'<circle [^>]*class="openvino hollow" fill="#ffffff"', svg)
    assert re.search(r'<polygon [^>]*class="onnx"', svg)
    assert re.search(r'<circle [^>]*class="first"', svg)


def test_no_label_lies_on_a_tail(make_row: MakeRow) -> None:
    """A latency of a busy machine has a 95th percentile far to its right."""
    row = make_row("distill", "torch", "fp32", 0.18, 10.0, latency_p95_ms=60.0)
    others = [make_row("teacher", "torch", "fp32", 0.17, 100.0), make_row("prune", "onnx", "fp32", 0.172, 5.0)]
    svg = ElementTree.fromstring(draw_front([*others, row]))
    (tail,) = (line for line in svg.iter(f"{SVG}line") if line.get("class") == "torch" and length(line) > 100)
    (label,) = (text for text in svg.iter(f"{SVG}text") if text.text == "Distilled 10x")
    x, y = float(label.get("x", "nan")), float(label.get("y", "nan"))
    over = x < float(tail.get("x2", "nan")) and x + text_width("Distilled 10x", 12) > float(tail.get("x1", "nan"))
    assert not (over and y - 10 < float(tail.get("y1", "nan")) < y + 4)


def length(line: ElementTree.Element) -> float:
    """Length of a horizontal line."""
    return float(line.get("x2", "nan")) - float(line.get("x1", "nan"))


def test_a_far_baseline_is_said_and_does_not_squash_the_plot(run_rows: list[BenchmarkRow]) -> None:
    words = texts(draw_front(run_rows, baseline=0.9))
    assert "doing nothing: 0.9000, above this plot" in words


@pytest.mark.parametrize("timed", [True, False])
def test_one_row_alone_can_be_drawn(make_row: MakeRow, timed: bool) -> None:
    row = make_row("prune", "coreml", "fp16", 0.175, 3.0 if timed else None)
    assert any(word.startswith("Core ML FP16") for word in texts(draw_front([row])))


def test_nothing_is_said() -> None:
    assert "Nothing was measured" in texts(draw_front([]))


def test_ticks() -> None:
    assert log_ticks(0.8, 30) == [1, 2, 5, 10, 20]
    assert linear_ticks(0.164, 0.186) == pytest.approx([0.165, 0.17, 0.175, 0.18, 0.185])


def test_labels_are_as_short_as_unique_ones_can_be(make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("teacher", "onnx", "fp32", 0.17, 80.0),
        make_row("prune", "onnx", "fp32", 0.17, 8.0),
        make_row("quantize", "onnx", "int8", 0.17, 4.0),
    ]
    names = ["Teacher", "Teacher · ONNX Runtime FP32", "Pruned · ONNX Runtime FP32", "ONNX Runtime INT8"]
    assert list(short_labels(rows).values()) == names


def test_two_teachers_have_no_common_axis_of_speedup(make_row: MakeRow) -> None:
    rows = [
        make_row("teacher", "torch", "fp32", 0.17, 100.0),
        make_row("teacher", "torch", "fp32", 0.17, 8.0, device="cuda"),
        make_row("teacher", "tensorrt", "fp16", 0.17, 2.0, device="cuda"),
    ]
    words = texts(draw_front(rows))
    assert "Teacher cpu" in words
    assert "Teacher cuda" in words
    assert "10x" not in words


def test_a_sign_for_unknown_targets_too() -> None:
    assert ElementTree.fromstring(marker("onnx", "int8")).find("polygon") is not None
    assert ElementTree.fromstring(marker("new", "new")).find("circle") is not None
