"""The networks of other projects in ``examples/``: shapes and names offline, published behaviour with ``PARE_DATA``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.metrics import psnr
from models.photos import centre_square, open_photos, to_batch
from models.registry import create_model, get_task
from models.spec import ModelSpec
from optimize.prune import PruneConfig
from optimize.pruner import analyse

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "sci.py:SCI": {"channels": 3},
    "zero_dce.py:ZeroDCE": {"width": 8},
    "dncnn.py:DnCNN": {"width": 8, "depth": 4},
    "fast_style.py:FastStyle": {"width": 8},
    "taef2.py:TAEF2": {"width": 8, "latents": 4},
}
WEIGHTS = {
    "sci.py:SCI": "sci/difficult.pt",
    "zero_dce.py:ZeroDCE": "zerodce/Epoch99.pth",
    "dncnn.py:DnCNN": "kair/dncnn_25.pth",
    "fast_style.py:FastStyle": "faststyle/wave.safetensors",
    "taef2.py:TAEF2": "taef2",
}
PARAMETERS = {
    "sci.py:SCI": 258,
    "zero_dce.py:ZeroDCE": 79_416,
    "dncnn.py:DnCNN": 555_137,
    "fast_style.py:FastStyle": 1_677_638,
    "taef2.py:TAEF2": 2_677_027,
}


def channels(name: str) -> int:
    """Channels of the input, and of the output."""
    return 1 if "DnCNN" in name else 3


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_example_keeps_the_size_of_its_input(name: str) -> None:
    net = create_model(f"{EXAMPLES / name}", task="image", **TINY[name])
    rgb = torch.rand(2, channels(name), 32, 64)
    with torch.inference_mode():
        out = net(rgb)
    assert out.shape == rgb.shape
    assert not torch.equal(out, rgb)
    assert torch.equal(net(rgb), out)


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_example_can_be_pruned_or_says_which_layer_cannot(name: str) -> None:
    net = create_model(f"{EXAMPLES / name}", task="image", **TINY[name])
    task = get_task(f"{EXAMPLES}/dncnn.py:NoisyGrey" if "DnCNN" in name else "image")
    spec = ModelSpec("own", "image", "none", inputs=task.inputs, outputs=task.outputs)
    found = analyse(net, spec, PruneConfig())
    assert found.groups
    assert all(reason for reason in found.kept.values())
    assert not any("operator" in reason for reason in found.kept.values())


def test_noise_is_that_of_the_photo() -> None:
    task = get_task(f"{EXAMPLES}/dncnn.py:NoisyGrey")
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noisy, clean = task.prepare(rgb)
    assert torch.equal(task.prepare(rgb)[0], noisy)
    assert torch.equal(task.prepare(rgb[1:])[0], noisy[1:])
    assert float((noisy - clean).std()) == pytest.approx(25 / 255, rel=0.05)
    assert task.has_truth(rgb)


@pytest.fixture(scope="module")
def rgb(pare_data: Path) -> torch.Tensor:
    """Three photos of CBSD68: (3, 3, 128, 128) in [0, 1]."""
    photos = open_photos(pare_data / "photos_val" / "cbsd68", keep_grey=True)
    return to_batch([centre_square(photos.load(index), 128) for index in range(3)])


def render(pare_data: Path, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """What the published weights make of ``inputs``; their number is checked."""
    net = create_model(f"{EXAMPLES / name}", task="image", weights=pare_data / "teachers" / WEIGHTS[name])
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    with torch.inference_mode():
        return net(inputs).clamp(0, 1)


@pytest.mark.parametrize("name", ["sci.py:SCI", "zero_dce.py:ZeroDCE"])
def test_low_light_networks_brighten_dark_photos_towards_the_original(
    pare_data: Path, rgb: torch.Tensor, name: str
) -> None:
    dark, _ = get_task(f"{EXAMPLES}/dark_photos.py:DarkPhotos").prepare(rgb)
    bright = render(pare_data, name, dark)
    assert float(bright.mean()) > 2.5 * float(dark.mean())
    assert bool((psnr(bright, rgb) > psnr(dark, rgb) + 3).all())


def test_the_autoencoder_gives_photos_back(pare_data: Path, rgb: torch.Tensor) -> None:
    assert float(psnr(render(pare_data, "taef2.py:TAEF2", rgb), rgb).mean()) > 28


def test_the_style_network_paints_waves(pare_data: Path, rgb: torch.Tensor) -> None:
    painted = render(pare_data, "fast_style.py:FastStyle", rgb)
    assert 8 < float(psnr(painted, rgb).mean()) < 18  # another picture, of the same things
    grey, photo = (part.mean(dim=1).flatten(1) for part in (painted, rgb))
    assert all(float(torch.corrcoef(torch.stack(pair))[0, 1]) > 0.5 for pair in zip(grey, photo, strict=True))
    spread = (painted.amax(dim=1) - painted.amin(dim=1)).mean()
    assert 0.1 < float(spread) < 0.5


def test_the_denoiser_removes_noise_as_published(pare_data: Path, rgb: torch.Tensor) -> None:
    task = get_task(f"{EXAMPLES}/dncnn.py:NoisyGrey")
    noisy, clean = task.prepare(rgb)
    result = render(pare_data, "dncnn.py:DnCNN", noisy)
    gains = psnr(task.render(noisy, result), task.render(noisy, clean)) - psnr(
        task.render(noisy, noisy), task.render(noisy, clean)
    )
    assert float(gains.min()) > 5
    assert float(gains.mean()) > 8
