"""What the report says of the stages: where the student started, what was pruned, what INT8 was calibrated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.artifact import Artifact, save_tensors
from optimize.accounts import notes, stage_accounts, told
from optimize.calibration import describe_coverage
from optimize.recipe import Recipe
from optimize.run_folder import StageRecord
from optimize.run_state import Run
from optimize.steps import StageResult

PRUNED = {"pruning_ratio": 0.256, "importance": "taylor", "params_m": [3.28, 2.31], "engines": ["openvino", "onnx"]}


def int8() -> dict[str, Any]:
    torch.manual_seed(0)
    coverage = {**describe_coverage(torch.rand(3, 3, 16, 16), photos=3), "warnings": ["calibrated on 3 photos"]}
    record = {"coverage": coverage, "float_layers": ["stem.0", "head"]}
    return {"quantization": record, "lpips_drop": 0.0012, "warnings": ["calibrated on 3 photos"]}


def run_of(tmp_path: Path, name: str, metadata: dict[str, Any], *, accepted: bool = True) -> Run:
    path = tmp_path / f"{name}.safetensors"
    save_tensors({"w": torch.ones(1)}, path)
    artifact = Artifact.create(path, format="torch", model="chroma_unet", task="colorize", metadata=metadata)
    reason = None if accepted else "LPIPS-lite 0.3 is 0.1 above the teacher's"
    record = StageRecord(name, "key", "finished", path.name, 3.0, accepted, reason, {"lpips": 0.2})
    return Run(tmp_path, Recipe(), {}, artifact, stages=[StageResult(record, artifact, True)])


def test_the_start_of_the_student_is_told() -> None:
    account = {"steps": 28, "crops": 1365, "teacher_runtime": "openvino bf16"}
    steps = "28 steps on 1365 answers of the teacher in openvino bf16"
    assert told({"start": "scratch", "kept": "result", "account": account}) == ["from scratch", steps]
    del account["crops"]
    assert told({"account": account}) == ["28 steps on the answers of the teacher in openvino bf16"]
    kept = "from the student that ships with Pare, which was kept"
    assert told({"start": "shipped", "kept": "start"}) == [kept]


def test_pruning_is_told_with_what_was_measured() -> None:
    sizes = ["26% of the channels by taylor", "3.28 to 2.31 M parameters"]
    assert told({**PRUNED, "speedup": 1.8, "fine_tuning": {}, "fine_tuning_used": True}) == [
        *sizes,
        "1.80x on openvino and onnx when chosen",
    ]
    assert told({**PRUNED, "speedup": None}) == [*sizes, "not fine-tuned"]
    assert told({**PRUNED, "fine_tuning": {}, "fine_tuning_used": False})[-1] == "fine-tuning made it worse, left out"


def test_calibration_and_layers_in_higher_precision_are_in_the_report(tmp_path: Path) -> None:
    run = run_of(tmp_path, "quantize", int8())
    (account,) = stage_accounts(run)
    assert account["note"].startswith("taken; calibrated on 3 inputs of 3 photos, ")
    assert account["note"].endswith("; layers in higher precision: stem.0, head; LPIPS +0.0012, simulated")
    assert account["float_layers"] == ["stem.0", "head"]
    assert account["coverage"]["photos"] == 3
    assert "INT8: calibrated on 3 photos." in notes(run)
    content = int8()
    content["quantization"]["float_layers"] = []
    assert "layers in higher precision: none" in told(content)


def test_a_stage_that_was_not_taken_says_why_in_both_places(tmp_path: Path) -> None:
    run = run_of(tmp_path, "distill", {"start": "narrowed"}, accepted=False)
    (account,) = stage_accounts(run)
    assert account["note"] == "not taken: LPIPS-lite 0.3 is 0.1 above the teacher's; from the teacher's channels"
    assert "The stage distill was not taken: LPIPS-lite 0.3 is 0.1 above the teacher's." in notes(run)


def test_a_stage_without_a_result_is_told_too(tmp_path: Path) -> None:
    run = run_of(tmp_path, "prune", {})
    run.stages[0] = replace(run.stages[0], artifact=None)
    assert stage_accounts(run)[0]["note"] == "taken"
