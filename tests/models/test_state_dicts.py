"""Published names and shapes: what the authors' code stores must be what our networks take.

The lists in ``state_dicts/`` were recorded from the published code (``source``), ``{a..b}`` standing for a range.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded_names import recorded
from safetensors.torch import save_file

from models.artifact import load_weights
from models.errors import CheckpointError
from models.pretrained import load_encoder
from models.registry import load_object

FACTORIES = {
    "hdrnet": "models.hdrnet:hdrnet",
    "nafnet_w32": "models.nafnet:nafnet_w32",
    "pix2pix": "models.pix2pix:pix2pix",
    "restormer": "models.restormer:restormer_lite",
    "restormer_lite": "models.restormer:restormer_lite",
    "scunet": "models.scunet:scunet",
    "swinir": "models.swinir:swinir",
    "unet": "models.unet:unet",
}
ENCODERS = {
    "unet_convnext": "models.unet_convnext:ConvNeXtEncoder",
    "unet_efficientnet_b4": "models.unet_efficientnet:EfficientNetEncoder",
}


@pytest.mark.parametrize("name", sorted({**FACTORIES, **ENCODERS}))
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    kwargs, expected = recorded(name)
    with torch.device("meta"):
        net = load_object({**FACTORIES, **ENCODERS}[name])(**kwargs)
    found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    convert = getattr(net, "convert_state", dict)
    assert found == convert(expected)


def test_a_published_checkpoint_with_computed_buffers_loads(tmp_path: Path) -> None:
    net = load_object("models.swinir:swinir")(width=12, depths=(2,), heads=(2,))
    state = net.state_dict()
    state["layers.0.residual_group.blocks.1.attn_mask"] = torch.zeros(4, 64, 64)
    state["layers.0.residual_group.blocks.1.attn.relative_position_index"] = torch.zeros(64, 64)
    torch.save({"params": state}, tmp_path / "published.pth")
    other = load_object("models.swinir:swinir")(width=12, depths=(2,), heads=(2,))
    load_weights(other, tmp_path / "published.pth")
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    state["layers.0.unknown"] = torch.zeros(1)
    torch.save({"params": state}, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match=r"1 unknown \(first: \['layers.0.unknown'\]\)"):
        load_weights(other, tmp_path / "published.pth")


def test_encoder_weights_load_without_their_classifier(tmp_path: Path) -> None:
    make = load_object("models.unet_convnext:unet_convnext")
    net, other = (make(channels=(4, 8, 12, 16), depths=(1, 1, 1, 1)) for _ in range(2))
    state = {key: value.clone() for key, value in net.encoder.state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(10, 16), "norm.bias": torch.zeros(16)}, tmp_path / "all.safetensors")
    load_encoder(other, tmp_path / "all.safetensors")
    assert torch.equal(other.encoder.stages[2][0].pwconv1.weight, state["stages.2.0.pwconv1.weight"])
    save_file({**state, "stages.4.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="fix: pass a checkpoint with the published names of this encoder"):
        load_encoder(other, tmp_path / "other.safetensors")
