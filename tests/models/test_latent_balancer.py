"""The latent balancer: the solver and the mapper against known answers, the losses, the chain and its mappers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.balance_chain import FITS, apply_mapper, bake, balance_photo, fit_mapper, fit_mlp, shrink
from models.errors import ConfigError
from models.latent_balancer import ColourMapper, LatentBalancer, latent_balancer, solve_spd

TINY: dict[str, Any] = {
    "block_out_channels": (4, 4, 8, 8),  # attention over 28 x 28 places, as the published one
    "norm_num_groups": 2,
    "width": 8,
    "depth": 1,
    "heads": 2,
}


@pytest.fixture
def net() -> LatentBalancer:
    """A tiny balancer that moves the latent."""
    torch.manual_seed(0)
    net = latent_balancer(**TINY)
    torch.nn.init.normal_(net.balancer.conv_out.weight, std=0.5)
    return net.eval()


def _colours(count: int = 400) -> torch.Tensor:
    return torch.rand(1, 3, count // 20, 20, generator=torch.Generator().manual_seed(0))


def test_the_solver_is_that_of_linalg() -> None:
    generator = torch.Generator().manual_seed(1)
    root, right = torch.randn(3, 7, 9, generator=generator), torch.randn(3, 7, 2, generator=generator)
    matrix = root @ root.transpose(1, 2) + 0.1 * torch.eye(7)
    torch.testing.assert_close(solve_spd(matrix, right), torch.linalg.solve(matrix, right), rtol=1e-3, atol=1e-4)


def test_the_mapper_finds_a_quadratic_map() -> None:
    bad = _colours()
    good = 0.8 * bad + 0.1 * bad[:, :1] * bad[:, 1:2] + 0.05
    mapper = ColourMapper(ridge=1e-6)
    torch.testing.assert_close(mapper(mapper.fit(bad, good), bad), good, atol=1e-3, rtol=0)


def test_a_strong_penalty_leaves_the_photo_alone() -> None:
    bad = _colours()
    mapper = ColourMapper(ridge=1e6)
    torch.testing.assert_close(mapper(mapper.fit(bad, bad**2), bad), bad, atol=1e-4, rtol=0)


def test_the_fit_over_a_whole_photo_keeps_single_precision() -> None:
    generator = torch.Generator().manual_seed(5)
    bad, good = torch.rand(2, 1, 3, 224, 224, generator=generator) * 0.3
    mapper = ColourMapper()
    error = (mapper.fit(bad, good) - mapper.fit(bad.double(), good.double())).abs().max()
    assert float(error) < 2e-5  # one sum over all pixels is 30 times that far off


def test_the_untrained_balancer_changes_no_latent_and_so_no_colour() -> None:
    net = latent_balancer(**TINY).eval()
    rgb = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        bad, good = net.latents(rgb)
        assert torch.equal(bad, good)
        torch.testing.assert_close(net(rgb), rgb)


def test_the_divergence_falls_in_training() -> None:
    torch.manual_seed(0)
    net = latent_balancer(**TINY)
    with torch.no_grad():
        net.autoencoder.quant_conv.weight[:4] *= 30  # means that differ between photos, as those of a trained one
    before = net.autoencoder.encoder.conv_in.weight.clone()
    good = torch.rand(4, 3, 16, 16)
    bad = good**2
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        values = net(bad, target=good)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(values["loss"].item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(net.autoencoder.encoder.conv_in.weight, before)  # the autoencoder is not trained on


@pytest.mark.parametrize("kind", sorted(FITS))
def test_the_chain_repeats_at_any_size_and_in_bands(net: LatentBalancer, kind: Any) -> None:
    photo = torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(2))
    first = balance_photo(net, photo, kind=kind)
    torch.rand(3)  # another state of the global generator
    assert torch.equal(balance_photo(net, photo, kind=kind), first)
    assert first.shape == photo.shape
    assert float((first - photo).abs().max()) > 1e-3
    mapper = fit_mapper(net, photo, kind=kind)
    torch.testing.assert_close(apply_mapper(mapper, photo), mapper(photo))


def test_the_fitted_network_learns_a_colour_map() -> None:
    bad = _colours(2000)
    mapper = fit_mlp(bad, bad**1.5)
    assert float((mapper(bad) - bad**1.5).abs().mean()) < 0.02
    assert float((bad - bad**1.5).abs().mean()) > 0.1


def test_a_baked_table_is_close_to_its_mapper(net: LatentBalancer) -> None:
    photo = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    mapper = fit_mapper(net, photo)
    cube = bake(mapper, nodes=17, title="balanced")
    assert (cube.size, cube.title) == (17, "balanced")
    torch.testing.assert_close(cube.apply(photo), mapper(photo), atol=4e-3, rtol=0)


def test_wrong_calls_are_refused(net: LatentBalancer) -> None:
    with pytest.raises(ConfigError, match=r"ridge \| mlp"):
        fit_mapper(net, torch.zeros(1, 3, 8, 8), kind="forest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"shape \(1, 3, H, W\)"):
        fit_mapper(net, torch.zeros(2, 3, 8, 8))
    assert shrink(torch.zeros(1, 3, 300, 100)).shape == (1, 3, 224, 224)
