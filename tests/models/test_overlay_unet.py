"""The student family of overlays and the network of two variants."""

from __future__ import annotations

import pytest
import torch

from models import create_model, get_spec
from models.controls import pack
from models.overlay_unet import Film, film_unet, overlay_unet

TINY = {"widths": (8, 16), "depths": (1, 1)}


@pytest.mark.parametrize("factory", [overlay_unet, film_unet])
def test_the_first_overlay_is_exactly_neutral(factory) -> None:
    net = factory(**TINY).eval()
    channels = 4 if factory is film_unet else 3
    with torch.inference_mode():
        out = net(torch.rand(2, channels, 32, 48))
    assert out.shape == (2, 1, 32, 48)
    assert bool((out == 0.5).all())


@pytest.mark.parametrize("factory", [overlay_unet, film_unet])
def test_overlays_are_bounded_and_every_weight_learns(factory) -> None:
    net = factory(**TINY)
    torch.nn.init.normal_(net.head.weight, std=3.0)
    packed = pack(torch.rand(2, 3, 32, 32), torch.tensor([[0.0], [1.0]]))
    out = net(packed if factory is film_unet else packed[:, :3])
    low, high = out.detach().aminmax()
    assert 0 <= low < 0.2 < 0.8 < high <= 1
    (out * torch.rand_like(out)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_film_scales_and_shifts_by_channel() -> None:
    film, x = Film(2), torch.ones(2, 2, 1, 1)
    assert torch.equal(film(x, torch.tensor([0.7])), x)
    with torch.no_grad():
        film.scale.copy_(torch.tensor([1.0, -1.0]))
        film.shift.copy_(torch.tensor([0.0, 4.0]))
    assert film(x, torch.tensor([0.0, 0.5])).flatten().tolist() == [1.0, 1.0, 1.5, 2.5]


def trained_looking() -> torch.nn.Module:
    """A small FilmUNet whose film and head are not at their start."""
    net = film_unet(**TINY).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "film" in name or "head" in name:
                value.normal_(0, 0.3)
    return net


def test_the_variant_changes_the_overlay_packed_or_apart() -> None:
    net, photo = trained_looking(), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        one, other = (net(photo, torch.tensor([value])) for value in (0.0, 1.0))
        assert torch.equal(net(pack(photo, torch.ones(1, 1))), other)
        both = net(pack(photo.repeat(2, 1, 1, 1), torch.tensor([[0.0], [1.0]])))
    assert float((one - other).abs().max()) > 1e-3
    torch.testing.assert_close(both, torch.cat([one, other]), rtol=0, atol=1e-5)


def test_the_rows_say_what_they_are() -> None:
    film = get_spec("film_unet")
    assert (film.task, film.student, film.packed_channels) == ("overlay_variants", "overlay_unet", 4)
    assert [control.name for control in film.graph_controls] == ["variant"]
    assert get_spec("overlay_unet").role == "student"
    plain = create_model("overlay_unet", task="overlay_variants", in_channels=4, **TINY)
    with torch.inference_mode():
        assert plain(torch.rand(1, 3, 32, 32), torch.tensor([1.0])).shape == (1, 1, 32, 32)
