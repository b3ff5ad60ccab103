"""The networks of raw, whose output is twice their input and whose ratio is an input, through every target."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.contract import contract_in
from export.golden import random_photo
from export.parity import check_parity
from export.registry import TARGETS, get_target, list_targets
from models.artifact import Artifact, load_network, save_network, save_tensors, sha256_of
from models.registry import create_model, get_spec, get_task
from models.spec import Precision
from optimize.prune import PruneConfig
from optimize.pruner import prepare

SIZE = (32, 16)
KWARGS: dict[str, dict[str, Any]] = {
    "sid_unet": {"width": 8, "deepest": 32},
    "raw_unet": {"reduction": 2, "widths": [8, 16], "depths": [1, 1]},
}


def cases() -> list[tuple[str, str, Precision]]:
    """Return INT8 everywhere and a float precision in two targets each; all with PARE_EVERY_EXPORT=1."""
    every = [
        (name, target, kind) for name in KWARGS for target in list_targets() for kind in TARGETS[target].precisions
    ]
    if os.environ.get("PARE_EVERY_EXPORT"):
        return every
    floats = {("sid_unet", Precision.FP32): ("onnx", "openvino"), ("raw_unet", Precision.FP16): ("tensorrt", "coreml")}
    return [case for case in every if case[2] is Precision.INT8 or case[1] in floats.get((case[0], case[2]), ())]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both networks, narrow, with a calibration record: artifacts for all precisions."""
    from export.quantization import Quantization

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("raw")
    task = get_task("low_light")
    inputs = torch.cat([task.prepare(random_photo(task.photo_size(SIZE), seed=seed))[0] for seed in range(8)])
    calibration = folder / "calibration.safetensors"
    save_tensors({"input": inputs}, calibration)
    record = Quantization(calibration=calibration, samples=8, sha256=sha256_of(calibration)).to_json(folder)
    made = {}
    for name, kwargs in KWARGS.items():
        net = create_model(name, **kwargs)
        for key, value in net.named_parameters():  # so that the answer depends on the input, and not on the biases
            if value.ndim > 1 and not key.startswith("demosaic"):
                torch.nn.init.kaiming_normal_(value, a=0.2)
            elif key.endswith("bias"):
                torch.nn.init.zeros_(value)
        how: dict[str, Any] = {"model": name, "task": "low_light", "model_kwargs": kwargs}
        made[name] = save_network(net, folder / f"{name}.safetensors", metadata={"quantization": record}, **how)
    return made


@pytest.mark.parametrize(("name", "target", "precision"), cases(), ids=str)
def test_every_target_amplifies_and_doubles(
    name: str, target: str, precision: Precision, sources: dict[str, Artifact], tmp_path: Path
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    made = row.load().export(sources[name], tmp_path / f"net{row.suffix}", precision=precision, input_size=SIZE)
    contract = contract_in(made)
    assert contract.inputs[1].name == "ratio"
    assert contract.outputs[0].shape == (1, 3, 64, 32)
    assert check_parity(sources[name], made, threads=1).passed


@pytest.mark.parametrize("name", list(KWARGS))
def test_int8_sees_dark_values(name: str, sources: dict[str, Artifact], tmp_path: Path) -> None:
    """A value of 1/600 is under half a step of INT8: it must be amplified before anything is rounded."""
    for target in ("onnx", "openvino"):
        pytest.importorskip(target)
        row = get_target(target)
        made = row.load().export(
            sources[name], tmp_path / f"net{row.suffix}", precision=Precision.INT8, input_size=SIZE
        )
        net = load_network(sources[name])
        dark = torch.rand(1, 4, *SIZE, generator=torch.Generator().manual_seed(0)) / 300
        with torch.no_grad():
            want = net(dark, torch.tensor([300.0])).numpy()
            black = net(torch.zeros_like(dark), torch.tensor([300.0])).numpy()
        with row.load().open_runner(made.path, threads=1) as runner:
            got = runner.infer({"input": dark.numpy(), "ratio": np.array([300.0], np.float32)})["output"]
        assert np.abs(got - want).mean() < 0.5 * np.abs(black - want).mean()


def test_transposed_convolutions_are_pruned(sources: dict[str, Artifact]) -> None:
    spec = replace(get_spec("sid_unet"), defaults=KWARGS["sid_unet"])
    net = load_network(sources["sid_unet"])
    config = PruneConfig(pruning_ratio=0.5, round_to=2, importance="magnitude", scope="uniform")
    pruner = prepare(net, spec, config, input_size=SIZE)
    small = pruner.build(0.5)
    assert small.upv6.out_channels < net.upv6.out_channels
    assert small.upv6.in_channels < net.upv6.in_channels
    assert small.conv6_1.in_channels == small.upv6.out_channels + small.conv4_2.out_channels
    with torch.inference_mode():
        assert small(torch.rand(1, 5, 16, 16)).shape == (1, 3, 32, 32)


def test_the_student_is_pruned_and_keeps_its_twelve_planes(sources: dict[str, Artifact]) -> None:
    spec = replace(get_spec("raw_unet"), defaults=KWARGS["raw_unet"])
    net = load_network(sources["raw_unet"])
    config = PruneConfig(pruning_ratio=0.5, round_to=2, importance="magnitude", scope="uniform")
    small = prepare(net, spec, config, input_size=SIZE).build(0.5)
    assert small.stem[0].out_channels < net.stem[0].out_channels
    assert small.demosaic.weight.shape == net.demosaic.weight.shape
    with torch.no_grad():
        assert small(torch.rand(1, 5, 16, 16)).shape == (1, 3, 32, 32)
