"""The networks of colour balance are pruned, stored and reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.artifact import load_network, save_network
from models.registry import create_model, get_spec
from optimize.channel_groups import map_channels, mask_channels, remove_channels
from optimize.pruner import example_inputs

KWARGS: dict[str, dict[str, Any]] = {
    "balance_lut": {"widths": [8, 16], "basis": 8, "nodes": 4, "thumbnail": 16},
    "latent_balancer": {"block_out_channels": [8, 8], "norm_num_groups": 2, "width": 8, "depth": 1, "heads": 2},
}
KEPT = {"balance_lut": "tables", "latent_balancer": "autoencoder.decoder.conv_out"}


@pytest.mark.parametrize("name", sorted(KWARGS))
def test_half_of_the_channels_go_and_the_rest_reloads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = create_model(name, **KWARGS[name])
    last = net.tables if name == "balance_lut" else net.balancer.conv_out
    torch.nn.init.normal_(last.weight, std=0.05)
    channels = map_channels(net, example_inputs(get_spec(name), (32, 32)))
    assert list(channels.kept) == [KEPT[name]]  # the output layer, and no other
    removal = {group: list(range(group.units // 2)) for group in channels.groups}
    small, masked = remove_channels(net, removal).eval(), mask_channels(net, removal).eval()
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        out = small(x)
        if name == "balance_lut":  # no norm computes over channels here: exactly the masked network
            torch.testing.assert_close(out, masked(x), atol=1e-5, rtol=0)
        path = tmp_path / "small.safetensors"
        stored = save_network(small, path, model=name, task="balance", model_kwargs=KWARGS[name])
        assert torch.equal(load_network(stored)(x), out)
