"""AdaFM, FTN and DNI: published names, nothing at the start level, straight lines between the levels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from models.adafm import AdaptiveFM, adafm
from models.controls import pack
from models.dni import dni
from models.errors import CheckpointError, ConfigError, UnsupportedError
from models.fixed_level import Fixed, fix_level
from models.ftn import Transition, TransitionConv, ftn
from models.registry import load_object
from models.two_ends import blend

FOLDER = Path(__file__).parent / "state_dicts"


@pytest.mark.parametrize("name", ["adafm", "dni"])
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    expected = {}
    for template, shape in content["tensors"].items():
        found = re.search(r"\{(\d+)\.\.(\d+)\}", template)
        numbers = range(int(found[1]), int(found[2]) + 1) if found else [0]
        expected.update({re.sub(r"\{.*?\}", str(number), template): shape for number in numbers})
    with torch.device("meta"):
        net = load_object(f"models.{name}:{name}")(**content["kwargs"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == expected


@pytest.mark.parametrize("make", [lambda: adafm(8, 1), lambda: ftn(8, 1, 2), lambda: adafm(8, 1, 3)])
def test_an_untrained_modification_changes_nothing_but_can_learn(make: object) -> None:
    net = make().eval()  # type: ignore[operator]
    image = torch.rand(1, 3, 16, 16)
    start, end = net(image, torch.tensor([0.0])), net(image, torch.tensor([1.0]))
    assert torch.allclose(start, end, atol=1e-6)
    end.square().mean().backward()
    tuning = net.tuning_parameters()
    assert any(parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in tuning)
    assert 0 < sum(parameter.numel() for parameter in tuning) < sum(p.numel() for p in net.parameters())


def test_the_folded_modification_is_the_published_convolution() -> None:
    layer, x, level = AdaptiveFM(4, 1), torch.rand(2, 4, 5, 5), torch.tensor([0.3, 0.8])
    want = x + level.view(2, 1, 1, 1) * layer.transformer(x)
    assert torch.allclose(layer(x, level), want, atol=1e-6)


def test_ftn_is_linear_in_the_level_and_ships_as_plain_convolutions() -> None:
    net = ftn(8, 1, 2).eval()
    for parameter in net.tuning_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain, kwargs = net.finished()
    assert kwargs["finished"]
    assert not any(isinstance(layer, Transition) for layer in plain.modules())
    packed = pack(torch.rand(2, 3, 16, 16), torch.tensor([[0.25], [1.0]]))
    with torch.inference_mode():
        assert torch.allclose(plain(packed), net(packed), atol=1e-5)
        assert not torch.allclose(net(packed), net(pack(packed[:, :3], torch.zeros(1, 1))), atol=1e-3)
    layer = next(layer for layer in net.modules() if isinstance(layer, TransitionConv))
    x = torch.rand(1, 8, 6, 6)
    with torch.inference_mode():
        kernel, offset = layer.end_change()
        moved = torch.nn.functional.conv2d(
            x, layer.conv.weight + 0.4 * kernel, layer.conv.bias + 0.4 * offset, padding=1
        )
        assert torch.allclose(layer(x, torch.tensor([0.4])), moved, atol=1e-5)


@pytest.mark.parametrize("name", ["adafm", "ftn", "finished"])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_fixed_level_is_the_plain_network_that_computes_the_same(name: str, level: float) -> None:
    torch.manual_seed(0)
    net = adafm(8, 2) if name == "adafm" else ftn(8, 2, 2)
    for parameter in net.tuning_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    if name == "finished":
        net = net.finished()[0]
    image = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        plain, model, kwargs = fix_level(net.eval(), level)
        torch.testing.assert_close(plain(image), net(image, torch.tensor([level])), atol=1e-5, rtol=0)
    assert plain.state_dict().keys() == dni(8, 2).state_dict().keys()
    assert (model, kwargs) == ("dni", {"width": 8, "depth": 2, "alpha": level})


def test_what_cannot_be_fixed_is_said() -> None:
    with pytest.raises(UnsupportedError, match="fixed level: expected AdaFM of kernel size 1, got kernels of 3"):
        fix_level(adafm(8, 1, 3), 0.5)
    with pytest.raises(UnsupportedError, match=r"expected a network with at_level\(level\), got DNI; fix: export it"):
        fix_level(dni(8, 1), 0.5)


def test_a_network_of_a_users_own_can_be_fixed() -> None:
    class Own(torch.nn.Linear):
        def at_level(self, level: float) -> Fixed:
            return Fixed(torch.nn.Identity(), "mine:plain", {"level": level})

    assert fix_level(Own(1, 1), 0.5)[1:] == ("mine:plain", {"level": 0.5})


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match="FTN groups: expected a divisor of 8, got 3"):
        ftn(8, 1, 3)


def test_blend_is_linear_and_wants_one_structure() -> None:
    start, end = dni(4, 1), dni(4, 1)
    middle = blend(start.state_dict(), end.state_dict(), 0.25)
    key = "model.1.sub.0.res.0.weight"
    assert torch.allclose(middle[key], 0.75 * start.state_dict()[key] + 0.25 * end.state_dict()[key])
    with pytest.raises(CheckpointError, match=r"expected the same tensors, got \['model.0.bias'"):
        blend(start.state_dict(), dni(6, 1).state_dict(), 0.5)
    image = torch.rand(1, 4, 16, 16)
    with torch.inference_mode():
        assert torch.equal(start.eval()(image), start(image[:, :3]))
