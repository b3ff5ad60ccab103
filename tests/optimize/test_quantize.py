"""The INT8 stage: what it writes, what it refuses, and that its result exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.quantization import quantization_of
from models.artifact import Artifact, load_network
from models.errors import CheckpointError, ConfigError, DataError, QualityGateError
from models.photos import open_photos
from models.spec import Precision
from optimize import quantize
from optimize.quantize import QuantizeConfig, gate, run
from optimize.registry import get_stage
from optimize.stage import Stage, StageContext

CONFIG = QuantizeConfig(calibration_samples=6, sensitivity_photos=1, sensitivity_size=32, max_lpips_drop=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture
def result(tiny_student: Artifact, context: StageContext, folder: Path) -> Artifact:
    """The stage's result, computed once."""
    path = folder / quantize.RESULT
    return Artifact.load(path) if path.exists() else run(tiny_student, CONFIG, context, folder)


def test_the_module_is_a_stage() -> None:
    assert isinstance(get_stage("quantize"), Stage)
    assert get_stage("quantize").config_type() == QuantizeConfig()


def test_the_result_is_an_int8_torch_artifact(result: Artifact, tiny_student: Artifact) -> None:
    assert (result.format, result.precision) == ("torch", Precision.INT8)
    assert result.stages == (*tiny_student.stages, "quantize")
    assert result.parent_sha256 == tiny_student.sha256
    assert Artifact.load(result.path).metadata == result.metadata
    before, after = load_network(tiny_student).state_dict(), load_network(result).state_dict()
    assert all(bool((after[key] == value).all()) for key, value in before.items()), "weights stay as they were"


def test_the_record_and_the_scores(result: Artifact) -> None:
    record = quantization_of(result)
    assert record is not None
    assert record.inputs().shape == (6, 1, 64, 64)
    assert record.float_layers == ()
    assert record.noise is not None
    assert 0 < record.noise < 1
    metadata = result.metadata
    layers = [row["layer"] for row in metadata["sensitivity"]]
    assert list(record.ranges) == layers
    assert set(record.bias_corrections()) == set(layers)
    assert "head" in layers
    assert metadata["scores"]["simulated"] is True
    assert metadata["lpips_drop"] == pytest.approx(metadata["scores"]["lpips"] - metadata["float_scores"]["lpips"])
    assert metadata["scores"]["lpips"] != metadata["float_scores"]["lpips"]
    assert record.coverage["photos"] == 6
    assert 0 <= record.coverage["held_out_outside"]["worst"] <= 1
    assert any("calibrated on 6 photos" in text for text in metadata["warnings"])


def test_what_symmetric_rounding_costs_is_said(
    tiny_student: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.sensitivity import Scorer

    monkeypatch.setattr(Scorer, "drop", lambda *_, symmetric=False: 1.5 if symmetric else 0.0)
    made = run(tiny_student, CONFIG, context, tmp_path)
    assert made.metadata["lpips_drop_symmetric"] == 1.5
    assert any("TensorRT rounds" in text and "costs LPIPS-lite +1.5000" in text for text in made.metadata["warnings"])


def test_layers_stay_float_until_the_drop_is_small_enough(
    tiny_student: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.sensitivity import Scorer

    seen: list[int] = []

    def counted(self: Any, layers: Any, start: float, **_: Any) -> float:
        seen.append(len(layers))
        return 0.0 if len(layers) <= max(seen) - 2 else 0.5

    monkeypatch.setattr(Scorer, "drop", counted)
    made = run(tiny_student, replace(CONFIG, max_lpips_drop=0.3, max_float_share=1.0), context, tmp_path)
    record = quantization_of(made)
    assert record is not None
    assert len(record.float_layers) == 2
    kept = [row["layer"] for row in made.metadata["sensitivity"] if row["precision"] == "float"]
    assert sorted(kept) == sorted(record.float_layers)


def test_a_missed_aim_is_said_and_refuses_nothing(
    tiny_student: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.sensitivity import Scorer

    layers: list[int] = []

    def drop(self: Any, rounded: Any, start: float, **_: Any) -> float:
        layers.append(len(rounded))
        return 0.5 - 0.01 * (max(layers) - len(rounded))

    monkeypatch.setattr(Scorer, "drop", drop)
    config = replace(CONFIG, max_lpips_drop=None, aim_lpips_drop=1e-9, max_float_share=1.0)
    scored: list[float] = []
    monkeypatch.setattr("optimize.evaluate.evaluate", lambda *_, **__: {"lpips": scored.append(0.0) or len(scored)})
    made = run(tiny_student, config, context, tmp_path)
    assert made.path.exists()
    aim = made.metadata["aim"]
    assert (aim["lpips_drop"], aim["missed_by"]) == (1e-9, pytest.approx(1.0))
    assert aim["tried"]["0"] == 0.5
    assert aim["tried"]["1"] == pytest.approx(0.49)
    (said,) = (text for text in made.metadata["warnings"] if "the aim of LPIPS-lite" in text)
    assert "was missed by 1.0000; tried with layers in higher precision: 0 (+0.5000), 1 (+0.4900), 2 (+0.4800)" in said


def test_a_limit_is_the_aim_unless_one_is_set() -> None:
    assert QuantizeConfig().aim == quantize.DEFAULT_AIM
    assert QuantizeConfig(max_lpips_drop=0.1).aim == 0.1
    assert QuantizeConfig(max_lpips_drop=0.1, aim_lpips_drop=0.01).aim == 0.01


def test_the_gate() -> None:
    gate(0.5, QuantizeConfig(), lpips_net="lite")  # no limit: the gate of a run decides
    config = QuantizeConfig(max_lpips_drop=0.002)
    gate(0.002, config, lpips_net="lite")
    gate(-0.1, config, lpips_net="lite")
    gate(0.5, replace(config, allow_drop=True), lpips_net="lite")
    match = r"INT8: expected an LPIPS-lite drop of at most 0.002, got 0.0100; fix: .*--allow-drop"
    with pytest.raises(QualityGateError, match=match):
        gate(0.01, config, lpips_net="lite")


def test_a_result_that_breaks_the_gate_is_not_written(
    tiny_student: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.sensitivity import Scorer

    def refuse(drop: float, config: QuantizeConfig, *, lpips_net: str) -> None:
        gate(1.0, config, lpips_net=lpips_net)

    monkeypatch.setattr(Scorer, "drop", lambda *_, **__: 1.0)
    monkeypatch.setattr(quantize, "gate", refuse)
    with pytest.raises(QualityGateError, match=r"got 1\.0000"):
        run(tiny_student, replace(CONFIG, max_lpips_drop=0.1), context, tmp_path)
    assert not (tmp_path / quantize.RESULT).exists()


def test_what_cannot_be_quantized(result: Artifact, context: StageContext, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"expected a float artifact, got quantized.safetensors, quantized already"
    ):
        run(result, CONFIG, context, tmp_path)
    with pytest.raises(CheckpointError, match="expected a float artifact, got none"):
        run(None, CONFIG, context, tmp_path)


def test_calibration_photos_of_one_colour(tiny_student: Artifact, context: StageContext, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "red").mkdir()
    Image.new("RGB", (80, 80), (190, 20, 30)).save(tmp_path / "red" / "red.png")
    red = replace(context, calibration=open_photos(tmp_path / "red"))
    with pytest.raises(DataError, match=r"calibration photos: expected photos with light and dark places, got 6 crops"):
        run(tiny_student, CONFIG, red, tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "qat"}, "quantization method: expected ptq, got 'qat'"),
        ({"calibration_samples": 0}, "calibration_samples: expected 1 or more, got 0"),
        ({"sensitivity_size": 8}, "sensitivity_size: expected 32 or more, got 8"),
        ({"max_lpips_drop": -1.0}, "max_lpips_drop: expected 0 or more, got -1.0; fix: change --max-lpips-drop"),
        ({"aim_lpips_drop": -1.0}, "aim_lpips_drop: expected 0 or more, got -1.0; fix: change the recipe"),
        (
            {"max_lpips_drop": 0.01, "aim_lpips_drop": 0.02},
            "aim_lpips_drop: expected at most max_lpips_drop, 0.01, got 0.02; fix: lower it or leave it out",
        ),
        ({"max_float_share": 1.5}, "max_float_share: expected 0 to 1, got 1.5"),
    ],
)
def test_a_config_that_cannot_be(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        QuantizeConfig(**changes)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_result_exports_and_computes_the_simulated_picture(result: Artifact, tmp_path: Path, target: str) -> None:
    import numpy as np
    import torch

    from export import open_runner
    from export.registry import get_target
    from optimize.simulation import SimulatedInt8

    row = get_target(target)
    path = tmp_path / f"net{row.suffix}"
    made = row.load().export(result, path, precision=Precision.INT8, input_size=(64, 64))
    record = quantization_of(result)
    assert made.precision is Precision.INT8
    assert record is not None
    inputs = torch.from_numpy(record.inputs()[:1])
    simulation = SimulatedInt8(load_network(result), torch.from_numpy(record.inputs()))
    simulation.ranges = dict(record.ranges)
    simulation.corrections = {name: torch.from_numpy(value) for name, value in record.bias_corrections().items()}
    with torch.no_grad(), simulation.quantized(simulation.layers) as net:
        simulated = net(inputs).numpy()
    with open_runner(path, threads=1) as runner:
        output = runner.infer({"input": inputs.numpy()})["output"]
    assert float(np.abs(output - simulated).mean()) < 0.03 * float(np.abs(simulated).max())
