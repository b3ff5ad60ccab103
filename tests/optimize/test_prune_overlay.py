"""Structured pruning of the overlay networks: what is left computes what the whole does without those channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.artifact import load_network, save_network
from models.registry import create_model, get_spec
from optimize.prune import PruneConfig, run
from optimize.stage import StageContext


@pytest.mark.parametrize("name", ["overlay_unet", "film_unet"])
def test_channels_go_film_with_them(name: str, context: StageContext, tmp_path: Path) -> None:
    kwargs = {"widths": [16, 32], "depths": [1, 1]}
    net = create_model(name, **kwargs)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    whole = save_network(net, tmp_path / "whole.safetensors", model=name, task=get_spec(name).task, model_kwargs=kwargs)
    config = PruneConfig(pruning_ratio=0.5, round_to=8, fine_tune=False, engines=("torch",))
    made = run(whole, config, replace(context, input_size=(32, 32)), tmp_path)
    small = load_network(made)
    count = [sum(p.numel() for p in part.parameters()) for part in (net, small)]
    assert count[1] < 0.6 * count[0]
    channels = small.encoder[1][0].conv2.out_channels
    assert channels < 32
    if name == "film_unet":
        assert small.encoder_film[1].scale.shape == (channels,)
    with torch.inference_mode():
        assert small(torch.rand(1, get_spec(name).packed_channels, 32, 32)).shape == (1, 1, 32, 32)
