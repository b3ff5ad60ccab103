"""Quality against the level in the report of a contest, from real artifacts of a tiny tunable network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import contest_levels
from benchmarks.contest import Contestant
from benchmarks.quality import Scores
from benchmarks.report import write_report
from benchmarks.run import Benchmark, benchmark
from benchmarks.settings import Settings
from export import get_target
from models.artifact import Artifact, save_network
from models.errors import ConfigError
from models.registry import create_model
from models.spec import Precision

SIZE = (64, 64)


def settings(lite_weights: Path, **more: Any) -> Settings:
    """As little measuring as possible."""
    values: dict[str, Any] = {"input_size": SIZE, "threads": 1, "warmup": 0, "iterations": 3, "probes": False}
    return Settings(**{**values, "lpips_weights": lite_weights, "levels": 3, "level_photos": 2, "pictures": 0, **more})


def tunable(folder: Path, model: str, task: str, **kwargs: Any) -> Artifact:
    """Save a tiny network whose control does something, as a teacher."""
    torch.manual_seed(0)
    net = create_model(model, **kwargs)
    if model == "adafm":
        for name, parameter in net.named_parameters():
            if "transformer" in name:
                parameter.data.normal_(0, 0.5)
    path = folder / f"{model}.safetensors"
    return save_network(net, path, model=model, task=task, model_kwargs=kwargs, stages=("teacher",))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """A tiny AdaFM, and what ONNX Runtime makes of it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("levels")
    teacher = tunable(folder, "adafm", "denoise", width=8, depth=1)
    target = get_target("onnx").load()
    return [teacher, target.export(teacher, folder / "a.onnx", precision=Precision.FP32, input_size=SIZE)]


@pytest.fixture(scope="module")
def result(artifacts: list[Artifact], photos: np.ndarray[Any, Any], lite_weights: Path) -> Benchmark:
    """The contest of both."""
    return benchmark(artifacts, photos, settings=settings(lite_weights))


def test_each_artifact_has_a_curve_on_a_few_photos(result: Benchmark) -> None:
    content = result.details["levels"]
    assert (content["control"], content["photos"], content["left_out"]) == ("level", ["photo 0", "photo 1"], [])
    idle, teacher, exported = content["curves"]
    assert [one["name"] for one in content["curves"]] == [
        "doing nothing",
        "Teacher · PyTorch FP32",
        "Teacher · ONNX Runtime FP32",
    ]
    assert idle["psnr_db"][0] > idle["psnr_db"][1] > idle["psnr_db"][2]
    assert teacher["levels"] == (0.0, 0.5, 1.0)
    assert exported["psnr_db"] == pytest.approx(teacher["psnr_db"], abs=0.01)
    assert len(set(teacher["psnr_db"])) == 3
    assert exported["detour"] == pytest.approx(teacher["detour"], abs=1e-3)


def test_the_chart_is_in_every_file_of_the_report(result: Benchmark, tmp_path: Path) -> None:
    write_report(tmp_path, machine=result.machine, recipe={}, rows=result.rows, details=result.details)
    content = json.loads((tmp_path / "report.json").read_text())["levels"]
    assert len(content["curves"]) == 3
    page, text, svg = ((tmp_path / name).read_text() for name in ("index.html", "report.md", "levels.svg"))
    assert svg.count("<polyline") == 8  # three curves in two panels, and what the export changed in two more
    assert svg in page
    assert "![PSNR and LPIPS against level](levels.svg)" in text
    first = next(
        line for line in text.splitlines() if line.startswith("| Teacher · ONNX Runtime FP32 | ") and "/" in line
    )
    assert f"{content['curves'][2]['psnr_db'][0]:.2f} / {content['curves'][2]['lpips'][0]:.4f}" in first
    assert first.endswith(f"| {content['curves'][2]['detour']:.2f} | {content['curves'][2]['evenness']:.2f} |")
    for words in (text, page):
        assert "Measured on few photos: photo 0, photo 1." in words


def test_what_takes_too_long_is_left_out_with_its_time(
    artifacts: list[Artifact],
    photos: np.ndarray[Any, Any],
    lite_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("statistics.median", lambda times: 10_000.0)
    short = settings(lite_weights, max_seconds=85.0)  # 2 photos and one for the transition, 3 levels: 9 calls of 10 s
    result = benchmark(artifacts, photos, settings=short)
    monkeypatch.undo()
    assert [one["name"] for one in result.details["levels"]["curves"]] == ["doing nothing"]
    write_report(tmp_path, machine=result.machine, recipe={}, rows=result.rows, details=result.details)
    reason = "a photo takes 10 s, and 9 of them more than 85 s"
    said = f"Left out: Teacher · PyTorch FP32, Teacher · ONNX Runtime FP32: {reason}."
    assert said in (tmp_path / "report.md").read_text()
    assert said in (tmp_path / "index.html").read_text()
    assert not (tmp_path / "levels.svg").exists()


def test_without_a_ground_truth_the_teacher_is_what_is_compared_with(
    photos: np.ndarray[Any, Any], lite_weights: Path, tmp_path: Path
) -> None:
    teacher = tunable(tmp_path, "adain", "style", width=4)
    result = benchmark([teacher], photos, settings=settings(lite_weights, level_photos=1))
    idle, own = result.details["levels"]["curves"]
    assert own["psnr_db"] == (None, None, None)  # the same pictures
    assert own["lpips"] == pytest.approx((0, 0, 0), abs=1e-6)
    assert own["detour"] >= 1 - 1e-6
    assert all(value is not None for value in idle["psnr_db"])
    write_report(tmp_path / "report", machine=result.machine, recipe={}, rows=result.rows, details=result.details)
    assert "| Teacher · PyTorch FP32 | - / 0.0000 |" in (tmp_path / "report" / "report.md").read_text()


def test_nothing_without_a_control_or_when_turned_off(
    artifacts: list[Artifact], tiny_run: Path, photos: np.ndarray[Any, Any], lite_weights: Path, tmp_path: Path
) -> None:
    plain = Artifact.load(tiny_run / "teacher.safetensors")
    for chosen, more in ((plain, {}), (artifacts[0], {"levels": 0})):
        result = benchmark([chosen], photos, settings=settings(lite_weights, latency=False, **more))
        assert result.details["levels"] == {}
        write_report(tmp_path, machine=result.machine, recipe={}, rows=result.rows, details=result.details)
        assert "Quality by level" not in (tmp_path / "index.html").read_text()
    with pytest.raises(ConfigError, match="levels: expected levels of 0 or of 2 and more, on 1 photo or more, got 1 l"):
        settings(lite_weights, levels=1)


def test_engines_of_one_blend_are_one_curve(artifacts: list[Artifact], lite_weights: Path) -> None:
    _, exported = artifacts
    blends = [
        replace(exported, model="dni", sha256=f"{alpha}", model_kwargs={"alpha": alpha}, precision=precision)
        for precision in (Precision.FP32, Precision.INT8)
        for alpha in (1.0, 0.0)
    ]
    groups = contest_levels._with_control([Contestant(one, "cpu") for one in (exported, *blends[:3])])
    assert [[one.artifact.sha256 for one in group] for group in groups] == [[exported.sha256], ["0.0", "1.0"]]


def test_exports_of_earlier_stages_are_left_out(artifacts: list[Artifact]) -> None:
    _, early = artifacts
    late = replace(early, stages=("teacher", "prune"), sha256="late")
    both = [Contestant(one, "cpu", runner=object()) for one in (early, late)]  # type: ignore[arg-type]
    reasons = [contest_levels._why_not(one, both, Scores(), 1, 1.0) for one in both]
    assert reasons == ["the export of an earlier stage: it computes what that stage does in PyTorch", None]
