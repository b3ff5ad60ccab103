"""A network with a run-time control through every target and precision: an input of its own, and the right answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calibrated import save_calibrated

import export
from export.bundle import verify_bundle, write_bundle
from export.contract import contract_in
from export.golden import random_photo
from export.parity import check_parity, open_any
from export.registry import TARGETS, get_target, list_targets
from models.artifact import Artifact
from models.spec import Precision

SIZE = (32, 32)
CASES = [(name, precision) for name in list_targets() for precision in TARGETS[name].precisions]


@pytest.fixture(scope="module")
def quantized_two(two_inputs: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Calibrated across the range of the control."""
    levels = torch.linspace(0, 2, 9)[:, None]
    return save_calibrated(two_inputs, tmp_path_factory.mktemp("two"), size=SIZE, photos=9, levels=levels)


def make(target: str, precision: Precision, two: Artifact, quantized: Artifact, path: Path, **how: object) -> Artifact:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    source = quantized if precision is Precision.INT8 else two
    how = {"input_size": SIZE, **how}
    return row.load().export(source, path / f"two-{precision}{row.suffix}", precision=precision, **how)


@pytest.mark.parametrize(("target", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_the_control_is_an_input_of_the_artifact(
    target: str, precision: Precision, two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path
) -> None:
    made = make(target, precision, two_inputs, quantized_two, tmp_path)
    contract = contract_in(made)
    assert [(spec.name, spec.shape) for spec in contract.inputs] == [("input", (1, 3, *SIZE)), ("level", (1,))]
    assert check_parity(two_inputs, made, threads=1).passed
    runner, _ = open_any(made.path, threads=1)
    assert runner is not None
    photo = np.ascontiguousarray(random_photo(SIZE, seed=4).numpy())
    span = 0.0
    with runner, export.open_runner(two_inputs.path, threads=1) as eager:
        answers = {}
        for level in (0.0, 2.0):
            feeds = {"input": photo, "level": np.array([level], np.float32)}
            answers[level], want = runner.infer(feeds)["output"], eager.infer(feeds)["output"]
            span = float(want.max() - want.min())
            assert np.abs(answers[level] - want).max() <= get_target(target).tolerance[precision].largest * span
    assert np.abs(answers[0.0] - answers[2.0]).max() > 0.1 * span


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt", "coreml"])
def test_open_sizes_keep_the_control(
    target: str, two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path
) -> None:
    made = make(target, Precision.FP32, two_inputs, quantized_two, tmp_path, dynamic=True)
    assert contract_in(made).inputs[1].shape == (1,)
    assert check_parity(two_inputs, made, [random_photo((16, 48))], threads=1).passed


def test_core_ml_pictures_leave_the_control_an_array(
    two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path
) -> None:
    made = make("coreml", Precision.FP32, two_inputs, quantized_two, tmp_path, options={"image_input": "true"})
    assert contract_in(made).inputs[1].color_space == "control"
    photo = (random_photo(SIZE) * 255).round() / 255
    assert check_parity(two_inputs, made, [photo], threads=1).passed


def test_openvino_int8_follows_a_level_beyond_the_calibrated_ones(
    two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path
) -> None:
    made = make("openvino", Precision.INT8, two_inputs, quantized_two, tmp_path)
    photo = random_photo(SIZE, seed=20).numpy()
    gains = []
    with get_target("openvino").load().open_runner(made.path, threads=1) as runner:
        for level in (2.0, 4.0, 8.0):
            gains.append(runner.infer({"input": photo, "level": np.array([level], np.float32)})["output"] - photo)
    assert np.abs(gains[1] - gains[0]).max() > 0.1 * np.abs(gains[0]).max()
    assert np.abs(gains[2] - gains[1]).max() > 0.1 * np.abs(gains[0]).max()


def test_linear_quantizer_takes_a_control(two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path) -> None:
    made = make("coreml", Precision.INT8, two_inputs, quantized_two, tmp_path, options={"int8": "linear_quantizer"})
    assert check_parity(two_inputs, made, threads=1).passed


def test_the_bundle_carries_the_control(two_inputs: Artifact, quantized_two: Artifact, tmp_path: Path) -> None:
    made = [
        make(target, Precision.FP32, two_inputs, quantized_two, tmp_path)
        for target in ("onnx", "openvino", "tensorrt", "coreml")
    ]
    folder = write_bundle(made, tmp_path / "bundle", reference=two_inputs)
    with np.load(next((folder / "golden").glob("*.npz"))) as content:
        assert content["level"].shape == (1,)
        assert 0 <= float(content["level"][0]) <= 2
    assert all(check.status == "passed" for check in verify_bundle(folder, threads=1))
    text = (folder / "README.md").read_text()
    assert (
        "It takes `level`: float32, 1, values in [0, 2]. A strength that the app sets at run time, one value." in text
    )
    assert text.count('"level": level') >= 2
    assert 'context.set_tensor_address("level", level.data_ptr())' in text
    assert 'context->setTensorAddress("level", level);' in text
    assert '"level": level' in text.split("## Core ML")[1]
