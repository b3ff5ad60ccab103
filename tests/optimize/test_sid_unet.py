"""SID U-Net, whose output is twice its input and whose ratio is an input, through every target and precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
KWARGS = {"width": 8, "deepest": 32}
CASES = [(name, precision) for name in list_targets() for precision in TARGETS[name].precisions]


@pytest.fixture(scope="module")
def sid(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The network at 8-32 channels, with a calibration record: an artifact for all precisions."""
    from export.quantization import Quantization

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("sid")
    task = get_task("low_light")
    inputs = torch.cat([task.prepare(random_photo(task.photo_size(SIZE), seed=seed))[0] for seed in range(8)])
    save_tensors({"input": inputs}, folder / "calibration.safetensors")
    record = Quantization(
        calibration=folder / "calibration.safetensors", samples=8, sha256=sha256_of(folder / "calibration.safetensors")
    )
    net = create_model("sid_unet", **KWARGS)
    for name, value in net.named_parameters():  # so that the answer depends on the input, and not on the biases
        torch.nn.init.zeros_(value) if name.endswith("bias") else torch.nn.init.kaiming_normal_(value, a=0.2)
    return save_network(
        net,
        folder / "sid.safetensors",
        model="sid_unet",
        task="low_light",
        model_kwargs=KWARGS,
        metadata={"quantization": record.to_json(folder)},
    )


@pytest.mark.parametrize(("target", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_every_target_amplifies_and_doubles(target: str, precision: Precision, sid: Artifact, tmp_path: Path) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    made = row.load().export(sid, tmp_path / f"sid{row.suffix}", precision=precision, input_size=SIZE)
    contract = contract_in(made)
    assert contract.inputs[1].name == "ratio"
    assert contract.outputs[0].shape == (1, 3, 64, 32)
    assert check_parity(sid, made, threads=1).passed


def test_int8_sees_dark_values(sid: Artifact, tmp_path: Path) -> None:
    """A value of 1/600 is under half a step of INT8: it must be amplified before anything is rounded."""
    for target in ("onnx", "openvino"):
        pytest.importorskip(target)
        row = get_target(target)
        made = row.load().export(sid, tmp_path / f"sid{row.suffix}", precision=Precision.INT8, input_size=SIZE)
        net = load_network(sid)
        dark = torch.rand(1, 4, *SIZE, generator=torch.Generator().manual_seed(0)) / 300
        with torch.inference_mode():
            want = net(dark, torch.tensor([300.0])).numpy()
            black = net(torch.zeros_like(dark), torch.tensor([300.0])).numpy()
        with row.load().open_runner(made.path, threads=1) as runner:
            got = runner.infer({"input": dark.numpy(), "ratio": np.array([300.0], np.float32)})["output"]
        assert np.abs(got - want).mean() < 0.5 * np.abs(black - want).mean()


def test_transposed_convolutions_are_pruned(sid: Artifact) -> None:
    spec = replace(get_spec("sid_unet"), defaults=KWARGS)
    net = load_network(sid)
    config = PruneConfig(pruning_ratio=0.5, round_to=2, importance="magnitude", scope="uniform")
    pruner = prepare(net, spec, config, input_size=SIZE)
    small = pruner.build(0.5)
    assert small.upv6.out_channels < net.upv6.out_channels
    assert small.upv6.in_channels < net.upv6.in_channels
    assert small.conv6_1.in_channels == small.upv6.out_channels + small.conv4_2.out_channels
    with torch.inference_mode():
        assert small(torch.rand(1, 5, 16, 16)).shape == (1, 3, 32, 32)
