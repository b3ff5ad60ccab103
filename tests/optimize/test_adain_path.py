"""AdaIN, its style baked in and its strength an input, through targets, INT8 and pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibrated import calibration_record

from export.golden import random_photo, sample_photo
from export.parity import check_parity
from export.registry import get_target
from models.adain import pattern
from models.artifact import Artifact, load_network, save_network
from models.registry import create_model, get_spec, get_task
from models.spec import Precision
from optimize.prune import PruneConfig
from optimize.pruner import prepare
from optimize.sensitivity import Scorer
from optimize.simulation import SimulatedInt8

SIZE = (32, 32)
CASES = [
    ("onnx", Precision.INT8),
    ("openvino", Precision.INT8),
    ("tensorrt", Precision.FP16),
    ("coreml", Precision.FP16),
    ("coreml", Precision.INT8),
]


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny network in the built-in style, with a calibration record across the strengths."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("styled")
    photos = torch.cat([sample_photo(SIZE), *(random_photo(SIZE, seed=seed) for seed in range(7))])
    task = get_task("style")
    inputs = task.prepare(photos)[0]
    net = create_model("adain", width=4).bake(pattern((64, 64)))
    simulation = SimulatedInt8(net, inputs)
    noise = Scorer(simulation, task, photos).noise(simulation.layers)  # what the engines are held to
    return save_network(
        net,
        folder / "adain.safetensors",
        model="adain",
        task="style",
        model_kwargs={"width": 4},
        metadata=calibration_record(folder, inputs, noise=noise),
    )


@pytest.mark.parametrize(("target", "precision"), CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_the_strength_is_right_in_every_target(
    target: str, precision: Precision, styled: Artifact, tmp_path: Path
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    made = row.load().export(styled, tmp_path / f"a{row.suffix}", precision=precision, input_size=SIZE)
    assert check_parity(styled, made, threads=1).passed


def test_channels_are_pruned_with_the_baked_style(styled: Artifact) -> None:
    net = load_network(styled)
    config = PruneConfig(pruning_ratio=0.5, round_to=2, importance="magnitude", scope="uniform")
    small = prepare(net, get_spec("adain"), config, input_size=SIZE).build(0.5)
    assert small.encoder[5].out_channels < net.encoder[5].out_channels
    assert small.style_mean.shape[1] == small.encoder[29].out_channels == small.decoder[1].in_channels
    with torch.inference_mode():
        assert small(torch.rand(1, 4, 32, 32)).shape == (1, 3, 32, 32)
