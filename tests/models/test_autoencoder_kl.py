"""The KL autoencoder: published names and shapes, sizes, the divergence, and checkpoints in older names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_names import recorded
from safetensors.torch import save_file
from torch import distributions

from models.artifact import load_weights
from models.autoencoder_kl import AutoencoderKL, autoencoder_kl, gaussian_kl, small_autoencoder
from models.errors import CheckpointError, ConfigError
from models.latent_balancer import AUTOENCODER

TINY: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}


@pytest.mark.parametrize(("name", "count"), [("sd_vae", 248), ("dummy", 124)])
def test_names_and_shapes_are_the_published_ones(name: str, count: int) -> None:
    kwargs, expected = recorded(f"diffusers/{name}")
    assert len(expected) == count
    with torch.device("meta"):
        net = autoencoder_kl(**kwargs)
        published = {key: torch.empty(shape) for key, shape in expected.items()}
    renamed = {key: tuple(value.shape) for key, value in AutoencoderKL.convert_state(published).items()}
    assert renamed == {key: tuple(value.shape) for key, value in net.state_dict().items()}


def test_a_checkpoint_with_the_older_attention_names_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = autoencoder_kl(**TINY), autoencoder_kl(**TINY)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in net.state_dict().items():
        for now, then in old.items():
            key = key.replace(f".{now}.", f".{then}.")
        is_old = any(f".{then}.weight" in key for then in old.values())
        state[key] = value[..., None, None].clone() if is_old else value  # as 1x1 convolutions, older still
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, tmp_path / "old.safetensors")
    load_weights(other, tmp_path / "old.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    del state["quant_conv.bias"]
    save_file(state, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first: \['quant_conv.bias'\]\)"):
        load_weights(other, tmp_path / "old.safetensors")


def test_moments_of_224_pixels_are_28x28x8() -> None:
    net = small_autoencoder().eval()
    with torch.no_grad():
        moments = net.quant_conv(net.encoder(torch.zeros(1, 3, 224, 224)))
        mean, log_variance = net.encode(torch.zeros(1, 3, 64, 32))
    assert moments.shape == (1, 8, 28, 28)
    assert mean.shape == log_variance.shape == (1, 4, 8, 4)
    assert net(torch.rand(1, 3, 64, 32)).shape == (1, 3, 64, 32)


def test_the_divergence_is_that_of_torch() -> None:
    values = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    first = distributions.Normal(values[0], (values[1] / 2).exp())
    second = distributions.Normal(values[2], (values[3] / 2).exp())
    torch.testing.assert_close(gaussian_kl(*values), distributions.kl_divergence(first, second))
    one, zero = torch.ones(1), torch.zeros(1)
    assert float(gaussian_kl(one, zero, zero, zero)) == pytest.approx(0.5)
    assert float(gaussian_kl(zero, zero, zero, math.log(4) * one)) == pytest.approx(0.5 * (0.25 - 1 + math.log(4)))


def test_the_training_losses_fall() -> None:
    torch.manual_seed(0)
    net = autoencoder_kl(**TINY)
    rgb = torch.rand(4, 3, 1, 1).expand(4, 3, 16, 16)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        values = net(rgb, rgb)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(values["loss"].item())
    assert set(values) == {"loss", "l1", "colour", "cast", "kl"}
    assert losses[-1] < 0.6 * losses[0]


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="channels in multiples of groups"):
        autoencoder_kl(block_out_channels=(6, 8), norm_num_groups=4)


def test_the_shipped_autoencoder_keeps_colours() -> None:
    net = small_autoencoder().eval()
    load_weights(net, AUTOENCODER)
    assert AUTOENCODER.with_suffix(".md").exists()
    assert AUTOENCODER.stat().st_size < 2e6
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(4, 3, 2, 2, generator=generator) * 0.6 + 0.2
    rgb = torch.nn.functional.interpolate(rgb, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        error = (net(rgb) - rgb).abs().mean()
    assert float(error) < 0.08
    assert float((rgb - rgb.mean(dim=1, keepdim=True)).abs().mean()) > 0.1  # an answer without chroma is 0.1 off
