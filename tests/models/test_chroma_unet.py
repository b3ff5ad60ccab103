"""The student family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import create_model, get_spec
from models.chroma_unet import chroma_unet
from models.errors import ConfigError

TINY = {"widths": (8, 16), "depths": (0, 1)}


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_output_has_the_size_of_the_input(reduction: int) -> None:
    net = chroma_unet(reduction=reduction, **TINY).eval()
    with torch.inference_mode():
        out = net(torch.rand(2, 1, 32, 64))
    assert out.shape == (2, 2, 32, 64)
    assert torch.isfinite(out).all()


def test_the_output_is_linear_between_the_samples_of_the_reduced_resolution() -> None:
    net = chroma_unet(reduction=4, **TINY).eval()
    with torch.inference_mode():
        row = net(torch.rand(1, 1, 32, 32))[0, 0, 14, 2:-2]
    bends = ((row[2:] - 2 * row[1:-1] + row[:-2]).abs() > 1e-5).nonzero().flatten() + 3
    assert set((bends % 4).tolist()) <= {1, 2}


def test_channels_are_free() -> None:
    with torch.inference_mode():
        assert chroma_unet(4, 3, **TINY).eval()(torch.rand(1, 4, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("levels", [1, 3])
def test_levels_are_free(levels: int) -> None:
    net = chroma_unet(widths=(8,) * levels, depths=(1,) * levels).eval()
    with torch.inference_mode():
        assert net(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_every_weight_gets_a_gradient() -> None:
    net = chroma_unet(**TINY)
    net(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_the_default_takes_the_sizes_that_the_registry_states() -> None:
    spec = get_spec("chroma_unet")
    net = create_model("chroma_unet")
    assert spec.feature is not None
    assert isinstance(net.get_submodule(spec.feature), nn.Module)
    side = spec.size.fit(1, 1)[0]
    with torch.inference_mode():
        assert net(torch.rand(1, 1, side, side)).shape == (1, 2, side, side)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reduction": 3}, "reduction: expected 1, 2, 4 or 8, got 3; fix: choose one of these"),
        ({"widths": (8, 16), "depths": (1,)}, "levels: expected as many widths as depths, got 2 widths and 1 depths"),
        ({"widths": (), "depths": ()}, "levels: expected as many widths as depths, got 0 widths and 0 depths"),
    ],
)
def test_wrong_shapes_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chroma_unet(**kwargs)  # type: ignore[arg-type]
