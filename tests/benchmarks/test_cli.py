"""The command line: every verb, exit statuses, JSON, and a help text without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.report import write_report
from benchmarks.row import BenchmarkRow

ROOT = Path(__file__).resolve().parents[2]
MakeRow = Callable[..., BenchmarkRow]
QUICK = ("--input-size", "64", "64", "--threads", "1", "--warmup", "0", "--iterations", "2", "--no-probes", "--quiet")


def written(folder: Path, rows: list[BenchmarkRow]) -> Path:
    """A report of these rows."""
    write_report(folder, machine={"id": rows[0].machine}, recipe={}, rows=rows)
    return folder


def test_run_writes_a_report_of_a_folder(
    tiny_run: Path, photo_folder: Path, lite_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    more = ("--data", str(photo_folder), "--limit", "2", "--lpips-weights", str(lite_weights), "-o", str(out))
    assert main(["run", str(tiny_run), *QUICK, *more]) == 0
    shown = capsys.readouterr().out
    assert "Distilled · OpenVINO FP32" in shown
    assert f"written: {out / 'index.html'}" in shown
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["photos"] for row in rows] == [2, 2, 2, 2]


def test_run_writes_rows_that_merge_joins(
    tiny_run: Path,
    photo_folder: Path,
    lite_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_rows: list[BenchmarkRow],
) -> None:
    rows = tmp_path / "rows.json"
    more = ("--data", str(photo_folder), "--lpips-weights", str(lite_weights), "-o", str(rows), "--json")
    onnx = tiny_run / "artifacts" / "student-fp32.onnx"
    quick = QUICK[3:]  # the size is that of the artifact
    assert main(["run", str(onnx), "--teacher", str(tiny_run / "teacher.safetensors"), *quick, *more]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(rows)
    assert [row["stage"] for row in answer["rows"]] == ["teacher", "distill"]
    assert answer["rows"][1]["speedup"] > 0
    assert {(row["height"], row["width"]) for row in answer["rows"]} == {(64, 64)}
    report = written(tmp_path / "report", run_rows)
    assert main(["merge", str(report), str(rows), "-o", str(tmp_path / "joined"), "--json"]) == 0
    joined = json.loads(capsys.readouterr().out)
    assert len(joined["rows"]) == len(run_rows) + 2
    assert len(list((tmp_path / "joined").glob("front*.svg"))) == 2


def test_report_renders_again(tmp_path: Path, run_rows: list[BenchmarkRow], capsys: pytest.CaptureFixture[str]) -> None:
    report = written(tmp_path / "report", run_rows)
    (report / "index.html").unlink()
    assert main(["report", str(report)]) == 0
    assert (report / "index.html").is_file()
    assert "Quantized · Core ML INT8: latency: it needs another machine" in capsys.readouterr().out


def test_compare_fails_on_a_regression(
    tmp_path: Path, run_rows: list[BenchmarkRow], capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before", run_rows)
    worse = [replace(run_rows[0], lpips=0.18), *run_rows[1:]]
    after = written(tmp_path / "after", worse)
    assert main(["compare", str(before), str(before)]) == 0
    capsys.readouterr()
    assert main(["compare", str(before), str(after), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["regressions"] == 1
    assert answer["changes"][0]["lpips_change"] == pytest.approx(0.01)
    assert main(["compare", str(before), str(after), "--max-lpips-increase", "0.02"]) == 0
    assert main(["compare", str(before), str(after)]) == 1
    assert "LPIPS-lite 0.1700 -> 0.1800" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["run", "nowhere"], 1, "expected nowhere, got no such file; fix: pass an artifact"),
        (["run", ".", "--iterations", "0"], 2, "--iterations: expected 1 or more, got 0"),
        (["run", ".", "--threads", "99999", "-q"], 2, "--threads"),
        (["run", ".", "--max-seconds", "nan"], 2, "--max-seconds: expected 0 or more, got nan"),
        (["run", ".", "--limit", "0"], 2, "--limit: expected 1 or more, got 0"),
        (["run", ".", "--device", "cudda"], 2, "unknown device: expected all | ane | auto | cpu | "),
        (["run", ".", "--device", "cudda"], 2, "got 'cudda'; fix: use 'cuda'"),
        (["run", ".", "--lpips-net", "sqeeze"], 2, "got 'sqeeze'; fix: use 'squeeze'"),
        (["run", ".", "-o", str(ROOT / "models")], 1, "models: expected a new folder or a report, got '"),
        (["run", ".", "-o", __file__], 1, "test_cli.py: expected a folder, got a file; fix: choose another --output"),
        (["networks", "--task", "ovrlay"], 2, "unknown task: "),
        (["networks", "--precisions", "int8,int9"], 2, "unknown precision: "),
        (["compare", ".", ".", "--max-latency-increase", "nan"], 2, "limits: expected 0 or more, got 0.005, nan"),
        (["report", "nowhere"], 1, "got no such file; fix: pass the file or its folder"),
        (["compare", "nowhere"], 2, "Missing argument"),
        (["mergee"], 2, "No such command 'mergee'"),
        (["train-lite"], 2, "Missing option"),
    ],
)
def test_wrong_calls(argv: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == status
    assert text in " ".join(capsys.readouterr().err.split())


def test_probe_answers_errors_as_json(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["probe", str(tiny_run / "artifacts" / "student-fp32.onnx"), "--target", "onnx", "--device", "npu"]
    assert main([*argv, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "UnsupportedError"
    assert main(argv) == 1
    assert "device of target onnx" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from benchmarks.cli import main; status = main(['run', '--help']); "
        "assert status == 0; print([m for m in ('torch', 'numpy', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "--lpips-net" in done.stdout
