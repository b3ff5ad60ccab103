"""The pipeline: order, gates, resuming, what goes on after a failure and what does not. Stages, targets: stubs."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models
from benchmarks.machine import describe_machine
from benchmarks.row import BenchmarkRow
from benchmarks.run import Benchmark
from models.artifact import Artifact, load_network, save_network
from models.errors import (
    CheckpointError,
    DataError,
    ExportError,
    InputSizeError,
    MissingExtraError,
    OutOfReachError,
    QualityGateError,
    RunFolderError,
    TrainingError,
    UnsupportedError,
)
from models.spec import Precision
from optimize import pipeline, registry, shipping, steps
from optimize.pipeline import run_pipeline
from optimize.recipe import Recipe, combine


@dataclass(frozen=True)
class StubConfig:
    """Config of a stub stage."""

    amount: int = 1
    seed: int = 0


class Bench:
    """Stub stages and targets, and what happened in them."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.amounts: dict[str, int] = {}
        self.exports: list[str] = []
        self.contests = 0
        self.bundles: list[list[str]] = []
        self.lpips = {"teacher": 0.2, "distill": 0.205, "prune": 0.21, "quantize": 0.212}
        self.speedup: float | None = 1.5
        self.hooks: dict[str, Callable[[Path], None]] = {}
        self.broken: dict[str, Exception] = {}
        self.companion = ""

    def run(self, name: str) -> Callable[..., Artifact]:
        """Return ``run`` of the stub stage ``name``."""

        def stage(artifact: Artifact, config: StubConfig, data: Any, out: Path) -> Artifact:
            self.stages.append(name)
            self.amounts[name] = config.amount
            net = load_network(artifact)
            next(net.parameters()).data += 0.01 * (1 + config.amount)
            self.hooks.get(name, lambda path: None)(out)
            metadata = {"start": "scratch"} if name == "distill" else {"speedup": self.speedup}
            if name == "quantize":
                metadata = {"scores": {"lpips": self.lpips[name], "lpips_net": "lite"}}
            return save_network(
                net,
                out / f"{name}.safetensors",
                model=artifact.model,
                task=artifact.task,
                precision=Precision.INT8 if name == "quantize" else Precision.FP32,
                stages=(*artifact.stages, name),
                parent=artifact,
                model_kwargs=artifact.model_kwargs,
                metadata=metadata,
            )

        return stage

    def export(self, artifact: Artifact, output: Path, *, precision: Precision, **how: Any) -> Artifact:
        """Stand in for the converters."""
        label = f"{output.suffix[1:]} {precision}"
        self.exports.append(label)
        if label in self.broken:
            raise self.broken[label]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(artifact.sha256.encode() + str(precision).encode())
        if self.companion == output.with_suffix(".ort").name and output.suffix == ".onnx":
            output.with_suffix(".ort").write_bytes(b"mobile")
        return Artifact.create(output, format="onnx", parent=artifact, precision=precision)

    def benchmark(self, artifacts: list[Artifact], photos: Any, *, root: Path, **settings: Any) -> Benchmark:
        """Stand in for the contest."""
        self.contests += 1
        rows = []
        for artifact in artifacts:
            stage = artifact.stages[-1] if artifact.stages else "teacher"
            name = artifact.path.resolve()
            rows.append(
                BenchmarkRow(
                    model=artifact.model,
                    task=artifact.task,
                    stage=stage,
                    target=artifact.format,
                    precision=artifact.precision.value,
                    artifact=name.relative_to(root.resolve()).as_posix() if name.is_relative_to(root) else name.name,
                    sha256=artifact.sha256,
                    lpips=self.lpips[stage] + (0.0 if artifact.format == "torch" else self.lpips.get("engine", 0.0)),
                    lpips_net="lite",
                    lpips_vs_teacher=0.0,
                    latency_p50_ms=10.0 if stage == "teacher" else 1.0,
                    gmacs=1.0,
                    speedup=1.0 if stage == "teacher" else 10.0,
                    status="measured",
                )
            )
        values = {f"{row.artifact}@{row.device}": {"lpips": [row.lpips]} for row in rows}
        return Benchmark(tuple(rows), describe_machine(threads=1), {"photos": {"names": ["a"], "values": values}}, ())

    def bundle(
        self, artifacts: list[Artifact], output: Path, *, reference: Artifact, teacher: Artifact, **rest: Any
    ) -> Path:
        """Stand in for the bundle."""
        assert reference.format == "torch"
        assert teacher.stages == ("teacher",)
        output.mkdir(exist_ok=True)
        self.bundles.append([artifact.path.name for artifact in artifacts])
        return output


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Put the stubs in the place of stages, targets, LPIPS and the contest."""
    it = Bench()
    table = dict(registry.STAGES)
    for name in ("distill", "prune", "quantize"):
        module = types.ModuleType(f"stub_{name}")
        module.__dict__.update(name=name, config_type=StubConfig, run=it.run(name))
        monkeypatch.setitem(sys.modules, f"stub_{name}", module)
        table[name] = replace(registry.STAGES[name], module=f"stub_{name}")
    monkeypatch.setattr(registry, "STAGES", table)
    monkeypatch.setattr("export.target.Target.load", lambda self: types.SimpleNamespace(export=it.export))
    monkeypatch.setattr("benchmarks.run.benchmark", it.benchmark)
    monkeypatch.setattr("export.bundle.write_bundle", it.bundle)
    monkeypatch.setattr("benchmarks.metrics.load_lpips", lambda net, weights=None: None)

    def measure(self: Any, artifact: Artifact) -> dict[str, Any]:
        stage = artifact.stages[-1] if artifact.stages else "teacher"
        return {"lpips": it.lpips[stage], "lpips_net": "lite", "lpips_do_nothing": 0.3}

    monkeypatch.setattr(steps.StageJudge, "measure", measure)
    monkeypatch.setattr(pipeline, "stage_defaults", lambda name, recipe, photos, artifact=None: {})
    return it


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small colour photos."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(6):
        rgb = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher as an artifact."""
    torch.manual_seed(0)
    kwargs = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}
    net = models.create_model("chroma_unet", **kwargs)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(net, path, model="chroma_unet", task="colorize", stages=("teacher",), model_kwargs=kwargs)
    return path


@pytest.fixture
def recipe(photos: Path, weights: Path) -> Recipe:
    """Two targets, small photos."""
    flags = {
        "teacher.model": "chroma_unet",
        "teacher.weights": str(weights),
        "data.source": str(photos),
        "data.eval_fraction": 0.3,
        "input_size": [32, 32],
        "export.targets": ["onnx", "openvino"],
        "export.reference_targets": ["onnx"],
    }
    return combine(None, flags)


def names(folder: Path) -> list[str]:
    """Visible names in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def statuses(summary: Mapping[str, Any]) -> dict[str, str]:
    """``onnx int8`` -> status."""
    return {f"{row['target']} {row['precision']}": row["status"] for row in summary["artifacts"]}


def test_whole_run_leaves_everything_in_its_place(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    summary = run_pipeline(recipe, tmp_path / "run")
    root = tmp_path / "run"
    assert bench.stages == ["distill", "prune", "quantize"]
    assert names(root / "stages") == ["00-teacher", "01-distill", "02-prune", "03-quantize"]
    exported = [name for name in names(root / "artifacts") if not name.endswith(".json")]
    assert exported == [
        "chroma_unet-fp16.onnx",
        "chroma_unet-fp16.openvino",
        "chroma_unet-fp32.onnx",
        "chroma_unet-fp32.openvino",
        "chroma_unet-int8.onnx",
        "chroma_unet-int8.openvino",
        "reference",
    ]
    reference = [name for name in names(root / "artifacts" / "reference") if not name.endswith(".json")]
    assert reference == ["distill-chroma_unet-fp32.onnx", "teacher-chroma_unet-fp32.onnx"]
    int8 = Artifact.load(root / "artifacts" / "chroma_unet-int8.onnx")
    assert int8.stages == ("teacher", "distill", "prune", "quantize")
    assert int8.parent_sha256 == Artifact.load(root / "stages/03-quantize/quantize.safetensors").sha256
    assert json.loads((root / "skipped_photos.json").read_text())[0]["reason"] == "is not an image of a known format"
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["schema"] == 1
    assert report["recipe"]["input_size"] == [32, 32]
    assert [stage["stage"] for stage in report["stages"]] == ["distill", "prune", "quantize"]
    assert {(row["target"], row["stage"]) for row in report["rows"]} >= {("torch", "teacher"), ("onnx", "quantize")}
    assert "The distillation started from random weights." in report["notes"]
    assert (summary["best"]["speedup"], summary["best"]["is_noisy"]) == (10.0, False)
    assert set(statuses(summary).values()) == {"built"}


@pytest.mark.parametrize(("student", "amount"), [(0.205, 7), (0.5, 1)], ids=["taken", "refused"])
def test_a_stage_is_set_for_the_network_that_it_gets(
    bench: Bench, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: float, amount: int
) -> None:
    def defaults(name: str, recipe: Recipe, photos: Any, artifact: Artifact | None = None) -> dict[str, Any]:
        planned = artifact is None and "distill" in recipe.stages
        return {"amount": 7} if planned or (artifact and artifact.stages[-1:] == ("distill",)) else {}

    monkeypatch.setattr(pipeline, "stage_defaults", defaults)
    bench.lpips["distill"] = student
    run_pipeline(recipe, tmp_path / "run")
    assert bench.amounts["prune"] == amount
    run_pipeline(recipe, tmp_path / "run")
    assert bench.stages == ["distill", "prune", "quantize"]  # the same plan: the folder is taken, nothing runs again


def test_second_run_does_nothing_again(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    first = run_pipeline(recipe, tmp_path / "run")
    again = run_pipeline(recipe, tmp_path / "run")
    assert again == first
    assert len(bench.stages) == 3
    assert len(bench.exports) == 8
    assert bench.contests == 1
    assert len(bench.bundles) == 1


def test_resume_runs_only_what_changed(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    run_pipeline(recipe, tmp_path / "run")
    changed = replace(recipe, options={"prune": {"amount": 2}})
    with pytest.raises(RunFolderError, match=r"a run of another recipe: prune.amount \(1, now 2\)"):
        run_pipeline(changed, tmp_path / "run")
    bench.stages.clear()
    run_pipeline(changed, tmp_path / "run", policy="resume")
    assert bench.stages[0] == "prune"
    assert "distill" not in bench.stages
    bench.stages.clear()
    run_pipeline(changed, tmp_path / "run", policy="overwrite")
    assert bench.stages == ["distill", "prune", "quantize"]


def test_no_old_report_or_bundle_stands_for_a_run_that_is_under_way(
    bench: Bench, recipe: Recipe, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    run_pipeline(recipe, root)
    first = (root / "report" / "report.json").read_text()
    seen: list[list[str]] = []

    def stop(out: Path) -> None:
        seen.append([name for name in ("report", "bundle") if (root / name).exists()])
        raise KeyboardInterrupt

    bench.hooks["quantize"] = stop
    changed = replace(recipe, options={"quantize": {"amount": 2}})
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(changed, root, policy="resume")
    assert seen == [[]]
    assert not (root / "report").exists()
    assert (root / ".before" / "report" / "report.json").read_text() == first
    del bench.hooks["quantize"]
    run_pipeline(recipe, root, policy="resume")  # back to what the old report is about: it is brought back
    assert (root / "report" / "report.json").read_text() == first
    assert (bench.contests, len(bench.bundles)) == (1, 1)
    run_pipeline(changed, root, policy="resume")
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["recipe"]["quantize"]["amount"] == 2
    assert (root / "bundle").is_dir()
    assert not (root / ".before").exists()


def test_changed_photos_run_the_stages_again(
    bench: Bench, recipe: Recipe, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(recipe, tmp_path / "run")
    extra = photos / "7.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(extra)
    try:
        run_pipeline(recipe, tmp_path / "run")
    finally:
        extra.unlink()
    assert bench.stages == ["distill", "prune", "quantize"] * 2


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"data": {"calibration": "other"}}, ["quantize"]),
        ({"threads": 1}, ["prune"]),
        ({"data": {"eval": "other"}}, ["distill", "prune", "quantize"]),
        ({"benchmark": {"iterations": 7}}, []),
        ({"data": {"source": "other"}}, ["distill", "prune", "quantize"]),
    ],
)
def test_a_change_runs_the_stages_that_depend_on_it_and_no_other(
    bench: Bench, recipe: Recipe, tmp_path: Path, photos: Path, change: dict[str, Any], again: list[str]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for index in range(4):
        rgb = np.random.default_rng(20 + index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{index}.png")
    run_pipeline(recipe, tmp_path / "run")
    bench.stages.clear()
    values = {key: str(folder) if value == "other" else value for key, value in change.get("data", {}).items()}
    parts = {
        "data": replace(recipe.data, **values),
        "benchmark": replace(recipe.benchmark, **change.get("benchmark", {})),
    }
    changed = replace(recipe, **parts, threads=change.get("threads"))
    run_pipeline(changed, tmp_path / "run", policy="resume")
    assert bench.stages == again


def test_other_lpips_weights_at_the_same_place_run_the_stages_again(
    bench: Bench, recipe: Recipe, tmp_path: Path
) -> None:
    weights = tmp_path / "squeeze.safetensors"
    weights.write_bytes(b"one")
    chosen = replace(recipe, lpips_weights=weights)
    run_pipeline(chosen, tmp_path / "run")
    run_pipeline(chosen, tmp_path / "run")
    assert bench.stages == ["distill", "prune", "quantize"]
    weights.write_bytes(b"another")
    run_pipeline(chosen, tmp_path / "run")
    assert bench.stages == ["distill", "prune", "quantize"] * 2


def test_interrupted_stage_goes_on_with_its_checkpoint(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    seen = []

    def stop(out: Path) -> None:
        seen.append((out / "x.checkpoint").exists())
        (out / "x.checkpoint").write_text("half")
        if len(seen) == 1:
            raise KeyboardInterrupt

    bench.hooks["prune"] = stop
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(recipe, tmp_path / "run")
    record = json.loads((tmp_path / "run/stages/02-prune/stage.json").read_text())
    assert (record["status"], record["reason"]) == ("running", "interrupted")
    run_pipeline(recipe, tmp_path / "run")
    assert seen == [False, True]
    assert bench.stages == ["distill", "prune", "prune", "quantize"]


@pytest.mark.parametrize(
    "error", [TrainingError("loss: expected a finite number, got nan; fix: lower the rate"), DataError("one colour")]
)
def test_bad_training_or_data_ends_the_run_and_keeps_what_is_finished(
    bench: Bench, recipe: Recipe, tmp_path: Path, error: Exception
) -> None:
    def fail(out: Path) -> None:
        raise error

    bench.hooks["quantize"] = fail
    with pytest.raises(type(error), match=str(error)):
        run_pipeline(recipe, tmp_path / "run")
    record = json.loads((tmp_path / "run/stages/03-quantize/stage.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", str(error))
    del bench.hooks["quantize"]
    run_pipeline(recipe, tmp_path / "run")
    assert bench.stages == ["distill", "prune", "quantize", "quantize"]


def test_full_disk_ends_the_run_with_a_clear_text(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        raise OSError(28, "No space left on device")

    bench.hooks["distill"] = fail
    with pytest.raises(RunFolderError, match=r"01-distill: expected room to write, .*No space left.*run the same comm"):
        run_pipeline(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    "error",
    [UnsupportedError("no channels to prune"), RuntimeError("index 3 is\nout of bounds"), LookupError("an odd error")],
)
def test_stage_that_cannot_be_done_is_left_out(bench: Bench, recipe: Recipe, tmp_path: Path, error: Exception) -> None:
    def fail(out: Path) -> None:
        raise error

    bench.hooks["prune"] = fail
    with pytest.raises(UnsupportedError, match=r"stage prune: expected a network .*; fix: pass --keep-going to go on"):
        run_pipeline(recipe, tmp_path / "run")
    assert bench.stages == ["distill", "prune"]
    summary = run_pipeline(recipe, tmp_path / "run", keep_going=True)
    assert bench.stages == ["distill", "prune", "prune", "quantize"]
    assert [stage["accepted"] for stage in summary["stages"]] == [True, False, True]
    assert " ".join(str(error).split()) in summary["stages"][1]["reason"]
    int8 = Artifact.load(tmp_path / "run/artifacts/chroma_unet-int8.onnx")
    assert int8.stages == ("teacher", "distill", "quantize")


def test_a_speed_out_of_reach_does_not_stop_the_run(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        raise OutOfReachError("pruning target: expected 1.25x, got 1.1x")

    bench.hooks["prune"] = fail
    summary = run_pipeline(recipe, tmp_path / "run")
    assert [stage["accepted"] for stage in summary["stages"]] == [True, False, True]


def test_stage_over_the_gate_is_reported_and_left_out(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    bench.lpips["prune"] = 0.25
    bench.lpips["quantize"] = 0.21
    summary = run_pipeline(recipe, tmp_path / "run")
    assert "LPIPS-lite 0.2500 is 0.0500 above the teacher's; the gate is 0.02" in summary["stages"][1]["reason"]
    assert Artifact.load(tmp_path / "run/artifacts/chroma_unet-fp32.onnx").stages == ("teacher", "distill")
    bench.stages.clear()
    allowed = replace(recipe, gate=replace(recipe.gate, allow_drop=True))
    summary = run_pipeline(allowed, tmp_path / "run", policy="resume")
    assert [stage["accepted"] for stage in summary["stages"]] == [True, True, True]
    assert bench.stages == ["quantize"]


def test_pruning_without_gain_is_left_out(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    bench.speedup = 1.01
    summary = run_pipeline(recipe, tmp_path / "run")
    assert summary["stages"][1]["reason"] == "only 1.01x faster than before, the least worth having is 1.05x"
    bench.speedup = None
    summary = run_pipeline(replace(recipe, seed=1), tmp_path / "run", policy="overwrite")
    assert summary["stages"][1]["accepted"]


def test_refused_quantization_leaves_the_int8_rows_with_the_reason(
    bench: Bench, recipe: Recipe, tmp_path: Path
) -> None:
    def fail(out: Path) -> None:
        raise QualityGateError("INT8: expected a drop of 0.01, got 0.05; fix: --allow-drop")

    bench.hooks["quantize"] = fail
    summary = run_pipeline(recipe, tmp_path / "run")
    assert statuses(summary)["onnx int8"] == "failed"
    assert statuses(summary)["onnx fp16"] == "built"
    rows = json.loads((tmp_path / "run/report/report.json").read_text())["rows"]
    row = next(row for row in rows if row["target"] == "onnx" and row["precision"] == "int8")
    assert row["stage"] == "quantize"
    assert row["latency_p50_ms"] is None
    assert "expected a drop of 0.01, got 0.05" in row["reason"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (MissingExtraError("openvino", "openvino"), "unsupported", "pip install 'pare\\[openvino\\]'"),
        (UnsupportedError("an .ort file: expected fp32, got fp16"), "unsupported", "expected fp32, got fp16"),
        (ExportError("OpenVINO: expected a, got b; fix: c"), "failed", "OpenVINO: expected a, got b; fix: c"),
        (KeyError("weird"), "failed", "KeyError: 'weird'"),
    ],
)
def test_target_that_fails_becomes_a_row_and_the_others_go_on(
    bench: Bench, recipe: Recipe, tmp_path: Path, error: Exception, status: str, text: str
) -> None:
    bench.broken["openvino fp16"] = error
    ends = status == "failed"  # what the target has not, by design or for want of a package, ends no run
    if ends:
        with pytest.raises(
            ExportError, match=r"export: expected every artifact, got openvino fp16: .*pass --keep-going"
        ):
            run_pipeline(recipe, tmp_path / "run")
        assert len(bench.exports) == 8
    summary = run_pipeline(recipe, tmp_path / "run", keep_going=ends)
    assert len(bench.exports) == (9 if ends else 8)
    assert statuses(summary)["openvino fp16"] == status
    assert [s for label, s in statuses(summary).items() if label != "openvino fp16"] == ["built"] * 5
    rows = json.loads((tmp_path / "run/report/report.json").read_text())["rows"]
    row = next(row for row in rows if row["target"] == "openvino" and row["precision"] == "fp16")
    assert row["status"] == status
    assert re.search(text, row["reason"])


def test_precision_that_a_target_lacks_is_unsupported(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    export = replace(recipe.export, precisions=(Precision.FP32, Precision.BF16))
    summary = run_pipeline(replace(recipe, export=export), tmp_path / "run")
    assert statuses(summary) == {
        "onnx fp32": "built",
        "onnx bf16": "unsupported",
        "openvino fp32": "built",
        "openvino bf16": "built",
    }


def test_artifact_over_the_gate_is_rejected_and_the_rest_shipped(
    bench: Bench, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bench.benchmark

    def spoiled(artifacts: list[Artifact], photos: Any, **kwargs: Any) -> Benchmark:
        result = original(artifacts, photos, **kwargs)
        rows = [replace(r, lpips=0.3) if r.artifact.endswith("int8.onnx") else r for r in result.rows]
        return replace(result, rows=tuple(rows))

    monkeypatch.setattr("benchmarks.run.benchmark", spoiled)
    bench.companion = "chroma_unet-int8.ort"
    summary = run_pipeline(recipe, tmp_path / "run")
    left = [name for name in names(tmp_path / "run/artifacts") if name.startswith("chroma_unet-int8.o")]
    assert left == ["chroma_unet-int8.openvino", "chroma_unet-int8.openvino.json"]
    files = ["chroma_unet-int8.onnx", "chroma_unet-int8.onnx.json", "chroma_unet-int8.ort"]
    assert names(tmp_path / "run/rejected") == files
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    (rejected,) = (row for row in report["rows"] if "not shipped" in (row["reason"] or ""))
    assert rejected["artifact"] == "rejected/chroma_unet-int8.onnx"
    assert "rejected/chroma_unet-int8.onnx@cpu" in report["photos"]["values"]
    assert statuses(summary)["onnx int8"] == "failed"
    assert len(bench.bundles[0]) == 5
    assert "chroma_unet-int8.onnx" not in bench.bundles[0]
    assert "not shipped: LPIPS 0.1000 above the teacher's, the gate is 0.02" in next(
        row["reason"] for row in summary["artifacts"] if row["status"] == "failed"
    )
    exports = len(bench.exports)
    assert run_pipeline(recipe, tmp_path / "run") == summary
    assert (len(bench.exports), bench.contests) == (exports, 1)


def test_nothing_left_to_ship_is_an_error_with_a_report(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    bench.lpips["engine"] = 0.5
    with pytest.raises(QualityGateError, match=r"expected an artifact to ship, .*raise --max-lpips-drop, or pass --al"):
        run_pipeline(recipe, tmp_path / "run")
    assert (tmp_path / "run/report/report.json").exists()


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ExportError("layer head: operator fft2 is not known"), "write the operators that are named in another way"),
        (MissingExtraError("onnx", "onnxruntime"), "do what the reasons say, or export to other targets"),
    ],
    ids=["refused", "missing"],
)
def test_no_target_that_takes_the_network_is_an_error_that_helps(
    bench: Bench, recipe: Recipe, tmp_path: Path, error: Exception, fix: str
) -> None:
    labels = [f"{target} {precision}" for target in ("onnx", "openvino") for precision in ("fp32", "fp16", "int8")]
    bench.broken = dict.fromkeys(labels, error)
    with pytest.raises(ExportError, match=f"run: expected an artifact to ship, got {', '.join(labels)}: ") as raised:
        run_pipeline(recipe, tmp_path / "run", keep_going=True)
    assert str(raised.value).count(str(error)) == 1  # not once more for the references
    assert fix in str(raised.value)
    assert "max-lpips-drop" not in str(raised.value)
    assert str(tmp_path / "run/report/report.md") in str(raised.value)
    assert (tmp_path / "run/report/report.json").exists()
    if isinstance(error, ExportError):
        with pytest.raises(ExportError, match="export: expected every artifact") as raised:
            run_pipeline(recipe, tmp_path / "run")
        assert "--keep-going" not in str(raised.value)


def test_what_is_refused_and_what_breaks_the_gate_get_both_fixes(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    bench.lpips["engine"] = 0.5
    bench.broken["openvino fp16"] = ExportError("operator fft2 is not known")
    with pytest.raises(QualityGateError, match=r"raise --max-lpips-drop, or pass --allow-drop; write the operators"):
        run_pipeline(recipe, tmp_path / "run", keep_going=True)


def test_no_int8_without_a_quantize_stage(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    summary = run_pipeline(replace(recipe, stages=("distill",)), tmp_path / "run")
    assert [row["precision"] for row in summary["artifacts"]] == ["fp32", "fp16"] * 2


def test_without_stages_the_teacher_itself_is_exported(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    summary = run_pipeline(replace(recipe, stages=()), tmp_path / "run")
    assert [row["status"] for row in summary["artifacts"]] == ["built"] * 4
    assert Artifact.load(tmp_path / "run/artifacts/chroma_unet-fp16.onnx").stages == ("teacher",)


def test_leftovers_of_an_earlier_run_are_removed(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    run_pipeline(recipe, tmp_path / "run")
    side = tmp_path / "run/artifacts/chroma_unet-fp32.onnx.cache"
    side.write_text("written by the target")
    fewer = replace(recipe, export=replace(recipe.export, targets=("onnx",)))
    run_pipeline(fewer, tmp_path / "run", policy="resume")
    left = names(tmp_path / "run/artifacts")
    assert not [name for name in left if "openvino" in name]
    assert side.name in left


def test_size_that_the_network_cannot_take(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputSizeError, match="multiple of 32, got 40x40; fix: resize, crop or pad to 64x64"):
        run_pipeline(replace(recipe, input_size=(40, 40)), tmp_path / "run")
    assert bench.stages == []


def test_truncated_teacher_is_named(bench: Bench, recipe: Recipe, tmp_path: Path, weights: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    broken = replace(recipe, teacher=replace(recipe.teacher, weights=cut))
    with pytest.raises(CheckpointError, match=r"cut.safetensors: expected a readable checkpoint"):
        run_pipeline(broken, tmp_path / "run")


def test_gpu_that_is_absent(bench: Bench, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UnsupportedError, match="device: expected a CUDA GPU that PyTorch sees, got none; fix: pass --de"
    ):
        run_pipeline(replace(recipe, device="cuda"), tmp_path / "run")


def test_launcher_of_several_processes_is_refused(
    bench: Bench, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="expected one process, got 2 of a launcher; fix: launch train, distill"):
        run_pipeline(recipe, tmp_path / "run")


def test_summary_without_timings_has_no_best(bench: Bench, recipe: Recipe, tmp_path: Path) -> None:
    run = types.SimpleNamespace(rows=[], shipped=[], root=tmp_path)
    assert shipping.best_row(run) is None  # type: ignore[arg-type]
