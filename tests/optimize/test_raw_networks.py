"""The networks of raw, whose output is twice their input and whose ratio is an input, through every target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrated import calibration_record
from export_cases import Case, export_cases

from export.contract import contract_in
from export.golden import random_photo
from export.parity import check_parity
from export.registry import get_target
from models.artifact import Artifact, load_network, save_network
from models.registry import create_model, get_spec, get_task
from models.spec import Precision
from optimize.prune import PruneConfig
from optimize.pruner import prepare

SIZE = (32, 16)
KWARGS: dict[str, dict[str, Any]] = {
    "sid_unet": {"width": 8, "deepest": 32},
    "raw_unet": {"reduction": 2, "widths": [8, 16], "depths": [1, 1]},
}


FLOATS = {("sid_unet", Precision.FP32): ("onnx", "openvino"), ("raw_unet", Precision.FP16): ("tensorrt", "coreml")}


def usual(case: Case) -> bool:
    """INT8 everywhere, and a float precision in two targets each."""
    name, target, kind = case
    return kind is Precision.INT8 or target in FLOATS.get((name, kind), ())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both networks, narrow, with a calibration record: artifacts for all precisions."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("raw")
    task = get_task("low_light")
    inputs = torch.cat([task.prepare(random_photo(task.photo_size(SIZE), seed=seed))[0] for seed in range(8)])
    metadata = calibration_record(folder, inputs)
    made = {}
    for name, kwargs in KWARGS.items():
        net = create_model(name, **kwargs)
        for key, value in net.named_parameters():  # so that the answer depends on the input, and not on the biases
            if value.ndim > 1 and not key.startswith("demosaic"):
                torch.nn.init.kaiming_normal_(value, a=0.2)
            elif key.endswith("bias"):
                torch.nn.init.zeros_(value)
        how: dict[str, Any] = {"model": name, "task": "low_light", "model_kwargs": kwargs}
        made[name] = save_network(net, folder / f"{name}.safetensors", metadata=metadata, **how)
    return made


@pytest.mark.parametrize(("name", "target", "precision"), export_cases(KWARGS, usual), ids=str)
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
    net, ratio = load_network(sources[name]), torch.tensor([300.0])
    dark = torch.rand(1, 4, *SIZE, generator=torch.Generator().manual_seed(0)) / 300
    with torch.no_grad():
        want = net(dark, ratio).numpy()
        black = net(torch.zeros_like(dark), ratio).numpy()
    for target in ("onnx", "openvino"):
        pytest.importorskip(target)
        row = get_target(target)
        made = row.load().export(
            sources[name], tmp_path / f"net{row.suffix}", precision=Precision.INT8, input_size=SIZE
        )
        with row.load().open_runner(made.path, threads=1) as runner:
            got = runner.infer({"input": dark.numpy(), "ratio": ratio.numpy()})["output"]
        assert np.abs(got - want).mean() < 0.5 * np.abs(black - want).mean()


def halved(source: Artifact) -> tuple[Any, Any]:
    """Return the network of ``source``, and the same pruned by half, which still doubles its input."""
    net = load_network(source)
    spec = replace(get_spec(source.model), defaults=KWARGS[source.model])
    config = PruneConfig(pruning_ratio=0.5, round_to=2, importance="magnitude", scope="uniform")
    small = prepare(net, spec, config, input_size=SIZE).build(0.5)
    with torch.no_grad():
        assert small(torch.rand(1, 5, 16, 16)).shape == (1, 3, 32, 32)
    return net, small


def test_transposed_convolutions_are_pruned(sources: dict[str, Artifact]) -> None:
    net, small = halved(sources["sid_unet"])
    assert small.upv6.out_channels < net.upv6.out_channels
    assert small.upv6.in_channels < net.upv6.in_channels
    assert small.conv6_1.in_channels == small.upv6.out_channels + small.conv4_2.out_channels


def test_the_student_is_pruned_and_keeps_its_twelve_planes(sources: dict[str, Artifact]) -> None:
    net, small = halved(sources["raw_unet"])
    assert small.stem[0].out_channels < net.stem[0].out_channels
    assert small.demosaic.weight.shape == net.demosaic.weight.shape
