"""The zoo: commands, resume, failures, and the table, over recorded reports in place of real runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import zoo
from benchmarks.cli import main
from benchmarks.pictures import Picture, Tile
from benchmarks.report import write_report
from benchmarks.row import BenchmarkRow
from benchmarks.zoo import ZooConfig, model_folder, run_zoo, teachers
from benchmarks.zoo_process import ChildFailed, call
from models.errors import ConfigError, PareError, UnknownNameError
from models.registry import MODELS

MakeRow = Callable[..., BenchmarkRow]
#: Doing nothing, the teacher and what is shipped, in the metric of a task.
TRAINING = {"artifact": "t.safetensors", "seconds": 31.0, "metadata": {"account": {"steps": 212, "seconds": 30.2}}}


def flat(level: int) -> np.ndarray[Any, Any]:
    return np.full((8, 8, 3), level, np.uint8)


def record(folder: Path, make_row: MakeRow, *, task: str = "colorize", **of_int8: Any) -> None:
    """Write the report of a run: teacher at 0.170 and 100 ms, shipped INT8 at 0.178 and 1.25 ms on ONNX Runtime."""
    common: dict[str, Any] = {"task": task}
    rows = [
        make_row("teacher", "torch", "fp32", 0.170, 100.0, params_m=14.0, gmacs=5.5, psnr_db=24.0, **common),
        make_row("teacher", "onnx", "fp32", 0.170, 80.0, artifact="artifacts/reference/teacher.onnx", **common),
        make_row("prune", "onnx", "fp32", 0.175, 2.5, artifact="artifacts/s-fp32.onnx", **common),
        make_row(
            "quantize",
            "onnx",
            "int8",
            0.178,
            1.25,
            artifact="artifacts/s-int8.onnx",
            **{"params_m": 0.5, "psnr_db": 23.0, "latency_is_noisy": True, **common, **of_int8},
        ),
        make_row("quantize", "coreml", "int8", 0.179, None, artifact="artifacts/s-int8.mlpackage", **common),
        make_row(
            *("quantize", "tensorrt", "int8", None, None),
            artifact="artifacts/s-int8.engine",
            status="unsupported",
            reason="layer mix: operator Einsum",
            **common,
        ),
    ]
    tiles = [("Input", 10), ("Teacher · PyTorch FP32", 20), ("Quantized · ONNX Runtime INT8", 30), ("Ground truth", 40)]
    picture = Picture("sea.png", "worst photo", tuple(Tile(name, flat(level), 0.1) for name, level in tiles))
    stages = [{"stage": "distill", "seconds": 12.0, "note": "taken", "accepted": True}]
    stages += [{"stage": "prune", "seconds": 3.0, "note": "not taken: no gain", "accepted": False}]
    details = {"baseline": {"lpips": 0.220, "psnr_db": 20.0, "what": "grey"}, "photos": {"count": 3}}
    write_report(
        folder, machine={"id": "here"}, recipe={}, rows=rows, pictures=[picture], stages=stages, details=details
    )


class Calls:
    """Stands in for the processes: records commands and leaves recorded reports, or fails."""

    def __init__(self, make_row: MakeRow) -> None:
        self.make_row, self.commands = make_row, list[list[str]]()
        self.failing: dict[tuple[str, str], str] = {}

    def __call__(self, command: Sequence[str], log: Path, *, tick: Callable[[str], None]) -> dict[str, Any]:
        words = list(command)
        self.commands.append(words)
        verb, name = words[3], words[words.index("--teacher") + 1]
        tick("Training: 3/10, ETA 0:07")
        if (name, verb) in self.failing:
            raise ChildFailed(self.failing[name, verb])
        if verb == "run":
            output = Path(words[words.index("--output") + 1])
            record(output / "report", self.make_row, task=MODELS[name].task)
        return TRAINING if verb == "train" else {}

    def verbs(self) -> list[tuple[str, str]]:
        return [(words[words.index("--teacher") + 1], words[3]) for words in self.commands]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, make_row: MakeRow) -> Calls:
    recorder = Calls(make_row)
    monkeypatch.setattr(zoo, "call", recorder)
    monkeypatch.setattr(zoo, "crop_gmacs", lambda spec, crop: 1.0)  # networks of full size take seconds to count
    return recorder


def test_every_teacher_of_the_registry_runs_by_default() -> None:
    assert teachers() == tuple(name for name, spec in MODELS.items() if spec.role == "teacher")
    assert ZooConfig().chosen == teachers()
    assert ZooConfig(models=("unet", "hdrnet", "unet")).chosen == ("unet", "hdrnet")


def test_the_table_of_a_recorded_run(calls: Calls, tmp_path: Path) -> None:
    content = run_zoo(ZooConfig(models=("unet",), minutes=1), tmp_path)
    (row,) = content["rows"]
    assert calls.verbs() == [("unet", "train"), ("unet", "run")]
    assert (row["model"], row["task"], row["status"]) == ("unet", "colorize", "done")
    assert row["teacher"] == "212 steps in 30 s"
    assert row["student"] == "chroma_unet"
    assert row["stages"] == "distill 12 s, prune 3 s (not taken: no gain)"
    assert (row["teacher_params_m"], row["params_m"], row["teacher_gmacs"]) == (14.0, 0.5, 5.5)
    assert row["teacher_p50_ms"] == {"torch": 100.0, "onnx": 80.0}
    assert row["shipped"] == "Quantized · ONNX Runtime INT8"
    assert row["speedup"] == pytest.approx(80)
    assert row["lpips_to_teacher"] == pytest.approx(0.01)
    assert (row["metric"], row["metric_to"], row["idle_value"]) == ("lpips", "truth", 0.220)
    assert row["teacher_margin"] == pytest.approx(0.05)  # lower LPIPS is better: 0.220 - 0.170
    assert row["shipped_margin"] == pytest.approx(0.042)
    engines = {(engine["target"], engine["precision"]): engine for engine in row["engines"]}
    assert sorted(engines) == [("coreml", "int8"), ("onnx", "fp32"), ("onnx", "int8"), ("tensorrt", "int8")]
    assert engines["onnx", "int8"]["p50_ms"] == 1.25
    assert engines["coreml", "int8"]["status"] == "built"
    assert json.loads((tmp_path / "zoo.json").read_text())["rows"] == [row]


def test_the_pages_show_table_reasons_and_pictures(calls: Calls, tmp_path: Path) -> None:
    run_zoo(ZooConfig(models=("unet", "sid_unet"), data="photos/mine"), tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| unet"))
    assert "| 14 -> 0.5 |" in line
    assert "| 2.5 / 1.25~ |" in line
    assert "| 0.2200 | 0.1700 | 0.1780 | +0.0500 | +0.0420 |" in line
    assert line.startswith("| unet | done | colorize |")
    assert "| ONNX Runtime ms, fp32 / int8 |" in text
    assert "| TensorRT ms, int8 |" in text
    assert "2 of 2 models through the whole path, 2 better than doing nothing" in text
    assert "--data mine" in text
    assert "**unet · TensorRT INT8, sid_unet · TensorRT INT8** (unsupported): layer mix: operator Einsum" in text
    page = (tmp_path / "index.html").read_text()
    assert 'href="models/unet/run/report/index.html"' in page
    assert page.count("data:image/jpeg") == 2 * 5
    assert "$" not in page.split("<script>")[0].split("</style>")[1]
    known = json.loads((tmp_path / "zoo.json").read_text())["pictures"][0]
    assert [tile["label"] for tile in known["tiles"]] == ["Input", "Do nothing", "Teacher", "Shipped", "Ground truth"]
    assert all((tmp_path / tile["file"]).is_file() for tile in known["tiles"])


def test_other_machines_and_busy_ones_are_named(calls: Calls, tmp_path: Path, make_row: MakeRow) -> None:
    def busy(*args: Any, **more: Any) -> BenchmarkRow:
        return make_row(*args, **more, interference=0.31, machine="elsewhere")

    calls.make_row = busy
    run_zoo(ZooConfig(models=("hdrnet",)), tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    assert "> Measured on another machine than the one named here: hdrnet." in text
    assert "care: hdrnet 31%." in text
    assert "hdrnet 31%" in (tmp_path / "index.html").read_text()


def test_psnr_gains_are_in_db(calls: Calls, tmp_path: Path) -> None:
    (row,) = run_zoo(ZooConfig(models=("sid_unet",)), tmp_path)["rows"]
    assert (row["metric"], row["idle_value"], row["teacher_value"], row["shipped_value"]) == ("psnr", 20.0, 24.0, 23.0)
    assert (row["teacher_margin"], row["shipped_margin"]) == (4.0, 3.0)


def test_finished_models_are_not_run_again(calls: Calls, tmp_path: Path) -> None:
    first = run_zoo(ZooConfig(models=("unet",)), tmp_path)
    again = run_zoo(ZooConfig(models=("unet", "hdrnet")), tmp_path)
    assert [name for name, verb in calls.verbs() if verb == "run"] == ["unet", "hdrnet"]
    assert again["rows"][0] == first["rows"][0]
    other = run_zoo(ZooConfig(models=("pix2pix",)), tmp_path)
    assert [row["model"] for row in other["rows"]] == ["pix2pix", "unet", "hdrnet"]
    changed = run_zoo(ZooConfig(models=("unet",), minutes=5), tmp_path)
    assert calls.verbs()[-2:] == [("unet", "train"), ("unet", "run")]
    assert [row["model"] for row in changed["rows"]] == ["unet"]
    own = run_zoo(ZooConfig(models=("unet", "hdrnet"), own_minutes={"unet": 5.0}), tmp_path)
    assert calls.verbs()[-2:] == [("unet", "train"), ("unet", "run")]  # nothing was run for it
    assert {row["model"]: row["minutes"] for row in own["rows"]} == {"pix2pix": 2.0, "unet": 5.0, "hdrnet": 2.0}
    text = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert "--minutes 2,unet=5" in text
    assert "where the table says no other" in text


def test_what_fails_is_a_row_and_the_others_go_on(calls: Calls, tmp_path: Path) -> None:
    calls.failing = {("unet", "train"): "loss: expected finite numbers, got nan", ("hdrnet", "run"): "no room"}
    content = run_zoo(ZooConfig(models=("unet", "hdrnet", "pix2pix")), tmp_path)
    rows = {row["model"]: row for row in content["rows"]}
    assert list(rows) == ["unet", "hdrnet", "pix2pix"]
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "done"]
    assert rows["unet"]["reason"] == "train: loss: expected finite numbers, got nan"
    assert rows["hdrnet"]["reason"] == "run: no room"
    assert ("unet", "run") not in calls.verbs()
    assert "**unet** (failed): train: loss: expected finite numbers, got nan" in (tmp_path / "zoo.md").read_text()
    calls.failing, calls.commands = {}, []
    again = run_zoo(ZooConfig(models=("unet", "hdrnet", "pix2pix")), tmp_path)
    assert {name for name, _ in calls.verbs()} == {"unet", "hdrnet"}
    assert [row["status"] for row in again["rows"]] == ["done"] * 3


def test_an_interrupted_zoo_keeps_what_is_finished(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_hdrnet(command: Sequence[str], log: Path, *, tick: Callable[[str], None]) -> dict[str, Any]:
        if "hdrnet" in command:
            raise KeyboardInterrupt
        return calls(command, log, tick=tick)

    monkeypatch.setattr(zoo, "call", stop_at_hdrnet)
    with pytest.raises(KeyboardInterrupt):
        run_zoo(ZooConfig(models=("unet", "hdrnet")), tmp_path)
    assert [row["model"] for row in json.loads((tmp_path / "zoo.json").read_text())["rows"]] == ["unet"]
    assert not (model_folder(tmp_path, "hdrnet") / "row.json").exists()


def test_a_real_training_is_read(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_row: MakeRow
) -> None:
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n\n\ndef build() -> nn.Module:\n    return nn.Conv2d(1, 2, 3, padding=1)\n"
    )
    name = f"{tmp_path}/tiny.py:build"

    def run_is_recorded(command: Sequence[str], log: Path, *, tick: Callable[[str], None]) -> dict[str, Any]:
        if command[3] == "train":
            return call(command, log, tick=tick)
        assert Path(command[list(command).index("--weights") + 1]).is_file()
        record(Path(command[list(command).index("--output") + 1]) / "report", make_row)
        return {}

    monkeypatch.setattr(zoo, "call", run_is_recorded)
    settings = ("train.perceptual_weight=0", "data.eval_photos=1")
    config = ZooConfig(models=(name,), minutes=0.004, input_size=(64, 64), threads=1, settings=settings)
    (row,) = run_zoo(config, tmp_path / "zoo")["rows"]
    assert row["status"] == "done", row["reason"]
    assert int(row["teacher"].split()[0]) >= 1
    assert "steps in" in row["teacher"]


def test_a_task_without_truth_compares_with_the_teacher(
    calls: Calls, make_row: MakeRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_truth(*args: Any, **more: Any) -> BenchmarkRow:
        stage, target, precision, lpips, ms = args
        reason = {"reason": more.pop("reason", None) or "lpips: no ground truth"}
        if lpips is not None:
            net = {"lpips_net": "lite", "lpips_vs_teacher": 0.0 if stage == "teacher" else lpips - 0.1}
            return make_row(stage, target, precision, None, ms, **{**more, **net, **reason})
        return make_row(stage, target, precision, None, ms, **more, **reason)

    calls.make_row = no_truth
    (row,) = run_zoo(ZooConfig(models=("adain",)), tmp_path)["rows"]
    assert (row["metric"], row["metric_to"], row["teacher_value"], row["teacher_margin"]) == (
        "lpips",
        "teacher",
        None,
        None,
    )
    assert row["shipped_value"] == pytest.approx(0.078)
    assert row["shipped_margin"] == pytest.approx(0.142)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"minutes": 0}, ConfigError, "--minutes: expected above 0, got 0"),
        ({"input_size": (0, 8)}, ConfigError, "--input-size: expected height and width"),
        ({"models": ("unett",)}, UnknownNameError, "fix: use 'unet'"),
        ({"models": ("chroma_unet",)}, UnknownNameError, "unknown teacher"),
        ({"targets": ("onx",)}, UnknownNameError, "fix: use 'onnx'"),
    ],
)
def test_wrong_settings(values: dict[str, Any], error: type[PareError], text: str) -> None:
    with pytest.raises(error, match=text.replace("(", r"\(")):
        ZooConfig(**values)


def test_the_command_line(calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["zoo", "-o", str(tmp_path), "--models", "unet,hdrnet", "--targets", "onnx", "--targets", "coreml"]
    argv.append("--quiet")
    assert main([*argv, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(tmp_path / "index.html")
    assert answer["settings"]["targets"] == ["onnx", "coreml"]
    assert [row["model"] for row in answer["rows"]] == ["unet", "hdrnet"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "ONNX Runtime INT8" in shown
    assert f"written: {tmp_path / 'index.html'}" in shown


def test_the_command_line_fails_when_nothing_got_through(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.failing = {("unet", "train"): "no photos"}
    assert main(["zoo", "-o", str(tmp_path), "--models", "unet", "--quiet"]) == 1
    assert "unet: train: no photos" in capsys.readouterr().out
